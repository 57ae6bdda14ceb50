"""A Django service in one file that verifies every token. Run it with ``gunicorn examples.verify_django:app``.

ISSUER and AUDIENCE say whose tokens count and what this service is called. In a project of its
own, the last lines go into ``wsgi.py``.
"""

import os

import django
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, JsonResponse
from django.urls import path

from otel_token_relay.verification import TokenVerifier
from otel_token_relay.verification.wsgi import PRINCIPAL_KEY, BearerAuthMiddleware, Principal

if not settings.configured:
    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY=os.environ.get("SECRET_KEY", "unused"))
    django.setup()


def current_principal(request: HttpRequest) -> Principal:
    """Give who the request speaks for."""
    principal: Principal = request.META[PRINCIPAL_KEY]
    return principal


def me(request: HttpRequest) -> JsonResponse:
    """Say who calls."""
    caller = current_principal(request)
    return JsonResponse({"sub": caller.subject, "client": caller.client_id, "scopes": sorted(caller.scopes)})


def profile(request: HttpRequest, user: str) -> JsonResponse:
    """Show a profile to whoever may read profiles."""
    caller = current_principal(request)
    if "profiles:read" not in caller.scopes:
        return JsonResponse({"error": "insufficient_scope"}, status=403)
    return JsonResponse({"profile": user, "seen_by": caller.subject})


def healthz(request: HttpRequest) -> JsonResponse:
    """Answer to the orchestrator, which has no token."""
    return JsonResponse({"status": "ok"})


urlpatterns = [path("me", me), path("profiles/<user>", profile), path("healthz", healthz)]

verifier = TokenVerifier(
    issuers=[os.environ.get("ISSUER", "https://idp.example")],
    audience=os.environ.get("AUDIENCE", "profile-service"),
)
app = BearerAuthMiddleware(WSGIHandler(), verifier, realm="profiles", exclude=("/healthz",))
