"""Read the caller's token from the OpenTelemetry Context, or bind a token to a Context.

This module does not decide which destinations can receive a token.
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
# A request's `UnusedCredentials`, which redaction uses.
UNUSED_KEY: Final = otel_context.create_key("token-relay-unused")
# The `Lease` for calls that the service makes on its own behalf. TOKEN_KEY takes precedence over SERVICE_KEY.
SERVICE_KEY: Final = otel_context.create_key("token-relay-service")
# Set to `True` when `extract` finds no token and to `False` when a token or `None` is bound.
NOT_FOUND_KEY: Final = otel_context.create_key("token-relay-not-found")
DESTINATION_KEY: Final = otel_context.create_key("token-relay-destination")

before_first_token: Callable[[], None] | None = None
"""A function that `install` registers to be called once, before the first token is bound."""

# Functions that redaction registers to receive each newly bound token and its context. These functions cannot change
# the token, and their errors do not affect the request.
token_watchers: Final[list[Callable[[BearerToken, Context], None]]] = []
# Functions to call, in a token's context, after a verifier accepts a token that is already bound.
verification_watchers: Final[list[Callable[[BearerToken], None]]] = []
# Functions to call with a request's unused credentials and the context that contains them.
unused_watchers: Final[list[Callable[[UnusedCredentials, Context], None]]] = []


# A context is immutable, but a new copy can be changed safely before it is shared. Each request creates several
# copies, and merging dictionaries would copy each context twice.
_set: Final = dict.__setitem__

has_bound: bool = False
"""Whether this process has ever bound a token or explicitly bound ``None``."""
has_served: bool = False
"""Whether this process, or a process from which it was forked, has ever served a request.

`has_served` is set when a server boundary opens, or when `extract` reads an HTTP request that has no boundary.
"""


def with_token(token: BearerToken | None, context: Context | None = None) -> Context:
    """Return a copy of *context* with *token*. If *token* is ``None``, the copy contains no token."""
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
    """Return a copy of *context* with *token*, but do not call the watchers."""
    bound = Context(context)
    _set(bound, TOKEN_KEY, token)
    if NOT_FOUND_KEY in bound:
        _set(bound, NOT_FOUND_KEY, False)
    return bound


def bind_not_found(context: Context) -> Context:
    """Return a copy of *context* that records that `extract` found no token."""
    global has_bound
    has_bound = True
    return Context(context | {TOKEN_KEY: None, NOT_FOUND_KEY: True})


def is_bound(context: Context) -> bool:
    """Return whether *context* is associated with a caller or with the service itself."""
    return TOKEN_KEY in context or SERVICE_KEY in context


def is_unserved(context: Context) -> bool:
    """Return whether the service is acting on its own behalf in *context*, outside any request.

    The result is ``True`` inside a ``with as_service():`` block. Unless a token or ``None`` is bound, the result is
    also ``True`` in a process that has never served a request. In a process that serves requests and in its worker
    processes, a missing token does not indicate that the service is acting on its own behalf, because the token might
    have been lost.
    """
    is_unbound = TOKEN_KEY not in context
    service = cast("Lease | None", context.get(SERVICE_KEY))
    if is_unbound and service is not None and service.is_open:
        return True
    return not has_served and (is_unbound or context.get(NOT_FOUND_KEY) is True) and not _is_worker_process()


def _is_worker_process() -> bool:
    """Return whether ``multiprocessing`` started this process.

    Tasks in such a process might belong to requests that the parent process is serving. The child process cannot
    detect such requests, because pools are often created before the first request.
    """
    for name in ("multiprocessing.process", "multiprocess.process"):
        parent_process = getattr(sys.modules.get(name), "parent_process", None)
        if parent_process is not None and parent_process() is not None:
            return True
    return False


def with_unused(unused: UnusedCredentials | None, context: Context) -> Context:
    """Return a copy of *context* with *unused*, and report the unused credentials to redaction."""
    context = Context(context | {UNUSED_KEY: unused})
    if unused is not None:
        _notify(unused_watchers, unused, context)
    return context


def announce(token: BearerToken, context: Context | None = None) -> None:
    """Report a token to redaction for the trace in *context*, even if the token is not bound to *context*."""
    if context is None:
        context = get_current()
    # This loop duplicates `_notify` for speed, because this code runs for every request.
    for watch in token_watchers:
        try:
            watch(token, context)
        except Exception:  # the request continues
            _logger.debug("cannot report a token to redaction", exc_info=True)


def announce_obtained(token: BearerToken) -> None:
    """Notify redaction of a token that the authorization server issued for the current request.

    Redaction treats the token like one that a verifier has accepted. Call this function for each hop that uses the
    token, because a request's hops can belong to different traces.
    """
    announce_verified(token)
    announce(token)


def announce_verified(token: BearerToken) -> None:
    """Notify redaction that a token has been verified."""
    _notify(verification_watchers, token)


def _notify(watchers: Sequence[Callable[..., None]], *arguments: object) -> None:
    for watch in watchers:
        try:
            watch(*arguments)
        except Exception:  # the request continues
            _logger.debug("cannot report a credential to redaction", exc_info=True)


def bound_token(context: Context) -> BearerToken | None:
    """Return the token in *context*, even if it can no longer be used."""
    token: BearerToken | None = context.get(TOKEN_KEY)  # type: ignore[assignment]
    return token


def is_refused(context: Context) -> bool:
    """Return whether *context* belongs to an active request whose credentials were rejected."""
    lease = cast("Lease | None", context.get(REFUSED_KEY))
    return lease is not None and lease.is_open


def current_token(context: Context | None = None) -> BearerToken | None:
    """Return the caller's token, or ``None`` if the caller has no token or the request has ended.

    Args:
        context: The context to read; ``None`` for the current context.
    """
    token = bound_token(otel_context.get_current() if context is None else context)
    return token if token is not None and token.is_usable else None


@contextmanager
def use_token(token: str | BearerToken | None) -> Generator[BearerToken | None, None, None]:
    """Bind a token for the duration of a ``with`` block, for example, in a message consumer, a job, or a test.

    Args:
        token: The token, without the ``Bearer`` prefix; ``None`` to hide the bound token until the block ends.

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
    """Make the calls in a ``with`` block on the service's own behalf instead of on a caller's behalf.

    Destinations whose entries have ``;without-user=client`` get the service's own token. Other destinations get no
    token, because the caller's token is hidden. Work that continues after the block ends cannot use the service's
    token.
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
        origin: The URL's origin; ``None`` if the URL is ambiguous.
        is_signed: Whether the URL's query string contains a signature that authenticates the request.
    """

    origin: Origin | None
    is_signed: bool


def to_destination(url: str, context: Context | None = None) -> Context:
    """Return a context that specifies the destination of an ``inject`` call.

    Use the returned context with an unsupported client::

        propagate.inject(headers, context=to_destination("https://profile-service/me"))

    Call `to_destination` for each hop, and do not attach the returned context.

    Args:
        url: The URL to request. If the URL is ambiguous because it contains user info, a backslash, or white space,
            ``inject`` does not write a token.
        context: The context that contains the token; ``None`` for the current context.
    """
    return otel_context.set_value(DESTINATION_KEY, NamedUrl(Origin.parse(url), is_signed(url)), context)
