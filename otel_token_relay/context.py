"""The token in the OpenTelemetry Context: read it, bind it by hand, carry it on.

Nothing here decides where a token may go; it only says which token is the caller's.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from contextlib import AsyncContextDecorator, ContextDecorator, asynccontextmanager, contextmanager
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Final, TypeVar, cast

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from otel_token_relay.origin import Origin
from otel_token_relay.token import BearerToken, Lease

_logger = logging.getLogger(__name__)

TOKEN_KEY: Final = otel_context.create_key("token-relay-token")
# The lease of a request whose credentials were refused at the door.
REFUSED_KEY: Final = otel_context.create_key("token-relay-refused")
DESTINATION_KEY: Final = otel_context.create_key("token-relay-destination")

_Work = TypeVar("_Work")

before_first_token: Callable[[], None] | None = None
"""What is to be done before the first token is bound. `otel_token_relay.install` sets and clears it."""
# Told of each token as it is bound, and into which context, so that redaction knows it from then
# on. They are not asked anything; whatever they raise is theirs.
token_watchers: Final[list[Callable[[BearerToken, Context], None]]] = []
# Told of each token of the current context that a verifier has accepted since it was bound.
verification_watchers: Final[list[Callable[[BearerToken], None]]] = []


def with_token(token: BearerToken | None, context: Context | None = None) -> Context:
    """Give a context that holds *token*, or that holds none, whatever it held before."""
    if token is not None:
        if (prepare := before_first_token) is not None:
            prepare()
        if token_watchers:
            announce(token, context)
    if context is not None and not context:
        return Context({TOKEN_KEY: token})  # as propagators start: there is nothing to copy
    return otel_context.set_value(TOKEN_KEY, token, context)


def announce(token: BearerToken, context: Context | None = None) -> None:
    """Tell redaction of a token that belongs to the trace in *context*, bound there or not.

    Whoever obtains another token for the same request calls this before it is used.
    """
    for watch in token_watchers:
        try:
            watch(token, otel_context.get_current() if context is None else context)
        except Exception:  # the request goes on
            _logger.debug("a token could not be announced", exc_info=True)


def announce_verified(token: BearerToken) -> None:
    """Announce again a token that has been verified since it was bound."""
    for watch in verification_watchers:
        try:
            watch(token)
        except Exception:  # the request goes on
            _logger.debug("a verified token could not be announced", exc_info=True)


def bound_token(context: Context) -> BearerToken | None:
    """Give the token in *context*, whether or not it still serves."""
    token: BearerToken | None = context.get(TOKEN_KEY)  # type: ignore[assignment]
    return token


def is_refused(context: Context) -> bool:
    """Whether this is the context of a request whose credentials were refused, and not yet over."""
    lease = cast("Lease | None", context.get(REFUSED_KEY))
    return lease is not None and lease.is_open


def current_token(context: Context | None = None) -> BearerToken | None:
    """Give the caller's token, or ``None`` when there is none or its request has ended.

    Args:
        context: Where to look; ``None`` for the current context.
    """
    token = bound_token(otel_context.get_current() if context is None else context)
    return token if token is not None and token.serves_here else None


@contextmanager
def use_token(token: str | BearerToken | None) -> Iterator[BearerToken | None]:
    """Bind a token by hand for the length of the block: for consumers, jobs and tests.

    Args:
        token: The token without ``Bearer``; ``None`` binds none, and what was bound before is
            out of sight until the block ends.

    Yields:
        The token as it is bound, under a lease that ends with the block.

    Raises:
        ValueError: The text is no b64token (RFC 6750, section 2.1). It is not shown.
    """
    lease = Lease()
    bound = BearerToken(token, lease=lease) if isinstance(token, str) else token and token.rebind(lease=lease)
    attached = otel_context.attach(with_token(bound))
    try:
        yield bound
    finally:
        lease.end()
        otel_context.detach(attached)


def to_destination(url: str, context: Context | None = None) -> Context:
    """Name the destination for an ``inject`` by hand, for a client that is not covered::

        propagate.inject(headers, context=to_destination("https://profile-service/me"))

    Do this anew for every hop, and do not attach the context that comes back.

    Args:
        url: The URL as it will be requested. One that two parsers could read differently
            (userinfo, backslash, white space) names no destination, and nothing is written.
        context: Where the token is; ``None`` for the current context.
    """
    return otel_context.set_value(DESTINATION_KEY, Origin.parse(url), context)


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


# A generator runs in the context of whoever asks for the next value. What is attached while it
# is suspended would be that consumer's, so the token is bound for each step.


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
