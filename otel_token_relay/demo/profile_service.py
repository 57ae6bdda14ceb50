"""The service behind it. It verifies the token that it is sent, and knows nothing of the relay."""

import asyncio
import os
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI
from fastapi.responses import RedirectResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from joserfc import jwt
from joserfc.jwk import KeySet

ISSUER = os.environ["ISSUER"]
THIRD_PARTY = os.environ["THIRD_PARTY"]

app = FastAPI()
bearer = HTTPBearer(auto_error=False)
keys = KeySet.import_key_set(httpx.get(f"{ISSUER}/jwks").json())
rules = jwt.JWTClaimsRegistry(
    iss={"essential": True, "value": ISSUER},
    aud={"essential": True, "value": "profile-service"},
    exp={"essential": True},
)


@app.get("/profile")
async def profile(
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> dict[str, str | None]:
    await asyncio.sleep(0.05)  # a look into the database
    if credentials is None:
        return {"name": None}
    claims = jwt.decode(credentials.credentials, keys, algorithms=["RS256"]).claims
    rules.validate(claims)
    return {"name": claims["sub"]}


@app.get("/picture")
async def picture() -> RedirectResponse:
    return RedirectResponse(f"{THIRD_PARTY}/picture")
