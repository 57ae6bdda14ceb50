"""A cache of exchanged tokens that cannot mix up users. This module performs no I/O, and the clocks are passed in.

A result can be found only with the token for which it was obtained, so any code that looks up a result already holds
that token. Nothing is stored by user, session, or name: published caches that did so returned other users' tokens.

Failures are stored and limited separately from successes. A caller that sends made-up tokens can therefore neither
displace a success nor make the server refuse the same token over and over.
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

# Because a hop takes time, a result is not used in the last 30 s of its lifetime, or in the last tenth if it is
# short-lived.
_MARGIN_SECONDS: Final = 30.0
_MARGIN_SHARE: Final = 0.1
# The result's lifetime if neither the result nor the caller's token contains an expiration time.
_UNKNOWN_SECONDS: Final = 60.0
_RENEWAL_SHARE: Final = 0.8
_FAILURE_SECONDS: Final = 5.0
_OUTAGE_SECONDS: Final = 1.0
# A response from a proxy or a restarting server does not indicate whether the token is at fault.
_OUTAGES: Final[frozenset[ExchangeError]] = frozenset({"unavailable", "timeout", "bad_response"})


class Exchanged(NamedTuple):
    """A cached result.

    Attributes:
        value: The issued token.
        until: The time on the monotonic clock, in seconds, until which the token may be used.
        expires_at: The time on the wall clock, in seconds since the epoch, from which the token must no longer be used;
            ``None`` if unknown.
        renew_at: The time on the monotonic clock, in seconds, from which the service's own token is renewed in advance.
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
    """Return the hash of those parts of a key that are the same for all users. Compute it once for each destination."""
    parts = (endpoint, client_id, request.grant, request.audience, request.resource, request.scope, *request.expected)
    return _hash(*(None if part is None else part.encode() for part in parts))


def key_of(subject: bytes, endpoint: bytes, actor: bytes = b"") -> bytes:
    """Return the cache key. Its parts have fixed lengths, so no two combinations of parts have the same key.

    Args:
        subject: The digest of the caller's token; 32 zero bytes for the service's own token.
        endpoint: The result of `endpoint_hash` for the destination.
        actor: The digest of the service's own token; empty if none is sent.
    """
    return subject + endpoint + actor


class ExchangeCache:
    """Successes and failures of token exchanges. Safe to share between threads.

    Args:
        size: The maximum number of successes.
        now: The wall clock, in seconds since the epoch.
        monotonic: A clock in seconds that never goes backward.
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
        """Return the result for a key if it may still be used."""
        found = self._successes.get(key)
        if found is None:
            return None
        # The wall clock may be changed, and the monotonic clock may stop while the machine sleeps, so both clocks must
        # agree.
        is_valid = self._monotonic() < found.until and (found.expires_at is None or self._now() < found.expires_at)
        return found if is_valid else None

    def keep(self, key: bytes, result: Exchanged) -> None:
        """Store a result that has been stored under another key."""
        self._successes.put(key, result)

    def drop(self, key: bytes, rejected: BearerToken) -> None:
        """Remove the result for a key if it is the token that its destination has rejected."""
        found = self._successes.get(key)
        if found is not None and BearerToken.from_parsed(found.value) == rejected:
            self._successes.drop(key)

    def failure(self, key: bytes) -> ExchangeFailed | None:
        """Return the failure of the last exchange if it happened too recently to try again."""
        found = self._failures.get(key)
        return found.failure if found is not None and self._monotonic() < found.until else None

    def has_succeeded(self, key: bytes) -> bool:
        """Return whether an exchange of the same token has already succeeded for any destination."""
        return self._subjects.get(key[:_SUBJECT_LENGTH]) is not None

    def put(self, key: bytes, issued: Issued, subject_expires_at: float | None, *, is_own: bool = False) -> Exchanged:
        """Store a result.

        Args:
            key: The exchange's key; see `key_of`.
            issued: The server's response.
            subject_expires_at: When the caller's token expires, in seconds since the epoch; ``None`` if unknown.
            is_own: Whether the service acts on its own behalf, in which case only the server's response limits the
                result's lifetime.

        Returns:
            The result, which may already be too old to be used again.
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
        """Store a failure for a short time, so that a caller that retries does not immediately repeat the exchange."""
        seconds = _OUTAGE_SECONDS if failure.error in _OUTAGES else _FAILURE_SECONDS
        # The copy has no traceback, because the traceback's frames contain tokens.
        kept = ExchangeFailed(failure.error, failure.detail, claims_challenge=failure.claims_challenge)
        self._failures.put(key, _Failure(kept, self._monotonic() + seconds))


def _hash(*parts: bytes | None) -> bytes:
    """Hash parts of any length so that no two sequences of parts produce the same hash input."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"-" if part is None else b"%d:%b" % (len(part), part))
    return digest.digest()
