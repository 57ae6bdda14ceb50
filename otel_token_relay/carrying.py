"""Carry the caller's token into work that runs after the request or outside its context."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AsyncContextDecorator, ContextDecorator, asynccontextmanager, contextmanager
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Final, TypeVar, cast

from opentelemetry import context as otel_context

from otel_token_relay.context import current_token, with_token
from otel_token_relay.token import BearerToken, Lease

_Work = TypeVar("_Work")


def carry(work: _Work, *, seconds: float | None = None) -> _Work:
    """Carry the caller's token into work that runs after the request or outside its context.

    Use this for work that runs after the response, and for work that starts in an empty context: a
    ``Thread`` subclass that overrides ``run``, a greenlet, a callback, or a custom executor. `carry` captures the token
    at the time of the call, never later, and binds the token while the work runs.

    Args:
        work: A function, a coroutine function, a sync or async generator function, a coroutine, or a generator. If a
            function, such as a lambda or a ``functools.partial``, returns a coroutine or a generator, the returned
            object is carried as well.
        seconds: The number of seconds for which the token may be used, starting now; ``None`` for ``…_MAX_AGE``
            seconds, as with any token that has no lease. Work that is already carried keeps its token.

    Returns:
        Work of the same kind, which runs without a token if the caller has none.

    Raises:
        TypeError: *work* is of an unsupported kind, such as a task or a context manager. A task already runs in its own
            context. A context manager does not run the body of its ``with`` block, so carry the function that contains
            the block instead.
    """
    if isinstance(work, _MANAGERS) or getattr(work, "__code__", None) in _MANAGER_CODES:
        raise TypeError("carry does not take a context manager: carry the function that contains the with block")
    token = current_token()
    if token is not None:
        if seconds is not None:
            token = token.rebind(lease=Lease(seconds=seconds))
        else:
            # A token without a lease keeps its age: carrying it repeatedly must not extend its lifetime.
            token = token.rebind(lease=None, received_at=None if token.lease else token.received_at)
    bound = _bind_running(work, token)
    if bound is work:
        if not callable(work):
            raise TypeError("carry takes a function, a coroutine or a generator")
        bound = _bind_function(work, token)
    return cast("_Work", bound)


@contextmanager
def _bound(token: BearerToken | None) -> Generator[None, None, None]:
    attached = otel_context.attach(with_token(token))
    try:
        yield
    finally:
        otel_context.detach(attached)


def _bind_running(work: Any, token: BearerToken | None) -> Any:
    """Bind the token to a coroutine or generator; return any other object unchanged."""
    for _, is_running, bind in _KINDS:
        if is_running(work):
            return bind(lambda: work, token)()
    return work


def _bind_function(work: Callable[..., Any], token: BearerToken | None) -> Callable[..., Any]:
    # Frameworks inspect a function before they call it, so its kind must not change.
    for is_function, _, bind in _KINDS:
        if is_function(work):
            return cast("Callable[..., Any]", bind(work, token))

    @functools.wraps(work)
    def bound(*args: Any, **kwargs: Any) -> Any:
        attached = otel_context.attach(with_token(token))
        try:
            result = work(*args, **kwargs)
        finally:
            otel_context.detach(attached)
        return _bind_running(result, token) if isinstance(result, _RUNNING) else result

    return bound


def _bind_coroutine(work: Callable[..., Awaitable[Any]], token: BearerToken | None) -> Any:
    @functools.wraps(work)
    async def bound(*args: Any, **kwargs: Any) -> Any:
        with _bound(token):
            return await work(*args, **kwargs)

    return bound


# A generator runs in the context of the consumer that requests the next value. A token that stayed attached while the
# generator was suspended would leak into the consumer's context, so the token is bound separately for each step.
def _bind_generator(work: Callable[..., Generator[Any, Any, Any]], token: BearerToken | None) -> Any:
    @functools.wraps(work)
    def bound(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        generator = work(*args, **kwargs)
        step: Callable[[], Any] = functools.partial(next, generator)
        try:
            while True:
                try:
                    with _bound(token):
                        value = step()
                except StopIteration as end:
                    return end.value
                try:
                    sent = yield value
                except GeneratorExit:
                    raise
                except BaseException as error:  # the consumer threw it: pass it to the generator
                    step = functools.partial(generator.throw, error)
                else:
                    step = functools.partial(generator.send, sent)
        finally:
            with _bound(token):
                generator.close()

    return bound


def _bind_async_generator(work: Callable[..., AsyncGenerator[Any, Any]], token: BearerToken | None) -> Any:
    @functools.wraps(work)
    async def bound(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        generator = work(*args, **kwargs)
        step: Awaitable[Any] = generator.asend(None)
        try:
            while True:
                try:
                    with _bound(token):
                        value = await step
                except StopAsyncIteration:
                    return
                try:
                    sent = yield value
                except GeneratorExit:
                    raise
                except BaseException as error:  # the consumer threw it: pass it to the generator
                    step = generator.athrow(error)
                else:
                    step = generator.asend(sent)
        finally:
            with _bound(token):
                await generator.aclose()

    return bound


# A function decorated with `contextmanager` returns a context manager, and the calling code runs the body of the `with`
# block. If such a function were carried, the token would be bound only while the context manager was being created.
_MANAGER_CODES: Final = frozenset(
    decorate(cast("Any", None)).__code__ for decorate in (contextmanager, asynccontextmanager)
)
_MANAGERS: Final = (ContextDecorator, AsyncContextDecorator)
_RUNNING: Final = (CoroutineType, GeneratorType, AsyncGeneratorType)

# For each kind of work: the test for its functions, the test for running work, and the function that binds the token.
_KINDS: Final[tuple[tuple[Callable[[Any], bool], Callable[[Any], bool], Callable[..., Any]], ...]] = (
    (inspect.iscoroutinefunction, inspect.iscoroutine, _bind_coroutine),
    (inspect.isgeneratorfunction, inspect.isgenerator, _bind_generator),
    (inspect.isasyncgenfunction, inspect.isasyncgen, _bind_async_generator),
)
