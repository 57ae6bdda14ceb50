"""Fetch each issuer's keys in the background.

Invariants:

* A request whose token has a known key never waits. The lock is held only during assignments, never during a fetch.
  Each fetch runs in a background thread and is shared by all waiting callers.
* Forged tokens cannot block all of a server's threads. A request with an unknown ``kid`` waits only for a fetch that
  started recently, and the number of waiting requests is limited.
* Unknown ``kid`` values and endpoint failures trigger at most one fetch per cooldown period. An attacker can easily
  forge ``kid`` values, and forged values must not increase the load on the issuer.
* If the issuer is down, its keys can be used for an additional *max_stale* seconds. Stale keys prevent an outage but
  must not be used indefinitely.
* A source without keys raises `KeysUnavailable` within *timeout* seconds, because requests with tokens from other
  issuers might be waiting for a thread. If the last fetch failed, the source raises the error much sooner.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from otel_token_relay.durations import check_seconds
from otel_token_relay.errors import ConfigurationError, KeysUnavailable
from otel_token_relay.forks import call_in_child
from otel_token_relay.token import Clock
from otel_token_relay.verification.drivers import Wait
from otel_token_relay.verification.http_client import FetchFailed, HttpClient, Response, shared_client
from otel_token_relay.verification.jwk import NOT_FOR_SIGNATURES, KeySet, SkippedKey
from otel_token_relay.verification.jws import parse_object
from otel_token_relay.verification.key_credential import KeyCredential
from otel_token_relay.verification.metadata import (
    check_issuer,
    describe_status,
    fresh_seconds,
    metadata_urls,
    problem_with_metadata,
)

_logger = logging.getLogger("otel_token_relay")

# The maximum number of seconds that a request waits for a key that might not exist. The limit is longer than a typical
# fetch but short enough for a server with few threads.
PATIENCE_SECONDS: Final = 1.0
# The maximum number of requests that can wait at the same time. The limit is necessary because requests that are
# waiting on an event loop use memory but not threads.
MAX_WAITING: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTimes:
    """The time limits, in seconds, of a key source.

    Attributes:
        cooldown: The minimum time between two fetches for unknown ``kid`` values, and the minimum time before a failed
            fetch is retried.
        timeout: The maximum duration of a refresh, including discovery. A request never waits longer than this time,
            and waits this long only if the source has no keys.
        max_stale: The maximum time that stale keys remain in use if a refresh fails.
    """

    cooldown: float = 10.0
    timeout: float = 4.0
    max_stale: float = 3600.0

    def __post_init__(self) -> None:
        for name in ("cooldown", "timeout", "max_stale"):
            check_seconds(name, getattr(self, name))
        if self.timeout == 0:
            raise ConfigurationError("timeout", "expected more than 0 seconds")


class _Flight:
    """A fetch in progress that all waiting callers share (single flight).

    Attributes:
        end: A future that is done when the fetch has succeeded or failed.
        started: The start time, in seconds, from `time.monotonic`, which tests do not replace.
        waiting: The total number of callers that have joined the fetch.
    """

    __slots__ = ("end", "started", "waiting")

    def __init__(self) -> None:
        self.end: Future[None] = Future()
        self.started = time.monotonic()
        self.waiting = 0


class KeySource:
    """One issuer's keys. Threads, tasks, and event loops can share an instance, and a forked child process can
    use it.

    Args:
        issuer: The issuer, exactly as it appears in the ``iss`` claim.
        algorithms: The accepted algorithms.
        jwks_uri: The key set's URL, or ``None`` to read it from the issuer's metadata.
        credential: The token for fetching the metadata and the keys, or ``None`` if no token is required.
        http: The client that sends the requests, or ``None`` to use the default client.
    """

    def __init__(
        self,
        issuer: str,
        algorithms: frozenset[str],
        *,
        jwks_uri: str | None = None,
        times: KeyTimes | None = None,
        credential: KeyCredential | None = None,
        http: HttpClient | None = None,
        monotonic: Clock = time.monotonic,
    ) -> None:
        # If the key set's URL is configured, the issuer is only a name and does not have to be a URL.
        self._http = shared_client() if http is None else http
        self.issuer: str = issuer if jwks_uri is not None else check_issuer(issuer, self._http.plaintext_hosts)
        self._algorithms = algorithms
        self._jwks_uri = jwks_uri
        self._times = times or KeyTimes()
        self._credential = credential or KeyCredential("")
        self._monotonic = monotonic
        self._keys: KeySet | None = None
        self._refresh_at = self._unusable_at = float("-inf")
        self._next_after_failure = self._next_for_unknown = float("-inf")
        self._has_failed = False
        self._reported: tuple[SkippedKey, ...] = ()
        self._discovered: tuple[str, float] | None = None
        self._flight: _Flight | None = None
        self._start_over()
        call_in_child(self, KeySource._start_over)

    def _start_over(self) -> None:
        # This method is also called in a forked child, where the thread of a running fetch does not exist. The lock
        # might be held by a thread that does not exist in the child.
        self._lock = threading.RLock()
        if self._flight is not None:
            # End the cooldown, which might have started with this fetch, because the fetch will never return any keys.
            self._next_for_unknown = float("-inf")
            self._flight = None

    def current(self) -> KeySet | None:
        """Return the current keys without waiting, or ``None`` if there are no keys or the keys are too old.

        If a refresh is due, this method starts the refresh in the background.
        """
        now = self._monotonic()
        if now >= self._refresh_at:
            if now >= self._unusable_at:
                return None
            if now >= self._next_after_failure:
                self._launch()
        return self._keys

    def wait_for_any(self) -> Wait:
        """Return the fetch to wait for if `current` returns no keys.

        Raises:
            KeysUnavailable: The last fetch failed recently, or the current fetch is taking too long.
        """
        remaining = self._next_after_failure - self._monotonic()
        if remaining > 0:
            raise KeysUnavailable(remaining)
        return self._join(self._launch(), PATIENCE_SECONDS if self._has_failed else self._times.timeout)

    def wait_for_unknown(self) -> Wait | None:
        """Return the fetch to wait for if a token's ``kid`` is unknown.

        Returns:
            The fetch, or ``None`` during the cooldown, when the key is treated as nonexistent.

        Raises:
            KeysUnavailable: The current fetch, which might return the key, is taking too long or has too many waiting
                callers.
        """
        now = self._monotonic()
        with self._lock:
            flight = self._flight
            if flight is None:
                if now < self._next_for_unknown or now < self._next_after_failure:
                    return None
                self._next_for_unknown = now + self._times.cooldown
        return self._join(flight or self._launch(), PATIENCE_SECONDS)

    def _join(self, flight: _Flight, patience: float) -> Wait:
        remaining = min(patience, self._times.timeout) - (time.monotonic() - flight.started)
        with self._lock:
            # The count is never decreased, because all callers stop waiting at the same deadline.
            flight.waiting += 1
            is_full = flight.waiting > MAX_WAITING
        if not flight.end.done() and (is_full or remaining <= 0):
            raise KeysUnavailable
        return Wait(flight.end, max(remaining, 0.0))

    def unavailable(self) -> KeysUnavailable:
        """Build the error for a caller that waited but did not receive the key."""
        return KeysUnavailable(max(1.0, self._next_after_failure - self._monotonic()))

    def _launch(self) -> _Flight:
        """Return the current fetch, or start a new one."""
        with self._lock:
            if self._flight is not None:
                return self._flight
            flight = _Flight()
            self._flight = flight
        try:
            threading.Thread(target=self._run, args=(flight,), name="token-relay-keys", daemon=True).start()
        except RuntimeError:  # no thread can be started, because the process has reached its thread limit or is exiting
            self._end(flight, failed=True)
        return flight

    def _run(self, flight: _Flight) -> None:
        failed = True
        try:
            self._refresh()
            failed = False
        except Exception as error:  # requests continue to use the current keys
            _logger.warning("the keys of %s could not be refreshed: %s", self.issuer, FetchFailed.describe(error))
        finally:
            self._end(flight, failed=failed)

    def _end(self, flight: _Flight, *, failed: bool) -> None:
        with self._lock:
            self._has_failed = failed
            if failed:
                self._next_after_failure = self._monotonic() + self._times.cooldown
                self._discovered = None
            if self._flight is flight:
                self._flight = None
        flight.end.set_result(None)

    def _refresh(self) -> None:
        deadline = time.monotonic() + self._times.timeout

        def fetch_in_time(url: str) -> Response:
            authorization = self._credential.header_for(url)
            return self._http.fetch(url, timeout=deadline - time.monotonic(), authorization=authorization)

        response = fetch_in_time(self._jwks_uri or self._discover(fetch_in_time))
        if response.status != 200:
            raise FetchFailed(f"the key set URL responded with {describe_status(response.status)}")
        try:
            document = parse_object(response.body)
        except ValueError:
            raise FetchFailed("key set: the response is not a JSON object") from None
        if document.get("keys") == []:
            # If the issuer publishes an empty key set by mistake, the current keys remain in use.
            raise FetchFailed("the key set is empty")
        try:
            keys = KeySet.parse(document, self._algorithms)
        except ValueError:
            raise FetchFailed("the response is not a key set") from None
        if not keys.uses:
            # The current keys remain in use. If there are no current keys, requests fail with status 503.
            raise FetchFailed(f"no key in the key set can be used: {keys.describe_skipped()}")
        self._warn_about(keys)
        self._accept(keys, fresh_seconds(response.headers))

    def _warn_about(self, keys: KeySet) -> None:
        """Log a warning when the unusable keys change, unless `NOT_FOR_SIGNATURES` is their only problem."""
        if keys.skipped == self._reported:
            return
        self._reported = keys.skipped
        if any(problem != NOT_FOR_SIGNATURES for _, problem in keys.skipped):
            _logger.warning(
                "%d keys from %s cannot be used: %s", len(keys.skipped), self.issuer, keys.describe_skipped()
            )

    def _accept(self, keys: KeySet, fresh: float) -> None:
        now = self._monotonic()
        if self._keys is None or self._keys.contents != keys.contents:
            # Replacing the key set invalidates the cached verification results, which refer to the old key set.
            self._keys = keys
        # Refresh the keys well before they expire. The random factor prevents a service's instances from refreshing the
        # keys simultaneously.
        self._refresh_at = now + fresh * random.uniform(0.7, 0.9)  # noqa: S311  # not a secret
        self._unusable_at = now + fresh + self._times.max_stale
        self._next_after_failure = float("-inf")

    def _discover(self, fetch_in_time: Callable[[str], Response]) -> str:
        """Return the ``jwks_uri`` from the issuer's metadata. The URL is cached for an hour.

        Source: OpenID Connect Discovery 1.0, section 4; RFC 8414, sections 3 and 3.3.
        """
        if self._discovered is not None and self._monotonic() < self._discovered[1]:
            return self._discovered[0]
        problems = []
        for url in metadata_urls(self.issuer):
            response = fetch_in_time(url)
            if response.status != 200:
                problems.append(f"{url}: {describe_status(response.status)}")
                continue
            try:
                document = parse_object(response.body)
            except ValueError:  # the server is probably a web application that serves its home page at every path
                problems.append(f"{url}: the response is not a JSON object")
                continue
            problem = problem_with_metadata(document, self.issuer, self._http.plaintext_hosts)
            if problem is None:
                self._discovered = document["jwks_uri"], self._monotonic() + 3600.0
                return self._discovered[0]
            problems.append(f"{url}: {problem}")
        raise FetchFailed(f"no usable jwks_uri in the issuer's metadata ({'; '.join(problems)})")
