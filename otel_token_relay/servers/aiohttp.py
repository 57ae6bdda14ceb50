"""The boundary for aiohttp.web.

Instrumentation extracts the token and drops it: the context goes into a span and is never attached.
The boundary lies around ``RequestHandler._handle_request``, so that it ends when the response is
written, and also holds for ``web.Server`` without an application.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context

from otel_token_relay.patching import Function, Patches
from otel_token_relay.relay import Relay
from otel_token_relay.servers.boundary import BOUNDARY_KEY, Boundary
from otel_token_relay.settings import Settings


class TokenRelayMiddleware:
    """Bind the request's token around the handlers of an application, where nothing does so by itself.

    Make it the first: ``web.Application(middlewares=[TokenRelayMiddleware(), ...])``. The lease
    ends when the handler returns. A boundary further out, if there is one, is joined.

    Args:
        settings: ``None`` for `Settings.from_env()`.
    """

    # aiohttp's mark of a middleware that takes request and handler.
    __middleware_version__: Final = 1

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = Settings.from_env() if settings is None else settings

    async def __call__(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        outer: Boundary | None = vars(request).get(BOUNDARY_KEY)
        if outer is not None and outer.covers(_values_of(request)):
            return await handler(request)
        return await _serve(request, self._settings, handler, request)


def patch(module: ModuleType, relay: Relay, patches: Patches) -> None:
    """Hook the connections of *module*, which is ``aiohttp.web_protocol``."""

    def build(original: Function) -> Function:
        async def _handle_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            if relay.is_closed:
                return await original(self, request, *args, **kwargs)
            return await _serve(request, relay.settings, original, self, request, *args, **kwargs)

        return _handle_request

    patches.wrap(module.RequestHandler, "_handle_request", build)


async def _serve(request: Any, settings: Settings, call: Function, /, *args: Any, **kwargs: Any) -> Any:
    # Not as an item: those are the application's, and aiohttp warns of keys that are text.
    vars(request)[BOUNDARY_KEY] = boundary = Boundary(_values_of(request), settings)
    attached = otel_context.attach(boundary.context())
    try:
        return await call(*args, **kwargs)
    finally:
        boundary.close()
        otel_context.detach(attached)


def _values_of(request: Any) -> Callable[[str], list[str]]:
    return lambda name: list(request.headers.getall(name, ()))
