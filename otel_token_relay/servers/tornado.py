"""The boundary for Tornado's HTTP server, which covers handlers, callbacks, and delegates.

``HTTPServer.start_request`` returns a delegate that receives one request. The boundary encloses the delegate and ends
when the response is finished. A request handler's ``_execute`` method runs in a separate task, which continues after a
WebSocket handshake. A request handler's boundary ends when its task ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from contextvars import Context
from functools import partial
from http import HTTPStatus
from types import ModuleType
from typing import Any, Final

from otel_token_relay import refusals
from otel_token_relay import runtime as in_force
from otel_token_relay.authentication import CANNOT_VERIFY, Authenticator, ErrorResponse, RequestPath
from otel_token_relay.boundary import BOUNDARY_KEY, Boundary
from otel_token_relay.credentials import locate
from otel_token_relay.otel import attach, detach, get_current
from otel_token_relay.patching import Function, Patches
from otel_token_relay.runtime import Runtime
from otel_token_relay.settings import Settings
from otel_token_relay.stream_limits import POLICY_VIOLATION, is_event_stream, limits_streams, seconds_left

_logger = logging.getLogger("otel_token_relay")
# After a token expires, a response that has not started is checked repeatedly at this interval.
_SECONDS_BETWEEN_CHECKS: Final = 1.0
# Tornado uses this logger to write the application's access log.
_access_logger = logging.getLogger("tornado.access")


def patch_server(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the server class in *module*, which is ``tornado.httpserver``."""

    def build(original: Function) -> Function:
        def start_request(self: Any, server_conn: Any, request_conn: Any) -> Any:
            return _EnclosedDelegate(original(self, server_conn, request_conn), request_conn)

        return start_request

    patches.wrap(module.HTTPServer, "start_request", build, ("self", "server_conn", "request_conn"))


class _EnclosedDelegate:
    """A delegate that receives one request inside the request's boundary.

    The context is preserved between steps, because instrumentation attaches its span in the first step.
    """

    def __init__(self, delegate: Any, connection: Any) -> None:
        self._delegate = delegate
        self._connection = connection
        self._start_line: Any = None
        self._error_response: ErrorResponse | None = CANNOT_VERIFY

    async def headers_received(self, start_line: Any, headers: Any) -> None:
        # Open the boundary here instead of in `start_request`, because Tornado calls that method before the request
        # arrives.
        installed = in_force.installed
        if installed is None:
            self._error_response, self._context = None, get_current()
            await self._run(self._delegate.headers_received, start_line, headers)
            return
        self._start_line = start_line
        boundary = Boundary.of(headers.get_list, installed.terms.settings)
        vars(self._connection)[BOUNDARY_KEY] = boundary
        self._connection._finish_future.add_done_callback(lambda _: self._finished())
        self._context = boundary.context()
        # Check the raw path, because Tornado uses the raw path to route requests.
        path = start_line.path.partition("?")[0]
        try:
            request_path = RequestPath(path, path, method=start_line.method, values_of=headers.get_list)
            self._error_response = await boundary.check_async(installed.terms.authenticator, request_path)
        except Exception as error:  # the request is not accepted and gets a 503 response
            _logger.error("an authenticator raised %s", type(error).__name__)
        if self._error_response is None:
            await self._run(self._delegate.headers_received, start_line, headers)
            return
        self._headers = headers
        if headers.get("Expect", "") or headers.get("Connection", "").lower() == "close":
            # The client is waiting for a response before it sends the body, or this is the connection's last request.
            self._refuse(self._error_response, ("Connection", "close"))

    async def data_received(self, chunk: bytes) -> None:
        if self._error_response is None:
            await self._run(self._delegate.data_received, chunk)

    def finish(self) -> None:
        if self._error_response is None:
            self._step(self._delegate.finish)
        else:  # the whole request has been read, so the connection can be reused
            self._refuse(self._error_response)

    def _refuse(self, error_response: ErrorResponse, *more_headers: tuple[str, str]) -> None:
        start_line = self._start_line
        describe = partial(_describe, start_line, self._headers, self._connection.context)
        refusals.record(error_response, self._context, describe, is_at_server=True)
        _write(self._connection, start_line.method, error_response, *more_headers)
        peer = getattr(self._connection.context, "remote_ip", None)
        # Omit the query, because it might contain a token.
        path = start_line.path.partition("?")[0]
        log = _access_logger.info if error_response.status < 400 else _access_logger.warning
        log("%d %s %s (%s)", error_response.status, start_line.method, path, peer)

    def on_connection_close(self) -> None:
        if self._error_response is None:
            self._step(self._delegate.on_connection_close)
        self._finished()

    def _finished(self) -> None:
        boundary = vars(self._connection).pop(BOUNDARY_KEY, None)
        if boundary is not None:
            boundary.close()

    def _step(self, method: Callable[[], Any]) -> None:
        attached = attach(self._context)
        try:
            method()
        finally:
            self._context = get_current()
            detach(attached)

    async def _run(self, method: Function, *args: Any) -> None:
        attached = attach(self._context)
        try:
            waiting = method(*args)
            if waiting is not None:
                await waiting
        finally:
            self._context = get_current()
            detach(attached)


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the request handler class in *module*, which is ``tornado.web``."""

    def build(original: Function) -> Function:
        async def _execute(self: Any, *args: Any, **kwargs: Any) -> Any:
            if runtime.relay.is_closed:
                return await original(self, *args, **kwargs)
            boundary = _take_over(self.request) or Boundary.of(self.request.headers.get_list, runtime.terms.settings)
            attached = attach(boundary.context())
            try:
                terms = runtime.terms
                error_response = await _check(boundary, terms.authenticator, self)
                if error_response is not None:
                    return _respond(self, error_response)
                if limits_streams(*terms):
                    with _ending(self, boundary, terms.settings):
                        return await original(self, *args, **kwargs)
                return await original(self, *args, **kwargs)
            finally:
                boundary.close()
                detach(attached)

        return _execute

    patches.wrap(module.RequestHandler, "_execute", build)


@contextmanager
def _ending(handler: Any, boundary: Boundary, settings: Settings) -> Generator[None, None, None]:
    """If the handler's response is long-lived, end it when the request's token expires."""
    seconds = seconds_left(boundary, settings)
    if seconds is None:
        yield
        return
    import asyncio

    loop = asyncio.get_running_loop()

    timer: Any = None

    def end() -> None:
        nonlocal timer
        if getattr(handler, "ws_connection", None) is not None:
            handler.close(POLICY_VIOLATION)
        elif handler._headers_written and is_event_stream(handler._headers.get("Content-Type")):
            if not handler._finished:
                with suppress(Exception):  # the client might have disconnected
                    handler.finish()
                task.cancel()
        else:  # the response might still become long-lived
            timer = loop.call_later(_SECONDS_BETWEEN_CHECKS, end)

    task: Any = asyncio.current_task()
    timer = loop.call_later(seconds, end, context=Context())
    try:
        yield
    except asyncio.CancelledError:
        if not handler._finished:
            raise
    finally:
        timer.cancel()


def _take_over(request: Any) -> Boundary | None:
    """Move the boundary from the request's connection to the handler. Return ``None`` if no boundary exists."""
    boundary: Boundary | None = getattr(request.connection, BOUNDARY_KEY, None)
    if boundary is None or not boundary.still_applies_to(partial(locate, request.headers.get_list)):
        return None
    del vars(request.connection)[BOUNDARY_KEY]
    boundary.move_here()
    return boundary


