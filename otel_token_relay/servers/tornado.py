"""The boundary for Tornado.

``RequestHandler._execute`` is the whole of a request, ``prepare`` and the messages of a WebSocket
included, and runs in a task of its own.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from types import ModuleType
from typing import Any

from opentelemetry import context as otel_context

from otel_token_relay.authentication import Authenticator, ErrorResponse, RequestPath
from otel_token_relay.patching import Function, Patches
from otel_token_relay.runtime import Runtime
from otel_token_relay.servers.boundary import Boundary


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the handlers of *module*, which is ``tornado.web``."""

    def build(original: Function) -> Function:
        async def _execute(self: Any, *args: Any, **kwargs: Any) -> Any:
            if runtime.relay.is_closed:
                return await original(self, *args, **kwargs)
            boundary = Boundary(self.request.headers.get_list, runtime.terms.settings)
            attached = otel_context.attach(boundary.context())
            try:
                # By the path as it was sent, since Tornado routes by that one.
                error_response = await _check(boundary, runtime.terms.authenticator, self)
                return (
                    await original(self, *args, **kwargs) if error_response is None else _answer(self, error_response)
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
        # Nobody has let this request in. Without an answer its body would get to `data_received`.
        _answer(handler, ErrorResponse.build(503, "temporarily_unavailable"))
        raise


def _answer(handler: Any, error_response: ErrorResponse) -> None:
    """Write the whole answer past the handler, whose own code (`on_finish`, `write_error`) has not begun."""
    from tornado import httputil

    headers = httputil.HTTPHeaders({"Date": httputil.format_timestamp(time.time())} | dict(error_response.headers))
    start_line = httputil.ResponseStartLine("", error_response.status, HTTPStatus(error_response.status).phrase)
    # RFC 9110, section 9.3.2: the headers of GET, and no body.
    body = b"" if handler.request.method == "HEAD" else error_response.body
    connection = handler.request.connection
    connection.set_close_callback(None)
    connection.write_headers(start_line, headers, body)
    connection.finish()
    handler._finished = True
    prepared = handler._prepared_future
    if prepared is not None and not prepared.done():
        # Of a handler that takes the body in a stream: it is skipped now that the answer is written.
        prepared.set_result(None)
    handler.set_status(error_response.status)
    handler._log()
