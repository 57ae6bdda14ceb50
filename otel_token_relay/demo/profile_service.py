"""A service that user-service calls. The service requires a valid token but contains no relay code."""

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

# At this level, the log includes the reason for each rejection; the response does not.
logging.basicConfig()
logging.getLogger("otel_token_relay").setLevel(logging.DEBUG)

verifier: AsyncTokenVerifier = AsyncTokenVerifier(
    issuers=[ISSUER],
    audience="profile-service",
    # All processes use the same clock, so the default leeway of 30 seconds for clock differences is unnecessary.
    leeway=0,
    # Introspect each token, because a JWT does not indicate whether it has been revoked.
    introspection_endpoint=f"{ISSUER}/introspect",
    client_id="profile-service",
    client_secret=os.environ["CLIENT_SECRET"],
)

app: FastAPI = FastAPI()
app.add_middleware(BearerAuthMiddleware, verifier=verifier, realm="profiles", exclude=("/picture",))


@app.get("/profile")
async def profile(caller: Annotated[Principal, Depends(current_principal)]) -> dict[str, str | None]:
    await asyncio.sleep(0.05)  # Simulate the duration of a database query.
    return {"name": caller.subject}


@app.get("/picture")
async def picture() -> RedirectResponse:
    return RedirectResponse(f"{THIRD_PARTY}/picture")
