"""An application without verification code, for servers with several kinds of processes."""

from __future__ import annotations

from fastapi import FastAPI

asgi_app = FastAPI(openapi_url=None)


@asgi_app.get("/me")
async def me() -> dict[str, str]:
    """Respond to every request that the application receives."""
    return {"served": "yes"}
