"""The boundary for synchronous and asynchronous gRPC servers.

The hook adds our interceptor before all other interceptors, so it encloses them. Instrumentation reads
metadata as a mapping, which contains only the last of multiple ``authorization`` entries. The boundary rejects multiple
entries as ambiguous and prevents instrumentation from binding any of them during the call.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context

from otel_token_relay import refusals
from otel_token_relay import runtime as in_force
from otel_token_relay.authentication import Authenticator, ErrorResponse, RequestPath
from otel_token_relay.boundary import Boundary
from otel_token_relay.patching import Function, Patches
from otel_token_relay.runtime import Runtime, Terms, TermsInForce
from otel_token_relay.settings import Settings
from otel_token_relay.stream_limits import limits_streams, seconds_left

Settle = Callable[[], Terms | None]

# The position of the `interceptors` argument in both `grpc.server` and `grpc.aio.server`.
_INTERCEPTORS_POSITION = 2

# A malformed header causes a 400 response over HTTP, but is treated as a missing header over gRPC.
_CODES: Final = {400: "UNAUTHENTICATED", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 503: "UNAVAILABLE"}
# The status details for a stream whose token has expired. The value is defined in RFC 6750, section 3.1.
_EXPIRED: Final = "invalid_token"
_TRAILING: Final = ("www-authenticate", "retry-after")


def server_interceptor(settings: Settings | None = None, authenticator: Authenticator | None = None) -> Any:
    """Return an interceptor for `grpc.server`, for use if gRPC is not hooked. List this interceptor first.

    Args:
        settings: ``None`` to use the installed settings or, if there are none, the environment variables.
        authenticator: The authenticator for each call, such as a `BearerAuthenticator`; ``None`` to use the
            authenticator that the settings require.
    """
    import grpc

    return _build_interceptor(grpc, TermsInForce(settings, authenticator))


def aio_server_interceptor(settings: Settings | None = None, authenticator: Authenticator | None = None) -> Any:
    """Return an interceptor for `grpc.aio.server`; see `server_interceptor`."""
    import grpc.aio

    return _build_aio_interceptor(grpc, TermsInForce(settings, authenticator))


# An alias that matches the class name in the other server modules.
TokenRelayMiddleware: Final = server_interceptor


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the ``server`` function in *module*, which is ``grpc`` or ``grpc.aio``."""
    is_aio = module.__name__ == "grpc.aio"

    def settle() -> Terms | None:
        return None if (installed := in_force.installed) is None else installed.terms

    def build(original: Function) -> Function:
        def server(*args: Any, **kwargs: Any) -> Any:
            import grpc

            ours = (_build_aio_interceptor if is_aio else _build_interceptor)(grpc, settle)
            if len(args) > _INTERCEPTORS_POSITION:
                others = args[_INTERCEPTORS_POSITION]
                rest = args[_INTERCEPTORS_POSITION + 1 :]
                args = (*args[:_INTERCEPTORS_POSITION], [ours, *(others or ())], *rest)
            else:
                kwargs["interceptors"] = [ours, *(kwargs.get("interceptors") or ())]
            return original(*args, **kwargs)

        return server

    patches.wrap(module, "server", build)


def _build_interceptor(module: Any, settle: Settle) -> Any:
    class TokenRelayInterceptor(module.ServerInterceptor):  # type: ignore[misc]  # the module is an argument
        def intercept_service(self, continuation: Function, details: Any) -> Any:
            return _enclose(module, continuation(details), details, settle())

    return TokenRelayInterceptor()


def _build_aio_interceptor(module: Any, settle: Settle) -> Any:
    class TokenRelayInterceptor(module.aio.ServerInterceptor):  # type: ignore[misc]  # the module is an argument
        async def intercept_service(self, continuation: Function, details: Any) -> Any:
            return _enclose(module, await continuation(details), details, settle())

    return TokenRelayInterceptor()


