"""A cache of exchanged tokens that never returns one user's token to a different user.

This module performs no I/O and does not read the system clocks directly.

Cache keys contain the digest of the caller's token, so only code that has this token can look up a result. Keys never
contain user IDs, session IDs, or names, because caches in other projects that use such keys have returned the wrong
user's token.

Failures are stored in a separate cache with its own size limit. Therefore, a caller that sends invalid tokens cannot
evict successful results. While a failure is cached, the same token is not sent to the server again.
"""

from __future__ import annotations

import hashlib
import time
from typing import Final, NamedTuple

from otel_token_relay.errors import ExchangeError, ExchangeFailed
from otel_token_relay.exchange.grants import Request
from otel_token_relay.exchange.responses import Issued
from otel_token_relay.token import BearerToken, Clock
from otel_token_relay.verification.cache import Cache

DEFAULT_SIZE: Final = 4096
_SUBJECT_LENGTH: Final = 32
_MAX_FAILURES: Final = 1024

# A request takes time, so a result is not used during the last 30 seconds of its lifetime. If the lifetime is shorter
# than 300 seconds, the margin is one tenth of it.
_MARGIN_SECONDS: Final = 30.0
_MARGIN_SHARE: Final = 0.1
# The maximum lifetime, in seconds, of a result if the expiration time that limits it is unknown.
_UNKNOWN_SECONDS: Final = 60.0
_RENEWAL_SHARE: Final = 0.8
_FAILURE_SECONDS: Final = 5.0
_OUTAGE_SECONDS: Final = 1.0
# A proxy or a restarting server can cause these errors, so they do not indicate that the token is invalid.
_OUTAGES: Final[frozenset[ExchangeError]] = frozenset({"unavailable", "timeout", "bad_response"})


class Exchanged(NamedTuple):
    """A cached result.

    Attributes:
        value: The issued token's value.
        until: The monotonic time, in seconds, until which the token can be used.
        expires_at: The token's expiration time, as seconds since the epoch; ``None`` if the expiration time is unknown.
        renew_at: The monotonic time, in seconds, at which the service's own token is due for early renewal.
    """

    value: str
    until: float
    expires_at: float | None
    renew_at: float

    def __repr__(self) -> str:
        return f"Exchanged({len(self.value)} chars, until={self.until})"


class _Failure(NamedTuple):
    failure: ExchangeFailed
    until: float


def endpoint_hash(endpoint: str, client_id: str, request: Request) -> bytes:
    """Return a hash of the cache key parts that are the same for all users.

    Call this function once for each destination.
    """
    parts = (endpoint, client_id, request.grant, request.audience, request.resource, request.scope, *request.expected)
    return _hash(*(None if part is None else part.encode() for part in parts))


def key_of(subject: bytes, endpoint: bytes, actor: bytes = b"") -> bytes:
    """Return a cache key.

    Different combinations of parts always produce different keys, because the parts have fixed lengths.

    Args:
        subject: The digest of the caller's token; 32 zero bytes if the request is for the service's own token.
        endpoint: The destination's hash, as returned by `endpoint_hash`.
        actor: The digest of the service's own token; empty if no actor token is sent.
    """
    return subject + endpoint + actor


class ExchangeCache:
    """A cache for the results and failures of token exchanges. This class is thread-safe.

    Args:
        size: The maximum number of cached results.
        now: A clock that returns the time as seconds since the epoch.
        monotonic: A monotonic clock that returns the time in seconds.
    """

    def __init__(self, size: int = DEFAULT_SIZE, *, now: Clock = time.time, monotonic: Clock = time.monotonic) -> None:
        self._successes: Cache[Exchanged] = Cache(size)
        self._failures: Cache[_Failure] = Cache(_MAX_FAILURES)
        self._subjects: Cache[bool] = Cache(size)
        self._now = now
        self._monotonic = monotonic

    def __repr__(self) -> str:
        return f"ExchangeCache({len(self._successes)} results)"

    def get(self, key: bytes) -> Exchanged | None:
        """Return the result for a key; ``None`` if the cache contains no usable result."""
        found = self._successes.get(key)
        if found is None:
            return None
        # Check both clocks, because the wall clock can be changed, and the monotonic clock can stop while the machine
        # sleeps.
        is_valid = self._monotonic() < found.until and (found.expires_at is None or self._now() < found.expires_at)
        return found if is_valid else None

    def keep(self, key: bytes, result: Exchanged) -> None:
        """Store an existing result under an additional key."""
        self._successes.put(key, result)

    def drop(self, key: bytes, rejected: BearerToken) -> None:
        """Remove the result for a key if the result is the rejected token."""
        found = self._successes.get(key)
        if found is not None and BearerToken.from_parsed(found.value) == rejected:
            self._successes.drop(key)

    def failure(self, key: bytes) -> ExchangeFailed | None:
        """Return the failure of a recent exchange; ``None`` if no recent exchange failed."""
        found = self._failures.get(key)
        return found.failure if found is not None and self._monotonic() < found.until else None

    def has_succeeded(self, key: bytes) -> bool:
        """Return whether the key's token has been exchanged successfully for any destination."""
        return self._subjects.get(key[:_SUBJECT_LENGTH]) is not None

    def put(self, key: bytes, issued: Issued, subject_expires_at: float | None, *, is_own: bool = False) -> Exchanged:
        """Store a result.

        Args:
            key: The cache key. See `key_of`.
            issued: The server's response.
            subject_expires_at: The expiration time of the caller's token, as seconds since the epoch; ``None`` if the
                time is unknown.
            is_own: Whether the result is the service's own token. Only the server's response limits the lifetime of the
                service's own token.

        Returns:
            The cached result, which might have no remaining lifetime.
        """
        now = self._now()
        ends = [end for end in (issued.expires_at, subject_expires_at) if end is not None]
        lives = [end - now for end in ends]
        if issued.expires_in is not None:
            lives.append(issued.expires_in)
        if (subject_expires_at is None and not is_own) or not lives:
            lives.append(_UNKNOWN_SECONDS)
        life = max(min(lives), 0.0)
        usable = life - min(_MARGIN_SECONDS, life * _MARGIN_SHARE)
        started = self._monotonic()
        result = Exchanged(
            issued.token, started + usable, min(ends) if ends else None, started + usable * _RENEWAL_SHARE
        )
        self._successes.put(key, result)
        self._subjects.put(key[:_SUBJECT_LENGTH], True)
        self._failures.drop(key)
        return result

    def put_failure(self, key: bytes, failure: ExchangeFailed) -> None:
        """Store a failure for a short time so that a retry by the caller does not immediately repeat the exchange."""
        seconds = _OUTAGE_SECONDS if failure.error in _OUTAGES else _FAILURE_SECONDS
        # Store a copy without the traceback, because the traceback's frames contain tokens.
        kept = ExchangeFailed(failure.error, failure.detail, claims_challenge=failure.claims_challenge)
        self._failures.put(key, _Failure(kept, self._monotonic() + seconds))


def _hash(*parts: bytes | None) -> bytes:
    """Return the hash of a sequence of parts.

    Different sequences have different hash inputs, because the length of each part is included.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"-" if part is None else b"%d:%b" % (len(part), part))
    return digest.digest()
