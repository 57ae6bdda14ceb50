"""Protected applications for separate server processes, where ``ISSUER`` identifies the trusted issuer."""

from __future__ import annotations

import json
import os
from typing import Any

from otel_token_relay import current_token
from otel_token_relay.verification import TokenVerifier
from otel_token_relay.verification.asgi import BearerAuthMiddleware as AsgiAuth
from otel_token_relay.verification.wsgi import PRINCIPAL_KEY
from otel_token_relay.verification.wsgi import BearerAuthMiddleware as WsgiAuth
from tests.support.tokens import AUDIENCE

OPTIONS: dict[str, Any] = {
    "realm": "profiles",
    "exclude": ("/healthz",),
    "required_scopes": ("profiles:read",),
    "resource_metadata": "https://profiles.example",
}


def _verifier() -> TokenVerifier:
    return TokenVerifier([os.environ["ISSUER"]], AUDIENCE, timeout=1.0)


async def _asgi(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    token = current_token()
    verified = None if token is None or token.claims is None else token.claims["sub"]
    body = json.dumps({"user": scope["user"].identity, "claims": verified}).encode()
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": body.decode()})
        await send({"type": "websocket.close", "code": 1000})
        return
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    token = current_token()
    verified = None if token is None or token.claims is None else token.claims["sub"]
    body = json.dumps({"user": environ[PRINCIPAL_KEY].identity, "claims": verified}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def asgi() -> Any:
    """Return the ASGI application."""
    return AsgiAuth(_asgi, _verifier(), **OPTIONS)


def wsgi() -> Any:
    """Return the WSGI application."""
    return WsgiAuth(_wsgi, _verifier(), **OPTIONS)


if os.environ.get("ISSUER"):
    asgi_app = asgi()
    wsgi_app = wsgi()
