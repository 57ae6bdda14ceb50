"""authgent-server for tests. This module runs in the environment that contains authgent-server, not in the tests'
environment.

All sessions share one SQLite connection, so the end of a request can roll back the changes of a different request. The
server here handles one request at a time and never deletes expired rows. It also hashes secrets with fewer rounds,
because hashing would otherwise take most of the tests' time.
"""

from __future__ import annotations

import asyncio
from typing import Any

import bcrypt
from authgent_server import app as authgent
from authgent_server.config import get_settings
from authgent_server.db import get_session_factory
from authgent_server.services import client_service
from authgent_server.services.jwks_service import JWKSService
from fastapi import FastAPI


def create_app() -> Any:
    """Return the ASGI application with an additional route that rotates the signing key."""
    authgent._CLEANUP_INTERVALS.clear()
    client_service._hash_secret = lambda secret: bcrypt.hashpw(secret.encode(), bcrypt.gensalt(rounds=4)).decode()
    app: FastAPI = authgent.create_app()
    lock = asyncio.Lock()

    @app.post("/keys/rotate")
    async def rotate() -> None:
        settings = get_settings()
        async with get_session_factory(settings)() as session:
            await JWKSService(settings).rotate_key(session)

    async def one_at_a_time(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        async with lock:
            await app(scope, receive, send)

    return one_at_a_time
