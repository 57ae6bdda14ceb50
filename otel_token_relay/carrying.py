"""Carry the caller's token into work that runs outside the request's context."""

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
    """Carry the caller's token into work that runs after the request ends or outside the request's context.

    Use `carry` for work that runs after the response is complete or that starts in an empty context. Examples are a
    ``Thread`` subclass that overrides ``run``, a greenlet, a callback, and a job in a custom executor. The token is
    captured when `carry` is called, and it is bound while the work is running.

    Args:
        work: A function, a coroutine function, a synchronous or asynchronous generator function, a coroutine, or a
            generator. If a plain function, a lambda, or a ``functools.partial`` returns a coroutine or a generator, the
            token is also bound while the returned object is running. Work that already carries a token keeps that
            token.
        seconds: How long the token can be used, in seconds from now; ``None`` to use the ``…_MAX_AGE`` setting.

    Returns:
        An object of the same kind as *work*. If the caller has no token, the work runs without a token.

    Raises:
        TypeError: *work* has an unsupported type, such as a task or a context manager. A task already runs in its own
            context. To bind the token in a ``with`` block, carry the function that contains the block.
    """
    if isinstance(work, _MANAGERS) or getattr(work, "__code__", None) in _MANAGER_CODES:
        raise TypeError("carry does not support context managers: carry the function that contains the with block")
    token = current_token()
    if token is not None:
        if seconds is not None:
            token = token.rebind(lease=Lease(seconds=seconds))
        else:
            # A token without a lease keeps its age so that repeated calls do not extend its lifetime.
            token = token.rebind(lease=None, received_at=None if token.lease else token.received_at)
    bound = _bind_running(work, token)
    if bound is work:
        if not callable(work):
            raise TypeError("carry supports only functions, coroutines, and generators")
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
    """Bind the token to a coroutine or generator, or return any other object unchanged."""
    for _, is_running, bind in _KINDS:
        if is_running(work):
            return bind(lambda: work, token)()
    return work


def _bind_function(work: Callable[..., Any], token: BearerToken | None) -> Callable[..., Any]:
    # Frameworks inspect functions before calling them, so a coroutine function must remain a coroutine function.
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


# A generator runs in its consumer's context. A token that stayed attached while the generator was suspended would leak
# into the consumer's context, so the token is bound separately for each step.
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
                except BaseException as error:  # forward the consumer's exception to the generator
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
                except BaseException as error:  # forward the consumer's exception to the generator
                    step = generator.athrow(error)
                else:
                    step = generator.asend(sent)
        finally:
            with _bound(token):
                await generator.aclose()

    return bound


# The body of a `with` block runs in the calling code. If `carry` accepted a function decorated with `contextmanager`,
# the token would be bound only while the context manager was being created.
_MANAGER_CODES: Final = frozenset(
    decorate(cast("Any", None)).__code__ for decorate in (contextmanager, asynccontextmanager)
)
_MANAGERS: Final = (ContextDecorator, AsyncContextDecorator)
_RUNNING: Final = (CoroutineType, GeneratorType, AsyncGeneratorType)

# Each tuple contains a predicate for functions, a predicate for running objects, and the function that binds the token.
_KINDS: Final[tuple[tuple[Callable[[Any], bool], Callable[[Any], bool], Callable[..., Any]], ...]] = (
    (inspect.iscoroutinefunction, inspect.iscoroutine, _bind_coroutine),
    (inspect.isgeneratorfunction, inspect.isgenerator, _bind_generator),
    (inspect.isasyncgenfunction, inspect.isasyncgen, _bind_async_generator),
)
