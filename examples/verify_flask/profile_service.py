"""A Flask service that verifies the token of every request."""

import os

from flask import Flask, request
from flask.typing import ResponseReturnValue

from otel_token_relay.verification import TokenVerifier
from otel_token_relay.verification.wsgi import PRINCIPAL_KEY, BearerAuthMiddleware, Principal, refuse_without

verifier = TokenVerifier(
    issuers=[os.environ.get("ISSUER", "https://idp.example")],
    audience=os.environ.get("AUDIENCE", "profile-service"),
)
app = Flask(__name__)
app.wsgi_app = BearerAuthMiddleware(app.wsgi_app, verifier, realm="profiles", exclude=("/healthz",))  # type: ignore[method-assign]


def current_principal() -> Principal:
    """Return the request's verified caller."""
    principal: Principal = request.environ[PRINCIPAL_KEY]
    return principal


@app.get("/me")
def me() -> dict[str, object]:
    """Return the caller."""
    caller = current_principal()
    return {"sub": caller.subject, "client": caller.client_id, "scopes": sorted(caller.scopes)}


@app.get("/profiles/<user>")
def profile(user: str) -> ResponseReturnValue:
    """Return a profile to a caller with the ``profiles:read`` scope."""
    if refusal := refuse_without(request.environ, "profiles:read"):
        return refusal
    return {"profile": user, "seen_by": current_principal().subject}


@app.get("/healthz")
def healthz() -> dict[str, str]:
    """Respond to the orchestrator's health check, which has no token."""
    return {"status": "ok"}
