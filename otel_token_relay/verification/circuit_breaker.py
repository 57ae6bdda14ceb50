"""A circuit breaker that distinguishes a failing endpoint from tokens that cause requests to fail.

A caller can send any token, and an attacker might have tokens that cause the endpoint to return an error or close the
connection. If such failures could open the circuit, the attacker could lock out all other callers. For this reason,
failures alone never open the circuit. After several consecutive failures, the object that owns the circuit breaker
probes the endpoint with a random token. The circuit opens only if the probe also fails.

* Closed: every call is allowed.
* Open: no calls are allowed for `OPEN_SECONDS`.
* Half-open: one call at a time is allowed. The circuit closes after a successful call or probe and reopens after a
  failed probe.
"""

from __future__ import annotations

import threading
from typing import Final

from otel_token_relay.token import Clock

# The number of consecutive failures after which the endpoint is probed.
FAILURES_BEFORE_PROBE: Final = 3
OPEN_SECONDS: Final = 1.0


class CircuitBreaker:
    """A circuit breaker for one endpoint. This class is thread-safe.

    Args:
        monotonic: A callable that returns the value, in seconds, of a monotonic clock.
    """

    def __init__(self, monotonic: Clock) -> None:
        self._monotonic = monotonic
        self._failures = 0
        self._is_open = False
        self._half_open_at = float("-inf")
        self.start_over()

    def start_over(self) -> None:
        """Discard the records of calls in progress. In a forked child, the threads that made these calls do not
        exist."""
        self._lock = threading.RLock()
        self._half_open_call: bytes | None = None
        self._is_probing = False

    def allows(self, key: bytes) -> bool:
        """Return whether a call is allowed.

        If a call is allowed in the half-open state, the caller must report the outcome with `record_success`,
        `record_failure`, or `cancel`. No other calls are allowed until the caller reports the outcome.
        """
        with self._lock:
            if not self._is_open:
                return True
            if self._half_open_call is not None or self._is_probing or self._monotonic() < self._half_open_at:
                return False
            self._half_open_call = key
            return True

    def still_allows(self, key: bytes) -> bool:
        """Return whether a call that has waited for a worker is still allowed."""
        with self._lock:
            return not self._is_open or key == self._half_open_call

    def cancel(self, key: bytes) -> None:
        """Record that an allowed call was not made."""
        with self._lock:
            if key == self._half_open_call:
                self._half_open_call = None

    def record_success(self) -> None:
        """Close the circuit after any response, even if the token is invalid."""
        with self._lock:
            self._failures = 0
            self._is_open = False
            self._half_open_call = None

    def record_failure(self, key: bytes) -> bool:
        """Record a failure that might have been caused by either the endpoint or the token.

        Returns:
            Whether the caller must probe the endpoint and call `end_probe` afterward.
        """
        with self._lock:
            self._failures += 1
            was_half_open_call = key == self._half_open_call
            if was_half_open_call:
                self._half_open_call = None
            needs_probe = was_half_open_call if self._is_open else self._failures >= FAILURES_BEFORE_PROBE
            if self._is_probing or not needs_probe:
                return False
            self._is_probing = True
            return True

    def end_probe(self, *, succeeded: bool) -> None:
        """Close the circuit if the probe succeeded; otherwise, open the circuit."""
        with self._lock:
            self._is_probing = False
            self._failures = 0
            self._is_open = not succeeded
            if not succeeded:
                self._half_open_at = self._monotonic() + OPEN_SECONDS
