"""The boundary for Sanic's own server. If an ASGI server runs Sanic, the ASGI server's hook applies instead."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

from otel_token_relay import refusals
from otel_token_relay import runtime as in_force
from otel_token_relay.authentication import CANNOT_VERIFY, ErrorResponse, RequestPath
from otel_token_relay.boundary import Boundary
from otel_token_relay.otel import attach, detach, get_current
from otel_token_relay.patching import Function, Patches
from otel_token_relay.runtime import Runtime, Terms

_logger = logging.getLogger("otel_token_relay")

Handler = Callable[[Any], Awaitable[None]]


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the connection classes in *module*, which is ``sanic.server.protocols.http_protocol``.

    The hook does not wrap ``Sanic.handle_request``, which the connections use as their request handler. Sanic
    recompiles that method from its source when the application starts, which removes any wrapper.
    """
    # Hook the subclasses instead of their base class, because `HttpProtocol` stores the attribute in its own slot.
    for name in ("HttpProtocol", "Http3Protocol"):
        patches.wrap_attribute(getattr(module, name), "request_handler", _enclose)
    # If a request cannot be parsed or is canceled early, `error_response` runs the application's middleware and error
    # handlers outside the request handler.
    patches.wrap(module.HttpProtocol.HTTP_CLASS, "error_response", _build_error_response, ("self", "exception"))
    from sanic.http import http3  # the hooked module has already imported this module

    patches.wrap(http3.HTTPReceiver, "error_response", _build_error_response, ("self", "exception"))


def _build_error_response(original: Function) -> Function:
    async def error_response(self: Any, exception: Exception) -> None:
        installed = in_force.installed
        stage = type(self.stage)
        if installed is None or self.stage not in (stage.REQUEST, stage.HANDLER):  # a response cannot be sent
            await original(self, exception)
            return
        if self.stage is stage.REQUEST:
            self.stage, self.keep_alive = stage.HANDLER, False  # the original method does the same
        if self.request is None:
            self.create_empty_request()
        await serve(lambda request: original(self, exception), self.request, installed.terms)

    return error_response


def _enclose(handler: Handler) -> Handler:
    async def request_handler(request: Any) -> None:
        installed = in_force.installed
        if installed is None:
            await handler(request)
        else:
            await serve(handler, request, installed.terms)

    return request_handler


async def serve(handler: Handler, request: Any, terms: Terms) -> None:
    """Bind this request's token, or ``None``. Run *handler* if the authenticator accepts the request."""
    boundary = Boundary.of(_values_of(request), terms.settings)
    attached = attach(boundary.context())
    try:
        error_response = await _check(boundary, request, terms)
        if error_response is None:
            await handler(request)
        else:
            refusals.record(error_response, get_current(), lambda: _describe(request), is_at_server=True)
            await _respond(request, error_response)
    finally:
        boundary.close()
        detach(attached)


async def _check(boundary: Boundary, request: Any, terms: Terms) -> ErrorResponse | None:
    try:
        # Sanic uses this path to route requests.
        path = RequestPath(request.path, request.path, method=request.method, values_of=_values_of(request))
        return await boundary.check_async(terms.authenticator, path)
    except Exception as error:  # prevent Sanic from calling the application's error handlers
        _logger.error("an authenticator raised %s", type(error).__name__)
        return CANNOT_VERIFY


def _values_of(request: Any) -> Callable[[str], list[str]]:
    return lambda name: request.headers.getall(name, [])


def _describe(request: Any) -> refusals.HttpRequest:
    # `request.scheme` is not reliable, because its value might come from a header.
    scheme = "https" if request.conn_info.ssl else "http"
    return refusals.HttpRequest(request.method, request.path, scheme, _values_of(request))


async def _respond(request: Any, error_response: ErrorResponse) -> None:
    from sanic.response import HTTPResponse

    # Do not call `request.respond`, because it runs the application's response middleware.
    response: Any = HTTPResponse(status=error_response.status, headers=dict(error_response.headers))
    response = request.stream.respond(response)
    await response.send(error_response.body, end_stream=True)  # Sanic omits the body for HEAD requests
