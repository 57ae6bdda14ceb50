"""The boundary for Sanic's own server. Under an ASGI server, that server's hook applies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

from otel_token_relay import refusals
from otel_token_relay import runtime as in_force
from otel_token_relay.authentication import ErrorResponse, RequestPath
from otel_token_relay.boundary import Boundary
from otel_token_relay.otel import attach, detach, get_current
from otel_token_relay.patching import Patches
from otel_token_relay.runtime import Runtime, Terms

Handler = Callable[[Any], Awaitable[None]]


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the connections of *module*, which is ``sanic.server.protocols.http_protocol``.

    Not ``Sanic.handle_request``, from which the connections take their handler: when the application starts, Sanic
    compiles that method again from its source, without any wrapper.
    """
    # A subclass with slots has its own attribute.
    for name in ("HttpProtocol", "Http3Protocol"):
        patches.wrap_attribute(getattr(module, name), "request_handler", _enclose)


def _enclose(handler: Handler) -> Handler:
    async def request_handler(request: Any) -> None:
        installed = in_force.installed
        if installed is None:
            await handler(request)
        else:
            await serve(handler, request, installed.terms)

    return request_handler


async def serve(handler: Handler, request: Any, terms: Terms) -> None:
    """Bind this request's token, or none, until *handler* returns. Run it if the authenticator accepts the request."""
    boundary = Boundary.of(_values_of(request), terms.settings)
    attached = attach(boundary.context())
    try:
        # Sanic routes by this path.
        error_response = await boundary.check_async(terms.authenticator, RequestPath(request.path, request.path))
        if error_response is None:
            await handler(request)
        else:
            refusals.record(error_response, get_current(), lambda: _describe(request), is_at_server=True)
            await _respond(request, error_response)
    finally:
        boundary.close()
        detach(attached)


def _values_of(request: Any) -> Callable[[str], list[str]]:
    return lambda name: request.headers.getall(name, [])


def _describe(request: Any) -> refusals.HttpRequest:
    # `request.scheme` may come from a header.
    scheme = "https" if request.conn_info.ssl else "http"
    return refusals.HttpRequest(request.method, request.path, scheme, _values_of(request))


async def _respond(request: Any, error_response: ErrorResponse) -> None:
    from sanic.response import HTTPResponse

    # Not `request.respond`, which runs the application's response middleware.
    response: Any = HTTPResponse(status=error_response.status, headers=dict(error_response.headers))
    response = request.stream.respond(response)
    # RFC 9110, section 9.3.2: HEAD gets the headers of GET, without a body.
    await response.send(None if request.method == "HEAD" else error_response.body, end_stream=True)
