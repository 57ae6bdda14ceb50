"""The service that users call. It asks profile-service, and says nothing of the caller's token."""

import os

import httpx
from fastapi import FastAPI, Response

PROFILE_SERVICE = os.environ.get("PROFILE_SERVICE", "http://127.0.0.1:8002")

app = FastAPI()
client = httpx.AsyncClient()


@app.get("/me")
async def me(response: Response) -> dict[str, str]:
    answer = await client.get(f"{PROFILE_SERVICE}/profile")
    response.status_code = answer.status_code
    return answer.json()
