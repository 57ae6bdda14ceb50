"""The boundary for ASGI applications: FastAPI, Starlette, Django, Falcon, plain ones.

Source: ASGI specification 3.0, HTTP and WebSocket connection scopes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from types import ModuleType
from typing import Any

from opentelemetry import context as otel_context

from otel_token_relay.context import with_token
from otel_token_relay.patching import Function, Patches
from otel_token_relay.relay import Relay
from otel_token_relay.servers.boundary import BOUNDARY_KEY, Boundary
from otel_token_relay.settings import Settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve(self.app, scope, receive, send, self._settings)


def patch(owner: type, relay: Relay, patches: Patches) -> None:
    """Put the boundary around ``owner.__call__``, which takes scope, receive and send."""

    def build(original: Function) -> Function:
        async def __call__(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
            if relay.is_closed:
                await original(self, scope, receive, send)
                return

            async def app(scope: Scope, receive: Receive, send: Send) -> None:
                await original(self, scope, receive, send)

            await serve(app, scope, receive, send, relay.settings)

        return __call__

    patches.wrap(owner, "__call__", build)


def patcher(class_name: str) -> Callable[[ModuleType, Relay, Patches], None]:
    """Give the hook that patches the class of that name in a module."""

    def patch_class(module: ModuleType, relay: Relay, patches: Patches) -> None:
        patch(getattr(module, class_name), relay, patches)

    return patch_class


async def serve(app: App, scope: Scope, receive: Receive, send: Send, settings: Settings) -> None:
    """Run *app* with this request's token, or none, bound until it returns."""
    if scope["type"] not in ("http", "websocket"):
        await app(scope, receive, send)
        return
    headers = scope.get("headers") or ()
    if not isinstance(headers, (list, tuple)):
        # An iterable by the specification: what is read here must still be there for the application.
        scope["headers"] = headers = list(headers)

    def values_of(name: str) -> list[str]:
        wanted = name.encode("latin-1")
        return [value.decode("latin-1") for key, value in headers if key.lower() == wanted]

    outer: Boundary | None = scope.get(BOUNDARY_KEY)
    if outer is not None and outer.covers(values_of):
        await app(scope, receive, send)
        return

    scope[BOUNDARY_KEY] = boundary = Boundary(values_of, settings)
    attached = otel_context.attach(boundary.context())
    try:
        if boundary.token is None:
            await app(scope, receive, send)
        else:
            await app(scope, _without_token(receive), _without_token(send))
    finally:
        boundary.close()
        otel_context.detach(attached)


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
