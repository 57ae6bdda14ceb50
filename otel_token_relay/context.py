"""Read the caller's token from the OpenTelemetry Context, or bind a token to the Context manually.

This module does not decide where a token may go.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple, cast

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from otel_token_relay.origin import Origin
from otel_token_relay.otel import get_current
from otel_token_relay.signed_urls import is_signed
from otel_token_relay.token import BearerToken, Lease
from otel_token_relay.unused_credentials import UnusedCredentials

_logger = logging.getLogger("otel_token_relay")

TOKEN_KEY: Final = otel_context.create_key("token-relay-token")
# The lease of a request whose credentials were rejected.
REFUSED_KEY: Final = otel_context.create_key("token-relay-refused")
# A request's `UnusedCredentials`, for use by redaction.
UNUSED_KEY: Final = otel_context.create_key("token-relay-unused")
# The `Lease` of a call that the service makes on its own behalf. It is ignored in a context that contains TOKEN_KEY.
SERVICE_KEY: Final = otel_context.create_key("token-relay-service")
# True in a context in which `extract` has found no token, until a token or `None` is bound.
NOT_FOUND_KEY: Final = otel_context.create_key("token-relay-not-found")
DESTINATION_KEY: Final = otel_context.create_key("token-relay-destination")

before_first_token: Callable[[], None] | None = None
"""A function to call before the first token is bound. `otel_token_relay.install` sets it; the first call clears it."""

# Each watcher is called with every token that is bound and the token's context, so that redaction can recognize the
# token. Watchers cannot change the token, and their errors do not affect the request.
token_watchers: Final[list[Callable[[BearerToken, Context], None]]] = []
# Each watcher is called, in the token's context, after a verifier accepts a token that is already bound.
verification_watchers: Final[list[Callable[[BearerToken], None]]] = []
# Each watcher is called with a request's unused credentials and the context that contains them.
unused_watchers: Final[list[Callable[[UnusedCredentials, Context], None]]] = []


# A context is immutable, but a copy that no other code has seen can still be changed safely. Every request makes
# several such copies, and merging two dictionaries would copy each context twice.
_set: Final = dict.__setitem__

has_bound: bool = False
"""Whether this process has ever bound a token or explicitly bound ``None``."""
has_served: bool = False
"""Whether this process, or one that it was forked from, has ever served a request.

This variable becomes ``True`` when a server boundary opens, or when `extract` reads an HTTP request that has no
boundary.
"""


def with_token(token: BearerToken | None, context: Context | None = None) -> Context:
    """Return a context with *token*; if it is ``None``, return a context without a token, even if *context* has one."""
    global has_bound
    has_bound = True
    if context is None:
        context = get_current()
    if token is not None:
        if (prepare := before_first_token) is not None:
            prepare()
        if token_watchers:
            announce(token, context)
    return bind(token, context)


def bind(token: BearerToken | None, context: Context) -> Context:
    """Return a copy of *context* with *token*, without calling the watchers."""
    bound = Context(context)
    _set(bound, TOKEN_KEY, token)
    if NOT_FOUND_KEY in bound:
        _set(bound, NOT_FOUND_KEY, False)
    return bound


def bind_not_found(context: Context) -> Context:
    """Return a copy of *context* without a token, because `extract` has found none."""
    global has_bound
    has_bound = True
    return Context(context | {TOKEN_KEY: None, NOT_FOUND_KEY: True})


def is_bound(context: Context) -> bool:
    """Return whether *context* shows on whose behalf code runs: a caller's (even without a token) or the service's."""
    return TOKEN_KEY in context or SERVICE_KEY in context


def is_unserved(context: Context) -> bool:
    """Return whether *context* is outside any request, so that the service acts on its own behalf.

    Such contexts occur inside ``with as_service():`` and, unless a token or ``None`` is bound, in a process that has
    never served a request. In a process that serves requests, or in a worker of such a process, a context without a
    token is never treated this way, because the token may have been lost.
    """
    is_unbound = TOKEN_KEY not in context
    service = cast("Lease | None", context.get(SERVICE_KEY))
    if is_unbound and service is not None and service.is_open:
        return True
    return not has_served and (is_unbound or context.get(NOT_FOUND_KEY) is True) and not _is_worker_process()


def _is_worker_process() -> bool:
    """Return whether ``multiprocessing`` started this process, whose tasks may then belong to its parent's requests.

    This process cannot tell whether its parent serves requests, because a pool is often created before the first
    request.
    """
    for name in ("multiprocessing.process", "multiprocess.process"):
        parent_process = getattr(sys.modules.get(name), "parent_process", None)
        if parent_process is not None and parent_process() is not None:
            return True
    return False


def with_unused(unused: UnusedCredentials | None, context: Context) -> Context:
    """Return a copy of *context* with a request's unused credentials, and report the credentials to redaction."""
    context = Context(context | {UNUSED_KEY: unused})
    if unused is not None:
        _notify(unused_watchers, unused, context)
    return context


