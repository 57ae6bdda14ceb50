"""Keep the most recent tokens in bounded collections, without letting callers displace each other's tokens.

A caller can send any number of made-up tokens. If only the most recent tokens were kept, a caller could make redaction
forget the token of a request that is still being served. Tokens that are in use are therefore displaced last.
"""

from __future__ import annotations

import weakref
from collections.abc import Container
from itertools import islice
from typing import Final

from otel_token_relay.token import BearerToken

MAX_IN_USE: Final = 64
"""The maximum number of tokens in use that a collection may contain beyond its usual limit."""

# The maximum number of tracked requests with the same token.
_MAX_OF_VALUE: Final = 8
# The maximum number of values that are checked when a value is added.
_MAX_CHECKED: Final = 8
_MIN_TO_SWEEP: Final = 256


class TokensInUse:
    """The values of tokens whose leases are open. Safe to share between threads and finalizers without a lock.

    Tokens are weakly referenced, so a lease that never ends does not keep its token alive: a token is in use only
    while a context or a request refers to it.
    """

    def __init__(self) -> None:
        # One caller may send multiple requests with the same token.
        self._tokens: dict[str, tuple[weakref.ref[BearerToken], ...]] = {}
        self._max_count = _MIN_TO_SWEEP

    def __contains__(self, value: object) -> bool:
        # Written out, because each new token displaces two older ones.
        for reference in self._tokens.get(value, ()):  # type: ignore[call-overload]  # any object
            token: BearerToken | None = reference()
            if token is not None and (lease := token.lease) is not None and lease.is_open:
                return True
        return False

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, token: BearerToken) -> None:
        """Add a token. Tokens without a lease are ignored, because nothing shows when their use ends.

        This method runs for each request that contains a token. If two threads concurrently add tokens with the same
        value, one of the tokens may be lost.
        """
        if token.lease is None:
            return
        value = token._value
        held = self._tokens.get(value)
        if held is None:
            self._tokens[value] = (weakref.ref(token),)
            if len(self._tokens) > self._max_count:
                self._sweep()
        elif held[-1]() is not token:
            self._tokens[value] = (*filter(_is_open, held[1 - _MAX_OF_VALUE :]), weakref.ref(token))

    def _sweep(self) -> None:
        """Remove the tokens that are no longer in use."""
        for value, held in list(self._tokens.items()):
            if not any(map(_is_open, held)):
                self._tokens.pop(value, None)
        self._max_count = max(_MIN_TO_SWEEP, 2 * len(self._tokens))


def _is_open(reference: weakref.ref[BearerToken]) -> bool:
    token = reference()
    return token is not None and token.lease is not None and token.lease.is_open


def within_limit(values: tuple[str, ...], limit: int, in_use: Container[str]) -> tuple[str, ...]:
    """Return the values without the oldest values that exceed *limit*.

    The oldest values that are not in use are removed first, but the last value is never removed. Up to `MAX_IN_USE`
    values that are in use may exceed the limit.
    """
    excess = len(values) - limit
    if excess <= 0:
        return values
    unused = list(islice((value for value in values[:-1] if value not in in_use), excess))
    kept = [value for value in values if value not in unused]
    return tuple(kept[max(0, len(kept) - limit - MAX_IN_USE) :])


class RecentTokens:
    """The most recently added tokens, in order. Safe to share between threads and finalizers.

    Args:
        limit: The maximum number of tokens that are not in use.
        in_use: Tokens that are displaced last.
        max_in_use: The maximum number of tokens in use that may exceed the limit.
    """

    def __init__(self, limit: int, in_use: Container[str], max_in_use: int = MAX_IN_USE) -> None:
        self._limit = limit
        self._max = limit + max_in_use
        self._in_use = in_use
        self._values: dict[str, None] = {}

    def __contains__(self, value: object) -> bool:
        return value in self._values

    def values(self) -> tuple[str, ...]:
        """Return the tokens, oldest first. Tokens that have been checked recently may appear later."""
        return tuple(self._values.copy())

    def add(self, value: str) -> bool:
        """Add a token at the end, or move an existing token there. Return whether the token is new."""
        values = self._values
        if value in values:
            values.pop(value, None)
            values[value] = None
            return False
        values[value] = None
        if len(values) > self._limit:
            try:
                oldest = next(iter(values))
                values.pop(oldest, None)
                if oldest in self._in_use:
                    self._displace_instead_of(oldest)
            except RuntimeError:  # a finalizer bound a token at the same time, so one extra value is kept
                pass
        return True

    def add_if_room(self, value: str) -> bool:
        """Add a token unless it would displace another token. Return whether the token was added."""
        if value in self._values or len(self._values) >= self._limit:
            return False
        self._values[value] = None
        return True

    def _displace_instead_of(self, oldest: str) -> None:
        """Move a value that is in use to the end, and remove the next value that is not in use."""
        values = self._values
        values[oldest] = None
        for _ in range(min(_MAX_CHECKED, len(values) - 2)):
            oldest = next(iter(values))
            values.pop(oldest, None)
            if oldest not in self._in_use:
                return
            values[oldest] = None
        if len(values) > self._max:
            values.pop(next(iter(values)), None)
