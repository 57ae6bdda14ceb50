"""The service that users call. It calls profile-service and contains no code for the caller's token."""

import os

import httpx
from fastapi import FastAPI, Response

PROFILE_SERVICE = os.environ.get("PROFILE_SERVICE", "http://127.0.0.1:8002")

app = FastAPI()
client = httpx.AsyncClient()


@app.get("/me")
async def me(response: Response) -> dict[str, str]:
    profile = await client.get(f"{PROFILE_SERVICE}/profile")
    response.status_code = profile.status_code
    return profile.json()
