"""Keep the most recent tokens in bounded collections without letting callers evict each other's tokens.

A caller can send any number of made-up tokens. If only the most recent tokens were kept, a caller could cause redaction
to forget the token of a request that is still being processed. Tokens that are in use are therefore evicted last.
"""

from __future__ import annotations

import weakref
from collections.abc import Container
from itertools import islice
from typing import Final

from otel_token_relay.token import BearerToken

MAX_IN_USE: Final = 64
"""The maximum number of additional tokens that a collection can keep because they are in use."""

# The maximum number of requests to track for the same token.
_MAX_OF_VALUE: Final = 8
# The maximum number of values to check when a value is added.
_MAX_CHECKED: Final = 8
_MIN_TO_SWEEP: Final = 256


class TokensInUse:
    """The values of tokens whose leases are open. Threads and finalizers can use an instance without acquiring a lock.

    Instances hold weak references, so a lease that never ends does not keep a token alive. A token is in use only while
    a context or a request refers to it.
    """

    def __init__(self) -> None:
        # A caller can send multiple requests with the same token.
        self._tokens: dict[str, tuple[weakref.ref[BearerToken], ...]] = {}
        self._max_count = _MIN_TO_SWEEP

    def __contains__(self, value: object) -> bool:
        # For speed, this loop does not call `_is_open`. The loop runs for every token that might be evicted.
        for reference in self._tokens.get(value, ()):  # type: ignore[call-overload]  # any object
            token: BearerToken | None = reference()
            if token is not None and (lease := token.lease) is not None and lease.is_open:
                return True
        return False

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, token: BearerToken) -> None:
        """Add a token. A token without a lease is ignored, because the end of its use cannot be detected.

        This method runs for every request with a token, so it does not use a lock. If two threads simultaneously add
        tokens with the same value, one of the tokens might be lost.
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
    """Remove the oldest values in excess of *limit*, and return the remaining values.

    Values that are not in use are removed first, and the newest value is never removed. Values in use can exceed the
    limit by up to `MAX_IN_USE`.
    """
    excess = len(values) - limit
    if excess <= 0:
        return values
    unused = list(islice((value for value in values[:-1] if value not in in_use), excess))
    kept = [value for value in values if value not in unused]
    return tuple(kept[max(0, len(kept) - limit - MAX_IN_USE) :])


class RecentTokens:
    """The most recently added tokens, from oldest to newest. Threads and finalizers can use an instance without
    acquiring a lock.

    Args:
        limit: The maximum number of tokens that are not in use.
        in_use: The tokens to evict last.
        max_in_use: The maximum number of additional tokens to keep because they are in use.
    """

    def __init__(self, limit: int, in_use: Container[str], max_in_use: int = MAX_IN_USE) -> None:
        self._limit = limit
        self._max = limit + max_in_use
        self._in_use = in_use
        self._values: dict[str, None] = {}

    def __contains__(self, value: object) -> bool:
        return value in self._values

    def values(self) -> tuple[str, ...]:
        """Return the tokens from oldest to newest.

        A token that is in use moves to the end instead of being evicted.
        """
        return tuple(self._values.copy())

    def add(self, value: str) -> bool:
        """Add a token at the end, or move an existing token to the end. Return whether the token is new."""
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
                    self._evict_instead_of(oldest)
            except RuntimeError:  # a finalizer added a token simultaneously, so keep one extra value
                pass
        return True

    def add_if_room(self, value: str) -> bool:
        """Add a new token if no other token must be evicted to make room. Return whether the token was added."""
        if value in self._values or len(self._values) >= self._limit:
            return False
        self._values[value] = None
        return True

    def _evict_instead_of(self, oldest: str) -> None:
        """Move a value that is in use to the end, and remove the oldest value that is not in use."""
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
