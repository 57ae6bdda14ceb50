"""The service that user-service calls. It requires a valid token; its code does not mention the relay."""

import asyncio
import logging
import os
from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.responses import RedirectResponse

from otel_token_relay.verification import AsyncTokenVerifier
from otel_token_relay.verification.asgi import BearerAuthMiddleware
from otel_token_relay.verification.fastapi import Principal, current_principal

ISSUER = os.environ["ISSUER"]
THIRD_PARTY = os.environ["THIRD_PARTY"]

# Rejected callers are not told the reason, which is logged at this level.
logging.basicConfig()
logging.getLogger("otel_token_relay").setLevel(logging.DEBUG)

verifier: AsyncTokenVerifier = AsyncTokenVerifier(
    issuers=[ISSUER],
    audience="profile-service",
    leeway=0,  # one machine has one clock; the default of 30 seconds allows for clock skew
    # Each token is also introspected, because a JWT does not show whether it has been revoked.
    introspection_endpoint=f"{ISSUER}/introspect",
    client_id="profile-service",
    client_secret=os.environ["CLIENT_SECRET"],
)

app: FastAPI = FastAPI()
app.add_middleware(BearerAuthMiddleware, verifier=verifier, realm="profiles", exclude=("/picture",))


@app.get("/profile")
async def profile(caller: Annotated[Principal, Depends(current_principal)]) -> dict[str, str | None]:
    await asyncio.sleep(0.05)  # about as long as a database query
    return {"name": caller.subject}


@app.get("/picture")
async def picture() -> RedirectResponse:
    return RedirectResponse(f"{THIRD_PARTY}/picture")
