"""Measure the cost of the ASGI and WSGI boundaries around an empty application."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware as AsgiInstrumentation
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware as WsgiInstrumentation

from benchmarks.figures import Figure, figure
from benchmarks.measure import Effort, awaited, side_by_side, statement
from benchmarks.samples import DESTINATION, environ, jwt, scope
from otel_token_relay import Settings
from otel_token_relay.servers import asgi, wsgi

SETTINGS = Settings(destinations=(DESTINATION,))
GROUP = "The boundary around an empty application"


async def empty_asgi(scope: Any, receive: Any, send: Any) -> None:
    """Return an empty response."""
    await receive()
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def _receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(message: Any) -> None: ...


def empty_wsgi(environ: Any, start_response: Callable[..., Any]) -> list[bytes]:
    """Return an empty response."""
    start_response("204 No Content", [])
    return [b""]


def measure_boundaries(effort: Effort) -> Iterator[Figure]:
    """Yield the boundary's cost divided by that of contrib's middleware without an SDK."""
    make = partial(
        figure,
        cost=lambda one: one["ours"] - one["bare"],
        by=lambda one: one["theirs"] - one["bare"],
        group=GROUP,
        yardstick="contrib's middleware, no SDK",
    )
    for name, authorization in (("with a token", f"Bearer {jwt()}"), ("without Authorization", None)):
        yield make(_asgi_rounds(authorization, effort), name=f"ASGI, {name}")
        yield make(_wsgi_rounds(authorization, effort), name=f"WSGI, {name}")


def _asgi_rounds(authorization: str | None, effort: Effort) -> Any:
    given = scope(authorization=authorization)

    async def request(app: Any) -> None:
        await app(dict(given), _receive, _send)

    applications = {
        "bare": empty_asgi,
        "ours": asgi.TokenRelayMiddleware(empty_asgi, SETTINGS),
        "theirs": AsgiInstrumentation(empty_asgi),
    }
    with asyncio.Runner() as runner:
        return side_by_side({name: awaited(runner, request, app) for name, app in applications.items()}, effort)


def _wsgi_rounds(authorization: str | None, effort: Effort) -> Any:
    names = {"given": environ(authorization=authorization), "start_response": lambda status, headers, info=None: None}
    applications = {
        "bare": empty_wsgi,
        "ours": wsgi.TokenRelayMiddleware(empty_wsgi, SETTINGS),
        "theirs": WsgiInstrumentation(empty_wsgi),
    }
    code = "list(app(dict(given), start_response))"
    return side_by_side({name: statement(code, {**names, "app": app}) for name, app in applications.items()}, effort)
