"""An application that contains no verification code, for servers with several kinds of processes."""

from __future__ import annotations

from fastapi import FastAPI

asgi_app = FastAPI(openapi_url=None)


@asgi_app.get("/me")
async def me() -> dict[str, str]:
    """Respond to every request that reaches the application."""
    return {"served": "yes"}