def announce(token: BearerToken, context: Context | None = None) -> None:
    """Report a token to redaction as part of the trace in *context*, even if it is not bound to that context."""
    if context is None:
        context = get_current()
    # Written as a loop instead of calling `_notify`, because this code runs for every request.
    for watch in token_watchers:
        try:
            watch(token, context)
        except Exception:  # the request continues
            _logger.debug("a token could not be announced", exc_info=True)


def announce_obtained(token: BearerToken) -> None:
    """Report a token that was obtained for the current request to redaction. Call this at each hop that uses the token.

    One request's hops may be in multiple traces. Because the authorization server issued the token, redaction treats it
    like a token that a verifier has accepted.
    """
    announce_verified(token)
    announce(token)


def announce_verified(token: BearerToken) -> None:
    """Report a token to redaction again after the token has been verified."""
    _notify(verification_watchers, token)


def _notify(watchers: Sequence[Callable[..., None]], *arguments: object) -> None:
    for watch in watchers:
        try:
            watch(*arguments)
        except Exception:  # the request continues
            _logger.debug("a credential could not be announced to redaction", exc_info=True)


def bound_token(context: Context) -> BearerToken | None:
    """Return the token in *context*, even if it can no longer be used."""
    token: BearerToken | None = context.get(TOKEN_KEY)  # type: ignore[assignment]
    return token


def is_refused(context: Context) -> bool:
    """Return whether *context* belongs to a request whose credentials were rejected and that has not ended."""
    lease = cast("Lease | None", context.get(REFUSED_KEY))
    return lease is not None and lease.is_open


def current_token(context: Context | None = None) -> BearerToken | None:
    """Return the caller's token, or ``None`` if there is none or its request has ended.

    Args:
        context: The context to read; ``None`` for the current context.
    """
    token = bound_token(otel_context.get_current() if context is None else context)
    return token if token is not None and token.is_usable else None


@contextmanager
def use_token(token: str | BearerToken | None) -> Generator[BearerToken | None, None, None]:
    """Bind a token manually for the duration of a ``with`` block, for use in consumers, jobs, and tests.

    Args:
        token: The token, without ``Bearer``; ``None`` to hide the bound token until the block ends.

    Yields:
        The bound token, whose lease ends with the block.

    Raises:
        ValueError: *token* is not a b64token (RFC 6750, section 2.1). The message does not contain the token.
    """
    lease = Lease()
    bound = BearerToken(token, lease=lease) if isinstance(token, str) else token and token.rebind(lease=lease)
    attached = otel_context.attach(with_token(bound))
    try:
        yield bound
    finally:
        lease.end()
        otel_context.detach(attached)


@contextmanager
def as_service() -> Generator[None, None, None]:
    """Make the calls in a ``with`` block on the service's own behalf, not on a caller's.

    Destinations whose entries have ``;without-user=client`` get the service's own token. Other destinations get no
    token, because the caller's token is hidden. Work that outlives the block can no longer use the service's token.
    """
    lease = Lease()
    current = otel_context.get_current()
    without_token = {key: value for key, value in current.items() if key != TOKEN_KEY}
    attached = otel_context.attach(Context(without_token | {SERVICE_KEY: lease}))
    try:
        yield
    finally:
        lease.end()
        otel_context.detach(attached)


class NamedUrl(NamedTuple):
    """The destination of an `inject` call.

    Attributes:
        origin: The origin; ``None`` if two parsers could interpret the URL differently.
        is_signed: Whether the URL's query authenticates the request.
    """

    origin: Origin | None
    is_signed: bool


def to_destination(url: str, context: Context | None = None) -> Context:
    """Return a context that specifies the destination of an ``inject`` call, for use with an unsupported client::

        propagate.inject(headers, context=to_destination("https://profile-service/me"))

    Call this function again for every hop, and do not attach the returned context.

    Args:
        url: The URL that will be requested. If two parsers could interpret the URL differently (because of user info, a
            backslash, or white space), ``inject`` does not write a token.
        context: The context that contains the token; ``None`` for the current context.
    """
    return otel_context.set_value(DESTINATION_KEY, NamedUrl(Origin.parse(url), is_signed(url)), context)
