"""A Django service in one file that verifies every token. Run it with ``gunicorn examples.verify_django:app``.

ISSUER and AUDIENCE say whose tokens count and what this service is called. In a project of its
own, the last lines go into ``wsgi.py``.
"""

import os

import django
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from otel_token_relay.verification import TokenVerifier
from otel_token_relay.verification.wsgi import PRINCIPAL_KEY, BearerAuthMiddleware, Principal, refuse_without

OPTIONS = {"ROOT_URLCONF": __name__, "ALLOWED_HOSTS": ["*"], "SECRET_KEY": os.environ.get("SECRET_KEY", "unused")}
if not settings.configured:
    settings.configure()
# One by one: under opentelemetry-instrument, without DJANGO_SETTINGS_MODULE, Django is configured
# already, with its defaults and the middleware of the instrumentation, which is to stay.
for name, value in OPTIONS.items():
    setattr(settings, name, value)
django.setup()


def current_principal(request: HttpRequest) -> Principal:
    """Give who the request speaks for."""
    principal: Principal = request.META[PRINCIPAL_KEY]
    return principal


def me(request: HttpRequest) -> JsonResponse:
    """Say who calls."""
    caller = current_principal(request)
    return JsonResponse({"sub": caller.subject, "client": caller.client_id, "scopes": sorted(caller.scopes)})


def profile(request: HttpRequest, user: str) -> HttpResponse:
    """Show a profile to whoever may read profiles."""
    if refusal := refuse_without(request.META, "profiles:read"):
        return HttpResponse(refusal.body, status=refusal.status, headers=refusal.headers)
    return JsonResponse({"profile": user, "seen_by": current_principal(request).subject})


def healthz(request: HttpRequest) -> JsonResponse:
    """Answer to the orchestrator, which has no token."""
    return JsonResponse({"status": "ok"})


urlpatterns = [path("me", me), path("profiles/<user>", profile), path("healthz", healthz)]

verifier = TokenVerifier(
    issuers=[os.environ.get("ISSUER", "https://idp.example")],
    audience=os.environ.get("AUDIENCE", "profile-service"),
)
app = BearerAuthMiddleware(WSGIHandler(), verifier, realm="profiles", exclude=("/healthz",))