def _enclose(module: Any, handler: Any, details: Any, terms: Terms | None) -> Any:
    """Return the handler for a single call, with the servicer's method enclosed in the boundary."""
    if handler is None or terms is None:
        return handler
    incoming = "stream" if handler.request_streaming else "unary"
    outgoing = "stream" if handler.response_streaming else "unary"
    behavior = getattr(handler, f"{incoming}_{outgoing}")
    return getattr(module, f"{incoming}_{outgoing}_rpc_method_handler")(
        _bind(
            behavior,
            handler.response_streaming,
            lambda: _Call(module, details, terms, is_stream=handler.request_streaming or handler.response_streaming),
        ),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _values_in(metadata: Sequence[tuple[str, Any]]) -> Callable[[str], list[str | bytes]]:
    return lambda name: [value for key, value in metadata if key.lower() == name]


def _bind(behavior: Function, is_stream: bool, start: Callable[[], _Call]) -> Function:
    """Enclose a servicer's method in the boundary. The result is the same kind of function, as `grpc.aio` requires."""
    if inspect.isasyncgenfunction(behavior):

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            call = start()
            try:
                await call.check_async(context)
                responses = behavior(request, context)
                try:
                    while True:
                        with call.step():
                            try:
                                response = await call.in_time(anext(responses), context)
                            except StopAsyncIteration:
                                return
                        yield response
                finally:
                    with call.step():
                        await responses.aclose()
            finally:
                call.close()

        return stream
    if inspect.iscoroutinefunction(behavior):

        async def respond(request: Any, context: Any) -> Any:
            call = start()
            try:
                await call.check_async(context)
                with call.step():
                    return await call.in_time(behavior(request, context), context)
            finally:
                call.close()

        return respond

    def respond_in_thread(request: Any, context: Any) -> Any:
        call = start()
        try:
            call.check(context)
            with call.step():
                response = behavior(request, context)
            call.check_time(context)
            return response
        finally:
            call.close()

    def stream_in_thread(request: Any, context: Any) -> Iterator[Any]:
        call = start()
        # gRPC does not close the response iterator of a canceled call.
        if context.add_callback(call.close) is False:  # the call has already ended (the `grpc.aio` method returns None)
            call.close()
        return _Responses(lambda: behavior(request, context), context, call)

    return stream_in_thread if is_stream else respond_in_thread


class _Call:
    """The state of a single call.

    The context is preserved between steps, because instrumentation attaches its span in the first step."""

    def __init__(self, module: Any, details: Any, terms: Terms, *, is_stream: bool) -> None:
        self._module = module
        self._path = RequestPath(details.method, details.method)
        self._authenticator = terms.authenticator
        self._boundary = Boundary.of(_values_in(details.invocation_metadata or ()), terms.settings)
        self._context = self._boundary.context()
        self._settings = terms.settings if is_stream and limits_streams(*terms) else None
        self._ends_at: float | None = None
        self._timer: threading.Timer | None = None

    def close(self) -> None:
        """End the lease when the call ends."""
        self._boundary.close()
        if self._timer is not None:
            self._timer.cancel()

    def check(self, context: Any) -> None:
        """Abort the call by raising an exception, unless the authenticator accepts the call."""
        error_response = self._boundary.check(self._authenticator, self._path)
        if error_response is not None:
            self._record(error_response, context)
            context.set_trailing_metadata(_trailing_metadata(error_response))
            context.abort(self._code(error_response), error_response.error)
            # In older grpcio releases, aborting a context that `grpc.aio` passes to a synchronous method does not raise
            # an exception. Raise an exception here to prevent the method from running.
            raise self._module.aio.AbortError(error_response.error)
        if self._set_end():
            self._timer = threading.Timer(self._seconds_left(), self._end, (context,))
            self._timer.daemon = True
            self._timer.start()

    def _set_end(self) -> bool:
        """Set the time at which the stream must end. Return whether the stream has a time limit."""
        seconds = None if self._settings is None else seconds_left(self._boundary, self._settings)
        if seconds is None:
            return False
        self._ends_at = time.monotonic() + seconds
        return True

    def _seconds_left(self) -> float:
        return max(0.0, (self._ends_at or 0.0) - time.monotonic())

    def check_time(self, context: Any) -> None:
        """Abort the stream by raising an exception if its token has expired."""
        if self._ends_at is not None and time.monotonic() >= self._ends_at:
            context.abort(self._module.StatusCode.UNAUTHENTICATED, _EXPIRED)
            raise self._module.aio.AbortError(_EXPIRED)

    def _end(self, context: Any) -> None:
        """End a synchronous method's stream while the method waits in a thread that cannot be interrupted.

        The context's own ``abort`` method raises an exception in the calling thread and has no effect on the waiting
        thread. Instead, this method calls the server's internal function, which sends the status immediately, and
        notifies the thread if it is waiting for a request. A context that `grpc.aio` passes to a synchronous method
        does not have the required state. For such a context, `check_time` ends the stream at its next step.
        """
        with contextlib.suppress(Exception):
            server: Any = importlib.import_module("grpc._server")
            state, call = context._state, context._rpc_event.call
            with state.condition:
                if server._is_rpc_state_active(state):
                    state.code = self._module.StatusCode.UNAUTHENTICATED
                    code = server.cygrpc.StatusCode.unauthenticated
                    server._abort(state, call, code, _EXPIRED.encode("ascii"))
                state.condition.notify_all()

    async def in_time(self, waiting: Awaitable[Any], context: Any) -> Any:
        """Await one step of an asynchronous method, and cancel the step if the call's token expires."""
        if self._ends_at is None:
            return await waiting
        import asyncio

        limit = asyncio.timeout(self._seconds_left())
        try:
            async with limit:
                return await waiting
        except Exception:
            if not limit.expired():
                raise
        return await context.abort(self._module.StatusCode.UNAUTHENTICATED, _EXPIRED)

    async def check_async(self, context: Any) -> None:
        """Abort the call unless the authenticator accepts the call, without blocking the event loop."""
        error_response = await self._boundary.check_async(self._authenticator, self._path)
        if error_response is not None:
            self._record(error_response, context)
            context.set_trailing_metadata(_trailing_metadata(error_response))
            await context.abort(self._code(error_response), error_response.error)
        self._set_end()

    def _record(self, error_response: ErrorResponse, context: Any) -> None:
        def describe() -> refusals.GrpcCall:
            values_of = _values_in(context.invocation_metadata() or ())
            return refusals.GrpcCall(self._path.whole, self._code(error_response).value[0], values_of)

        refusals.record(error_response, self._context, describe, is_at_server=False)

    def _code(self, error_response: ErrorResponse) -> Any:
        return getattr(self._module.StatusCode, _CODES[error_response.status])

    @contextmanager
    def step(self) -> Generator[None, None, None]:
        attached = otel_context.attach(self._context)
        try:
            yield
        finally:
            self._context = otel_context.get_current()
            otel_context.detach(attached)


def _trailing_metadata(error_response: ErrorResponse) -> tuple[tuple[str, str], ...]:
    return tuple((name.lower(), value) for name, value in error_response.headers if name.lower() in _TRAILING)


class _Responses:
    """A synchronous method's responses, which are produced in the call's context.

    The check and the method run when gRPC requests the first response, in a thread that may block. The check cannot
    be done earlier, because `grpc.aio` calls streaming methods on its event loop, where the check would cause a
    deadlock.
    """

    def __init__(self, begin: Callable[[], Iterator[Any]], context: Any, call: _Call) -> None:
        self._begin = begin
        self._context = context
        self._call = call
        self._responses: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            if self._responses is None:
                self._call.check(self._context)
                with self._call.step():
                    self._responses = self._begin()
            self._call.check_time(self._context)
            with self._call.step():
                response = next(self._responses)
            self._call.check_time(self._context)
            return response
        except BaseException:
            self._call.close()
            raise
