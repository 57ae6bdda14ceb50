"""A service that users call. The service contains no code that handles tokens or configures the relay."""

import os

import httpx
from fastapi import FastAPI

PROFILE_SERVICE = os.environ["PROFILE_SERVICE"]
BILLING_SERVICE = os.environ["BILLING_SERVICE"]
THIRD_PARTY = os.environ["THIRD_PARTY"]

app: FastAPI = FastAPI()
client: httpx.AsyncClient = httpx.AsyncClient(follow_redirects=True)


@app.get("/me")
async def me() -> dict[str, str | None]:
    profile = await client.get(f"{PROFILE_SERVICE}/profile")
    invoices = await client.get(f"{BILLING_SERVICE}/invoices")
    await client.get(f"{THIRD_PARTY}/weather")
    await client.get(f"{PROFILE_SERVICE}/picture")
    return {
        "name": profile.json()["name"] if profile.is_success else None,
        "billed": invoices.json()["name"] if invoices.is_success else None,
    }
