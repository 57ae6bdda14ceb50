"""TODO."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from contextlib import AsyncContextDecorator, ContextDecorator, asynccontextmanager, contextmanager
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Final, TypeVar, cast

from opentelemetry import context as otel_context

from otel_token_relay.context import current_token, with_token
from otel_token_relay.token import BearerToken, Lease

_Work = TypeVar("_Work")


def carry(work: _Work, *, seconds: float | None = None) -> _Work:
    """Take the caller's token into work that outlives the request, or that no context reaches.

    That is what runs after the response, and what starts in an empty context: a ``Thread`` subclass
    with a ``run`` of its own, a greenlet, a callback, an executor made by hand. The token is taken
    when `carry` is called, never later, and bound while the work runs.

    Args:
        work: A function, a coroutine function, a generator function of either kind, a coroutine or
            a generator. It keeps its kind. What a function returns is carried as well if it is a
            coroutine or a generator, for a lambda or a ``functools.partial``.
        seconds: How long the token serves from now on. ``None``: as a token without a lease,
            ``…_MAX_AGE`` seconds. Work that is carried already keeps what it has.

    Returns:
        The same kind of work. Without a token that still serves, it runs with none.

    Raises:
        TypeError: *work* is none of these. A task runs in its own context already. The body of a
            ``with`` is not the context manager's: carry the function that the block stands in.
    """
    if isinstance(work, _MANAGERS) or getattr(work, "__code__", None) in _MANAGER_CODES:
        raise TypeError("carry takes no context manager: carry the function that the with block stands in")
    token = current_token()
    if token is not None:
        if seconds is not None:
            token = token.rebind(lease=Lease(seconds=seconds))
        else:
            # A token that has no lease keeps its age: carrying it on again and again
            # must not keep it alive.
            token = token.rebind(lease=None, received_at=None if token.lease else token.received_at)
    bound = _bind_running(work, token)
    if bound is work:
        if not callable(work):
            raise TypeError("carry takes a function, a coroutine or a generator")
        bound = _bind_function(work, token)
    return cast("_Work", bound)


@contextmanager
def _bound(token: BearerToken | None) -> Iterator[None]:
    attached = otel_context.attach(with_token(token))
    try:
        yield
    finally:
        otel_context.detach(attached)


def _bind_running(work: Any, token: BearerToken | None) -> Any:
    """Bind the token to a coroutine or a generator; give anything else back as it is."""
    for _, is_running, bind in _KINDS:
        if is_running(work):
            return bind(lambda: work, token)()
    return work


def _bind_function(work: Callable[..., Any], token: BearerToken | None) -> Callable[..., Any]:
    # Frameworks ask a function what it is before they call it, so each kind stays what it is.
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
                except BaseException as error:  # thrown into us, and meant for the generator
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
                except BaseException as error:  # thrown into us, and meant for the generator
                    step = generator.athrow(error)
                else:
                    step = generator.asend(sent)
        finally:
            with _bound(token):
                await generator.aclose()

    return bound


# What `contextmanager` makes of a function gives its manager, and only the caller runs the block:
# carried, it would bind the token for no longer than the manager takes to make.
_MANAGER_CODES: Final = frozenset(
    decorate(cast("Any", None)).__code__ for decorate in (contextmanager, asynccontextmanager)
)


_MANAGERS: Final = (ContextDecorator, AsyncContextDecorator)


_RUNNING: Final = (CoroutineType, GeneratorType, AsyncGeneratorType)


_KINDS: Final[tuple[tuple[Callable[[Any], bool], Callable[[Any], bool], Callable[..., Any]], ...]] = (
    (inspect.iscoroutinefunction, inspect.iscoroutine, _bind_coroutine),
    (inspect.isgeneratorfunction, inspect.isgenerator, _bind_generator),
    (inspect.isasyncgenfunction, inspect.isasyncgen, _bind_async_generator),
)
