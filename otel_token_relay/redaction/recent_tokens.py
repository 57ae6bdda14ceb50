"""Keep the most recent tokens in bounded collections, without letting callers displace the tokens of other callers.

A caller can send any number of made-up tokens. If only the most recent ones were kept, a caller could make redaction
forget the token of a request that is still being served. Tokens that are in use are therefore displaced last.
"""

from __future__ import annotations

import weakref
from collections.abc import Container
from itertools import islice
from typing import Final

from otel_token_relay.token import BearerToken

MAX_IN_USE: Final = 64
"""The number of tokens in use that a collection may contain in addition to its usual limit."""

# The number of values checked for each one that is added.
_MAX_CHECKED: Final = 8
_MIN_TO_SWEEP: Final = 256


class TokensInUse:
    """The values of the tokens whose leases are open. Safe to share between threads and finalizers, without a lock.

    Tokens are referenced weakly, so that a lease that is never ended does not keep its token: a token is in use only
    while a context or a request refers to it.
    """

    def __init__(self) -> None:
        # For each value, the tokens with that value, by their ids: one caller may have several requests.
        self._tokens: dict[str, dict[int, weakref.ref[BearerToken]]] = {}
        self._count = 0
        self._max_count = _MIN_TO_SWEEP

    def __contains__(self, value: object) -> bool:
        tokens = self._tokens.get(value)  # type: ignore[call-overload]  # a container accepts any object
        if tokens is None:
            return False
        for reference in list(tokens.values()):  # a loop, since this runs for each token that is displaced
            token = reference()
            if token is not None and token.lease is not None and token.lease.is_open:
                return True
        return False

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, token: BearerToken) -> None:
        """Add a token. A token without a lease has no known end, so it is not in use for this purpose."""
        if token.lease is None:
            return
        value = token._value
        tokens = self._tokens.get(value)
        if tokens is None:
            tokens = self._tokens.setdefault(value, {})
        tokens[id(token)] = weakref.ref(token)
        if self._tokens.get(value) is not tokens:  # another thread has just removed the empty dictionary
            self._tokens.setdefault(value, tokens).update(tokens)
        self._count += 1  # two threads may count only one token, which delays the next sweep
        if self._count > self._max_count:
            self._sweep()

    def _sweep(self) -> None:
        """Remove the tokens that are no longer in use."""
        self._count = 0
        for value, tokens in list(self._tokens.items()):
            for key, reference in list(tokens.items()):
                token = reference()
                if token is None or token.lease is None or not token.lease.is_open:
                    tokens.pop(key, None)
            self._count += len(tokens)
            if not tokens:
                self._tokens.pop(value, None)
                if tokens:  # another thread has just added a token
                    self._tokens.setdefault(value, tokens)
        self._max_count = max(_MIN_TO_SWEEP, 2 * self._count)


def within_limit(values: tuple[str, ...], limit: int, in_use: Container[str]) -> tuple[str, ...]:
    """Return the values without the oldest ones that exceed *limit*.

    The oldest values that are not in use are removed first, but never the last value. Up to `MAX_IN_USE` values that
    are in use may exceed the limit.
    """
    excess = len(values) - limit
    if excess <= 0:
        return values
    unused = list(islice((value for value in values[:-1] if value not in in_use), excess))
    kept = [value for value in values if value not in unused]
    return tuple(kept[max(0, len(kept) - limit - MAX_IN_USE) :])


class RecentTokens:
    """The last tokens that were added, in order. Safe to share between threads and finalizers.

    Args:
        limit: The maximum number of tokens that are not in use.
        in_use: Tokens that are displaced last.
        max_in_use: The number of tokens in use that may exceed the limit.
    """

    def __init__(self, limit: int, in_use: Container[str], max_in_use: int = MAX_IN_USE) -> None:
        self._limit = limit
        self._max = limit + max_in_use
        self._in_use = in_use
        self._values: dict[str, None] = {}

    def __contains__(self, value: object) -> bool:
        return value in self._values

    def values(self) -> tuple[str, ...]:
        """Return the tokens, oldest first. Those that have been checked recently may come later."""
        return tuple(self._values.copy())

    def add(self, value: str) -> bool:
        """Put a token at the end, and return whether it is new."""
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
        """Add a token unless it would displace another one. Return whether it was added."""
        if value in self._values or len(self._values) >= self._limit:
            return False
        self._values[value] = None
        return True

    def _displace_instead_of(self, oldest: str) -> None:
        """Put a value in use at the end, and remove the next one that is not in use."""
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
