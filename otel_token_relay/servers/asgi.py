"""The boundary for ASGI applications: FastAPI, Starlette, Django, Falcon, plain ones.

Source: ASGI specification 3.0, HTTP and WebSocket connection scopes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import partial
from operator import is_
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context

from otel_token_relay.context import with_token
from otel_token_relay.door import Gate, Refusal
from otel_token_relay.patching import Function, Patches
from otel_token_relay.relay import Relay
from otel_token_relay.servers.boundary import BOUNDARY_KEY, Boundary
from otel_token_relay.settings import Settings
from otel_token_relay.zero_code import build_gate

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# A server may have no limit of its own. So many lines are compared by boundaries further in, not read again.
_MANY_LINES: Final = 64


class TokenRelayMiddleware:
    """Bind the request's token around an ASGI application, where nothing does so by itself.

    Put it on the outside. A boundary further in, if there is one, joins it.

    Args:
        app: The ASGI 3 application.
        settings: ``None`` for `Settings.from_env()`.
    """

    def __init__(self, app: App, settings: Settings | None = None) -> None:
        self.app = app
        self._settings = Settings.from_env() if settings is None else settings
        self._gate = build_gate(self._settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve(self.app, scope, receive, send, self._settings, self._gate)


def patch(owner: type, relay: Relay, patches: Patches) -> None:
    """Put the boundary around ``owner.__call__``, which takes scope, receive and send."""

    def build(original: Function) -> Function:
        async def __call__(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
            if relay.is_closed:
                await original(self, scope, receive, send)
                return

            # Not a coroutine of our own around it: there are several of these in each request.
            await serve(partial(original, self), scope, receive, send, relay.settings, relay.gate)

        return __call__

    patches.wrap(owner, "__call__", build)


def patcher(class_name: str) -> Callable[[ModuleType, Relay, Patches], None]:
    """Give the hook that patches the class of that name in a module."""

    def patch_class(module: ModuleType, relay: Relay, patches: Patches) -> None:
        patch(getattr(module, class_name), relay, patches)

    return patch_class


async def serve(
    app: App, scope: Scope, receive: Receive, send: Send, settings: Settings, gate: Gate | None = None
) -> None:
    """Run *app* with this request's token, or none, bound until it returns, if *gate* lets it in."""
    if scope["type"] not in ("http", "websocket"):
        await app(scope, receive, send)
        return
    headers = scope.get("headers") or ()
    if type(headers) is not list and not isinstance(headers, (list, tuple)):
        # An iterable by the specification: what is read here must still be there for the application.
        scope["headers"] = headers = list(headers)

    def values_of(name: str) -> list[bytes]:
        nonlocal headers
        wanted = name.encode("latin-1")
        size = len(wanted)
        while True:
            try:
                # By index, which reads nothing of a pair that can be read only once. The values stay as
                # they are, however long: `parse_credentials` decides before it decodes one.
                return [pair[1] for pair in headers if len(pair[0]) == size and pair[0].lower() == wanted]
            except TypeError:
                kept = [_keep(pair) for pair in headers]
                if all(map(is_, kept, headers)):
                    raise
                scope["headers"] = headers = kept

    outer: Boundary | None = scope.get(BOUNDARY_KEY)
    if outer is not None and outer.covers(values_of, headers):
        await (app(scope, receive, send) if gate is None else _enter(app, scope, receive, send, outer, gate))
        return

    scope[BOUNDARY_KEY] = boundary = Boundary(values_of, settings)
    if len(headers) > _MANY_LINES and set(map(type, headers)) == {tuple}:
        boundary.lines = headers[:]
    attached = otel_context.attach(boundary.context())
    try:
        if boundary.token is not None:
            receive, send = _without_token(receive), _without_token(send)
        await (app(scope, receive, send) if gate is None else _enter(app, scope, receive, send, boundary, gate))
    finally:
        boundary.close()
        otel_context.detach(attached)


def _keep(pair: Any) -> Any:
    """Return a pair that can be read again and again: by the specification, it is any iterable."""
    return pair if isinstance(pair, (tuple, list)) or not isinstance(pair, Iterable) else tuple(pair)


async def _enter(app: App, scope: Scope, receive: Receive, send: Send, boundary: Boundary, gate: Gate) -> None:
    refusal = await boundary.check_async(gate, scope.get("path", ""))
    if refusal is None:
        await app(scope, receive, send)
    elif scope["type"] == "http":
        # RFC 9110, section 9.3.2: the headers of GET, and no body.
        await _respond("http", send, refusal, b"" if scope.get("method") == "HEAD" else refusal.body)
    else:
        # A handshake is answered like any other request where the server can do that; else it
        # is closed before it is accepted, which the server turns into 403.
        await receive()
        if "websocket.http.response" in (scope.get("extensions") or {}):
            await _respond("websocket.http", send, refusal, refusal.body)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": ""})


async def _respond(kind: str, send: Send, refusal: Refusal, body: bytes) -> None:
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in refusal.headers]
    await send({"type": f"{kind}.response.start", "status": refusal.status, "headers": headers})
    await send({"type": f"{kind}.response.body", "body": body})


def _without_token(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Let the server's own code run without the token.

    Within ``receive`` and ``send`` a server starts the connection's next request and registers
    its callbacks, and the event loop keeps the context in which that happens.
    """

    async def outside(*message: Any) -> Any:
        attached = otel_context.attach(with_token(None))
        try:
            return await call(*message)
        finally:
            otel_context.detach(attached)

    return outside
