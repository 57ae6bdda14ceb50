"""A FastAPI service that verifies every token. Run it with ``uvicorn examples.verify_fastapi:app``.

ISSUER and AUDIENCE say whose tokens count and what this service is called.
"""

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
    """Say who calls."""
    return {"sub": caller.subject, "client": caller.client_id, "scopes": sorted(caller.scopes)}


@app.get("/profiles/{user}")
def profile(user: str, caller: Annotated[Principal, Depends(require_scopes("profiles:read"))]) -> dict[str, object]:
    """Show a profile to whoever may read profiles."""
    return {"profile": user, "seen_by": caller.subject}


@app.get("/healthz")
def healthz() -> dict[str, str]:
    """Answer to the orchestrator, which has no token."""
    return {"status": "ok"}
