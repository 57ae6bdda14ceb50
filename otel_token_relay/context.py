"""The token in the OpenTelemetry Context: read it, bind it by hand, carry it on.

Nothing here decides where a token may go; it only says which token is the caller's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, cast

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from otel_token_relay.origin import Origin
from otel_token_relay.token import BearerToken, Lease

_logger = logging.getLogger(__name__)

TOKEN_KEY: Final = otel_context.create_key("token-relay-token")
# The lease of a request whose credentials were refused at the door.
REFUSED_KEY: Final = otel_context.create_key("token-relay-refused")
DESTINATION_KEY: Final = otel_context.create_key("token-relay-destination")


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
    return token if token is not None and token.is_usable else None


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


# A generator runs in the context of whoever asks for the next value. What is attached while it
# is suspended would be that consumer's, so the token is bound for each step.
