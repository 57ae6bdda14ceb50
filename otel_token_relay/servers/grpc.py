"""The boundary for gRPC servers, sync and aio.

An interceptor, put before all others by the hook: its part of a call encloses theirs. Instrumentation
reads metadata as a mapping, in which the last of two ``authorization`` entries wins; here two are
ambiguous, and whoever reads them again within the call gets nothing either.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from opentelemetry import context as otel_context

from otel_token_relay.patching import Function, Patches
from otel_token_relay.relay import Relay
from otel_token_relay.servers.boundary import Boundary
from otel_token_relay.settings import Settings

Settle = Callable[[], Settings | None]

# Of both `grpc.server` and `grpc.aio.server`.
_INTERCEPTORS_POSITION = 2


def server_interceptor(settings: Settings | None = None) -> Any:
    """Give an interceptor for `grpc.server`, where nothing is installed. Put it first.

    Args:
        settings: ``None`` for `Settings.from_env()`.
    """
    import grpc

    chosen = Settings.from_env() if settings is None else settings
    return _build_interceptor(grpc, lambda: chosen)


def aio_server_interceptor(settings: Settings | None = None) -> Any:
    """Give an interceptor for `grpc.aio.server`; see `server_interceptor`."""
    import grpc.aio

    chosen = Settings.from_env() if settings is None else settings
    return _build_aio_interceptor(grpc, lambda: chosen)


def patch(module: ModuleType, relay: Relay, patches: Patches) -> None:
    """Hook the function ``server`` of *module*, which is ``grpc`` or ``grpc.aio``."""
    is_aio = module.__name__ == "grpc.aio"

    def settle() -> Settings | None:
        return None if relay.is_closed else relay.settings

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
            return _enclose(module, continuation(details), details.invocation_metadata, settle())

    return TokenRelayInterceptor()


def _build_aio_interceptor(module: Any, settle: Settle) -> Any:
    class TokenRelayInterceptor(module.aio.ServerInterceptor):  # type: ignore[misc]  # the module is an argument
        async def intercept_service(self, continuation: Function, details: Any) -> Any:
            return _enclose(module, await continuation(details), details.invocation_metadata, settle())

    return TokenRelayInterceptor()


def _enclose(module: Any, handler: Any, metadata: Sequence[tuple[str, Any]] | None, settings: Settings | None) -> Any:
    """Give the handler of one call with the boundary around what it calls."""
    if handler is None or settings is None:
        return handler
    incoming = "stream" if handler.request_streaming else "unary"
    outgoing = "stream" if handler.response_streaming else "unary"
    behavior = getattr(handler, f"{incoming}_{outgoing}")
    return getattr(module, f"{incoming}_{outgoing}_rpc_method_handler")(
        _bind(behavior, _values_in(metadata or ()), settings),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _values_in(metadata: Sequence[tuple[str, Any]]) -> Callable[[str], list[str]]:
    def values_of(name: str) -> list[str]:
        found = (value for key, value in metadata if key.lower() == name)
        return [value.decode("latin-1") if isinstance(value, bytes) else value for value in found]

    return values_of


def _bind(behavior: Function, values_of: Callable[[str], list[str]], settings: Settings) -> Function:
    """Put the boundary around a servicer's method, which stays of its kind: aio asks what it is."""
    if inspect.isasyncgenfunction(behavior):

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            call = _Call(values_of, settings)
            responses = behavior(request, context)
            try:
                while True:
                    with call.step():
                        try:
                            response = await anext(responses)
                        except StopAsyncIteration:
                            return
                    yield response
            finally:
                with call.step():
                    await responses.aclose()
                call.close()

        return stream
    if inspect.iscoroutinefunction(behavior):

        async def answer(request: Any, context: Any) -> Any:
            call = _Call(values_of, settings)
            try:
                with call.step():
                    return await behavior(request, context)
            finally:
                call.close()

        return answer

    def answer_in_thread(request: Any, context: Any) -> Any:
        call = _Call(values_of, settings)
        try:
            with call.step():
                response = behavior(request, context)
        except BaseException:
            call.close()
            raise
        if isinstance(response, Iterator):
            # Nobody closes the responses of a call that was cancelled.
            if context.add_callback(call.close) is False:  # over already; that of aio gives None
                call.close()
            return _Responses(response, call)
        call.close()
        return response

    return answer_in_thread


class _Call:
    """One call, whose context is kept from step to step: instrumentation attaches its span in the first."""

    def __init__(self, values_of: Callable[[str], list[str]], settings: Settings) -> None:
        self._boundary = Boundary(values_of, settings)
        self._context = self._boundary.context()
        self.close = self._boundary.close

    @contextmanager
    def step(self) -> Iterator[None]:
        attached = otel_context.attach(self._context)
        try:
            yield
        finally:
            self._context = otel_context.get_current()
            otel_context.detach(attached)


class _Responses:
    """The responses of a synchronous method, each made in the context of its call."""

    def __init__(self, responses: Iterator[Any], call: _Call) -> None:
        self._responses = responses
        self._call = call

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            with self._call.step():
                return next(self._responses)
        except BaseException:
            self._call.close()
            raise