async def _check(boundary: Boundary, authenticator: Authenticator | None, handler: Any) -> ErrorResponse | None:
    request = handler.request
    path = RequestPath(request.path, request.path, method=request.method, values_of=request.headers.get_list)
    try:
        return await boundary.check_async(authenticator, path)
    except BaseException:
        # The request is not accepted. Without a response, Tornado would still pass the request body to `data_received`.
        _respond(handler, CANNOT_VERIFY)
        raise


def _describe(start: Any, headers: Any, connection: Any) -> refusals.HttpRequest:
    return refusals.HttpRequest(start.method, start.path.partition("?")[0], connection.protocol, headers.get_list)


def _write(connection: Any, method: str, error_response: ErrorResponse, *more_headers: tuple[str, str]) -> None:
    from tornado import httputil

    date = httputil.format_timestamp(time.time())
    headers = httputil.HTTPHeaders({"Date": date} | dict((*error_response.headers, *more_headers)))
    start_line = httputil.ResponseStartLine("", error_response.status, HTTPStatus(error_response.status).phrase)
    # A response to HEAD has the same headers as a response to GET, but no body (RFC 9110, section 9.3.2).
    connection.write_headers(start_line, headers, b"" if method == "HEAD" else error_response.body)
    connection.finish()


def _respond(handler: Any, error_response: ErrorResponse) -> None:
    """Write the response without running the handler's own methods, such as `on_finish` and `write_error`."""
    request = handler.request
    # Instrumentation starts its span in `prepare`, which has not run yet.
    describe = partial(_describe, request, request.headers, request)
    refusals.record(error_response, get_current(), describe, is_at_server=True)
    request.connection.set_close_callback(None)
    _write(request.connection, request.method, error_response)
    handler._finished = True
    prepared = handler._prepared_future
    if prepared is not None and not prepared.done():
        # If the handler streams the request body, let Tornado continue. Tornado skips the body after a response is
        # sent.
        prepared.set_result(None)
    handler.set_status(error_response.status)
    handler._log()
