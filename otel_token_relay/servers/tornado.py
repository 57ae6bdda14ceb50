"""The boundary for Tornado.

``RequestHandler._execute`` runs the whole request, including ``prepare`` and a WebSocket's messages,
in a separate task.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from types import ModuleType
from typing import Any

from opentelemetry import context as otel_context

from otel_token_relay.authentication import Authenticator, ErrorResponse, RequestPath
from otel_token_relay.boundary import Boundary
from otel_token_relay.patching import Function, Patches
from otel_token_relay.runtime import Runtime


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the handlers of *module*, which is ``tornado.web``."""

    def build(original: Function) -> Function:
        async def _execute(self: Any, *args: Any, **kwargs: Any) -> Any:
            if runtime.relay.is_closed:
                return await original(self, *args, **kwargs)
            boundary = Boundary.of(self.request.headers.get_list, runtime.terms.settings)
            attached = otel_context.attach(boundary.context())
            try:
                # The raw path is checked, because Tornado routes by it.
                error_response = await _check(boundary, runtime.terms.authenticator, self)
                return (
                    await original(self, *args, **kwargs) if error_response is None else _respond(self, error_response)
                )
            finally:
                boundary.close()
                otel_context.detach(attached)

        return _execute

    patches.wrap(module.RequestHandler, "_execute", build)


async def _check(boundary: Boundary, authenticator: Authenticator | None, handler: Any) -> ErrorResponse | None:
    path = handler.request.path
    try:
        return await boundary.check_async(authenticator, RequestPath(path, path))
    except BaseException:
        # This request was not accepted. Without a response, the request body would still be passed to `data_received`.
        _respond(handler, ErrorResponse.build(503, "temporarily_unavailable"))
        raise


def _respond(handler: Any, error_response: ErrorResponse) -> None:
    """Write the response without the handler, whose own code (`on_finish`, `write_error`) must not run."""
    from tornado import httputil

    headers = httputil.HTTPHeaders({"Date": httputil.format_timestamp(time.time())} | dict(error_response.headers))
    start_line = httputil.ResponseStartLine("", error_response.status, HTTPStatus(error_response.status).phrase)
    # RFC 9110, section 9.3.2: HEAD gets the headers of GET, without a body.
    body = b"" if handler.request.method == "HEAD" else error_response.body
    connection = handler.request.connection
    connection.set_close_callback(None)
    connection.write_headers(start_line, headers, body)
    connection.finish()
    handler._finished = True
    prepared = handler._prepared_future
    if prepared is not None and not prepared.done():
        # This is for a handler that streams the request body: Tornado skips the body once a response is sent.
        prepared.set_result(None)
    handler.set_status(error_response.status)
    handler._log()
