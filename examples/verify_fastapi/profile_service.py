"""A FastAPI service that verifies the token of every request."""

import os
from typing import Annotated

from fastapi import Depends, FastAPI

from otel_token_relay.verification import AsyncTokenVerifier
from otel_token_relay.verification.asgi import BearerAuthMiddleware
from otel_token_relay.verification.fastapi import Principal, current_principal, require_scopes

verifier = AsyncTokenVerifier(
    issuers=[os.environ.get("ISSUER", "https://idp.example")],
    audience=os.environ.get("AUDIENCE", "profile-service"),
)
app = FastAPI()
app.add_middleware(BearerAuthMiddleware, verifier=verifier, realm="profiles", exclude=("/healthz",))


@app.get("/me")
def me(caller: Annotated[Principal, Depends(current_principal)]) -> dict[str, object]:
    """Return the caller."""
    return {"sub": caller.subject, "client": caller.client_id, "scopes": sorted(caller.scopes)}


@app.get("/profiles/{user}")
def profile(user: str, caller: Annotated[Principal, Depends(require_scopes("profiles:read"))]) -> dict[str, object]:
    """Return a profile to a caller with the ``profiles:read`` scope."""
    return {"profile": user, "seen_by": caller.subject}


@app.get("/healthz")
def healthz() -> dict[str, str]:
    """Respond to the orchestrator's health check, which has no token."""
    return {"status": "ok"}
