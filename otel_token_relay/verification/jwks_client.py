"""Where keys come from: one source for each issuer, which fetches outside the request path.

Invariants:

* A request whose key is known never waits. The lock is held for assignments only, never over a
  fetch, and a fetch runs in a thread of its own that every waiting caller shares.
* Nor does it wait for a thread: whoever brings an unknown ``kid`` waits for a fetch only while that
  is young, and only so many do. Else a few forged tokens would hold all the threads of a server.
* However many tokens name an unknown ``kid``, and however the endpoint fails, there is at most
  one fetch for each cooldown. Forging a ``kid`` costs nothing, so it must not cost the issuer.
* An outage of the issuer changes nothing for as long as *max_stale*: stale keys are better than
  no service, and a limit is better than keys for ever.
* A source that has no keys at all says so within *timeout*, by `KeysUnavailable`, and much sooner
  where the last fetch has failed: another issuer's tokens may be waiting for the threads.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from otel_token_relay.errors import ConfigurationError, KeysUnavailable
from otel_token_relay.token import Clock
from otel_token_relay.verification.drivers import Wait
from otel_token_relay.verification.http_client import Answer, FetchFailed, fetch
from otel_token_relay.verification.jwk import KeySet
from otel_token_relay.verification.jws import parse_object
from otel_token_relay.verification.metadata import fresh_seconds, metadata_urls, read_metadata

_logger = logging.getLogger("otel_token_relay")


# How long a request waits for keys that are not known to be there, counted from the start of the
# fetch: longer than a fetch takes, and short enough for a server with a few threads.
PATIENCE_SECONDS: Final = 1.0
# At once; the waiting requests of an event loop hold no threads, but memory.
MAX_WAITING: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTimes:
    """How a source behaves in time; all in seconds.

    Attributes:
        cooldown: Between two fetches for an unknown ``kid``, and after a fetch that failed.
        timeout: For one refresh, discovery included; nobody waits longer, and only where there are
            no keys at all does anybody wait as long.
        max_stale: How long keys are still used after they stopped being fresh, if they cannot
            be refreshed.
    """

    cooldown: float = 10.0
    timeout: float = 4.0
    max_stale: float = 3600.0

    def __post_init__(self) -> None:
        for name in ("cooldown", "timeout", "max_stale"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
                raise ConfigurationError(name, "this must be a number of seconds, 0 or more")
        if self.timeout == 0:
            raise ConfigurationError("timeout", "this must be more than 0")


class _Flight:
    """A fetch that is under way.

    Attributes:
        end: Done when it has come to its end, whatever came of it.
        started: Seconds of the real clock.
        waiting: How many have joined it.
    """

    __slots__ = ("end", "started", "waiting")

    def __init__(self) -> None:
        self.end: Future[None] = Future()
        self.started = time.monotonic()
        self.waiting = 0


class KeySource:
    """The keys of one issuer. Safe to share between threads, tasks and event loops; survives a fork.

    Args:
        issuer: As it stands in ``iss``, exactly.
        algorithms: What `KeySet.parse` may use.
        jwks_uri: Where the keys are; ``None`` to ask the issuer's metadata.
    """

    def __init__(
        self,
        issuer: str,
        algorithms: frozenset[str],
        *,
        jwks_uri: str | None = None,
        times: KeyTimes | None = None,
        monotonic: Clock = time.monotonic,
    ) -> None:
        self.issuer = issuer
        self._algorithms = algorithms
        self._jwks_uri = jwks_uri
        self._times = times or KeyTimes()
        self._monotonic = monotonic
        self._keys: KeySet | None = None
        self._stale_at = self._refresh_at = self._unusable_at = float("-inf")
        self._next_after_failure = self._next_for_unknown = float("-inf")
        self._has_failed = False
        self._discovered: tuple[str, float] | None = None
        self._start_over()
        _sources.add(self)

    def _start_over(self) -> None:
        # Also in a forked child: there the thread of a fetch does not go on, and the lock may
        # have been held by one that is not there any more.
        self._lock = threading.Lock()
        self._flight: _Flight | None = None

    def current(self) -> KeySet | None:
        """Give the keys at hand and never wait; ``None`` where there are none, or too old ones.

        Starts a refresh in the background where it is time for one.
        """
        now = self._monotonic()
        if now >= self._refresh_at:
            if now >= self._unusable_at:
                return None
            if now >= self._next_after_failure:
                self._launch()
        return self._keys

    def wait_for_any(self) -> Wait:
        """Give what to wait for where `current` has nothing.

        Raises:
            KeysUnavailable: The last fetch has just failed, or this one takes too long.
        """
        remaining = self._next_after_failure - self._monotonic()
        if remaining > 0:
            raise KeysUnavailable(remaining)
        return self._join(self._launch(), PATIENCE_SECONDS if self._has_failed else self._times.timeout)

    def wait_for_unknown(self) -> Wait | None:
        """Give what to wait for where a token names a key that is not at hand.

        Returns:
            ``None`` within the cooldown: then the key is taken as not existing.

        Raises:
            KeysUnavailable: A fetch is under way, and takes too long to wait for: that it will
                not bring the key, nobody knows.
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
            # All of them leave with the patience, so nobody has to be counted out.
            flight.waiting += 1
            is_full = flight.waiting > MAX_WAITING
        if not flight.end.done() and (is_full or remaining <= 0):
            raise KeysUnavailable
        return Wait(flight.end, max(remaining, 0.0))

    def unavailable(self) -> KeysUnavailable:
        """Build the error for a caller that has waited in vain."""
        return KeysUnavailable(max(1.0, self._next_after_failure - self._monotonic()))

    def _launch(self) -> _Flight:
        """Start a fetch, or join the one that is under way."""
        with self._lock:
            if self._flight is not None:
                return self._flight
            flight = _Flight()
            self._flight = flight
        try:
            threading.Thread(target=self._run, args=(flight,), name="token-relay-keys", daemon=True).start()
        except RuntimeError:  # no thread can be had: the process is at its limit, or at its end
            self._end(flight, failed=True)
        return flight

    def _run(self, flight: _Flight) -> None:
        failed = True
        try:
            self._refresh()
            failed = False
        except Exception as error:  # noqa: BLE001  # the requests go on with the keys they have
            _logger.warning("the keys of an issuer could not be refreshed: %s", _describe(error))
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

        def ask(url: str) -> Answer:
            return fetch(url, timeout=deadline - time.monotonic())

        answer = ask(self._jwks_uri or self._discover(ask))
        if answer.status != 200:
            raise FetchFailed(f"the key set was answered with {answer.status}")
        document = parse_object(answer.body)
        if not document.get("keys"):
            # An issuer without any key has made a mistake; ours were good until now.
            raise FetchFailed("the key set is empty")
        self._accept(KeySet.parse(document, self._algorithms), fresh_seconds(answer.headers))

    def _accept(self, keys: KeySet, fresh: float) -> None:
        now = self._monotonic()
        if self._keys is None or self._keys.contents != keys.contents:
            # Whoever remembers a verdict with the old object sees that it is another one.
            self._keys = keys
        # Not all instances of a service at the same moment, and well before the end.
        self._refresh_at = now + fresh * random.uniform(0.7, 0.9)  # noqa: S311  # not a secret
        self._unusable_at = now + fresh + self._times.max_stale
        self._next_after_failure = float("-inf")

    def _discover(self, ask: Callable[[str], Answer]) -> str:
        """Give the ``jwks_uri`` of the issuer's metadata, remembered for an hour.

        Source: OpenID Connect Discovery 1.0, section 4; RFC 8414, sections 3 and 3.3.
        """
        if self._discovered is not None and self._monotonic() < self._discovered[1]:
            return self._discovered[0]
        for url in metadata_urls(self.issuer):
            answer = ask(url)
            if answer.status != 200:
                continue
            try:
                jwks_uri = read_metadata(parse_object(answer.body), self.issuer)
            except ValueError:
                continue  # a web application that answers every path with its start page
            if jwks_uri is not None:
                self._discovered = jwks_uri, self._monotonic() + 3600.0
                return jwks_uri
        raise FetchFailed("no metadata of the issuer names where its keys are")


def _describe(error: Exception) -> str:
    # Of an error that is not our own, only the type: its text may quote the answer.
    return str(error) if isinstance(error, FetchFailed) else type(error).__name__


_sources: weakref.WeakSet[KeySource] = weakref.WeakSet()


def _start_over_in_child() -> None:
    for source in list(_sources):
        source._start_over()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_over_in_child)
