"""A Django service in one file that verifies the token of every request."""

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
# With opentelemetry-instrument and without DJANGO_SETTINGS_MODULE, Django is already configured with its defaults
# and the instrumentation's middleware. Setting each option separately keeps that middleware.
for name, value in OPTIONS.items():
    setattr(settings, name, value)
django.setup()


def current_principal(request: HttpRequest) -> Principal:
    """Return the request's verified caller."""
    principal: Principal = request.META[PRINCIPAL_KEY]
    return principal


def me(request: HttpRequest) -> JsonResponse:
    """Return the caller."""
    caller = current_principal(request)
    return JsonResponse({"sub": caller.subject, "client": caller.client_id, "scopes": sorted(caller.scopes)})


def profile(request: HttpRequest, user: str) -> HttpResponse:
    """Return a profile to a caller with the ``profiles:read`` scope."""
    if refusal := refuse_without(request.META, "profiles:read"):
        return HttpResponse(refusal.body, status=refusal.status, headers=refusal.headers)
    return JsonResponse({"profile": user, "seen_by": current_principal(request).subject})


def healthz(request: HttpRequest) -> JsonResponse:
    """Respond to the orchestrator's health check, which has no token."""
    return JsonResponse({"status": "ok"})


urlpatterns = [path("me", me), path("profiles/<user>", profile), path("healthz", healthz)]

verifier = TokenVerifier(
    issuers=[os.environ.get("ISSUER", "https://idp.example")],
    audience=os.environ.get("AUDIENCE", "profile-service"),
)
app = BearerAuthMiddleware(WSGIHandler(), verifier, realm="profiles", exclude=("/healthz",))
