"""The boundary for RSGI applications, which only the Granian server supports.

Source: RSGI specification 1.6.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from otel_token_relay import refusals
from otel_token_relay import runtime as in_force
from otel_token_relay.authentication import RequestPath
from otel_token_relay.boundary import Boundary
from otel_token_relay.otel import attach, detach, get_current
from otel_token_relay.runtime import Terms

App = Callable[[Any, Any], Awaitable[Any]]


class EnclosedApp:
    """A wrapper that runs an application inside a boundary if the relay is installed when the server calls the wrapper.

    Attribute lookups are forwarded to the application.
    """

    def __init__(self, app: App) -> None:
        self.__wrapped__ = app

    async def __call__(self, scope: Any, protocol: Any) -> Any:
        """Serve a request or a WebSocket connection."""
        installed = in_force.installed
        if installed is None:
            return await self.__wrapped__(scope, protocol)
        return await serve(self.__wrapped__, scope, protocol, installed.terms)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)


async def serve(app: App, scope: Any, protocol: Any, terms: Terms) -> Any:
    """Bind this request's token, or ``None``, until *app* returns. Run *app* if the authenticator accepts the
    request.
    """
    boundary = Boundary.of(scope.headers.get_all, terms.settings)
    attached = attach(boundary.context())
    try:
        method = scope.method if scope.proto != "ws" else ""
        path = RequestPath(scope.path, scope.path, method=method, values_of=scope.headers.get_all)
        error_response = await boundary.check_async(terms.authenticator, path)
        if error_response is None:
            return await app(scope, protocol)
        refusals.record(error_response, get_current(), lambda: _describe(scope), is_at_server=True)
        if scope.proto == "ws":
            return protocol.close(error_response.status)
        # A response to HEAD has the same headers as a response to GET, but no body (RFC 9110, section 9.3.2).
        body = b"" if scope.method == "HEAD" else error_response.body
        return protocol.response_bytes(error_response.status, list(error_response.headers), body)
    finally:
        boundary.close()
        detach(attached)


def _describe(scope: Any) -> refusals.HttpRequest:
    return refusals.HttpRequest(scope.method, scope.path, scope.scheme, scope.headers.get_all)
