"""A circuit breaker that distinguishes a failing endpoint from tokens that make the endpoint fail. No I/O.

Callers can send any token, and an attacker may know tokens that make the endpoint return an error or close the
connection. If such failures could open the circuit, the attacker could lock out all other callers. Failures alone
therefore never open the circuit: after several consecutive failures, the breaker's owner probes the endpoint with a
random token, and the circuit opens only if the probe fails too.

* Closed: every call is allowed.
* Open: no call is allowed for `OPEN_SECONDS`.
* Half-open: one call at a time is allowed, until a call or a probe succeeds.
"""

from __future__ import annotations

import threading
from typing import Final

from otel_token_relay.token import Clock

# The number of consecutive failures after which the endpoint is probed.
FAILURES_BEFORE_PROBE: Final = 3
OPEN_SECONDS: Final = 1.0


class CircuitBreaker:
    """Decide which calls may reach an endpoint. Safe to share between threads.

    Args:
        monotonic: A clock that returns seconds and never goes backward.
    """

    def __init__(self, monotonic: Clock) -> None:
        self._monotonic = monotonic
        self._failures = 0
        self._is_open = False
        self._half_open_at = float("-inf")
        self.start_over()

    def start_over(self) -> None:
        """Forget all running calls, because their threads do not exist in a forked child."""
        self._lock = threading.RLock()
        self._half_open_call: bytes | None = None
        self._is_probing = False

    def allows(self, key: bytes) -> bool:
        """Return whether a call may start.

        In the half-open state, the caller must then call `record_success`, `record_failure`, or `cancel`. Until then,
        no other call is allowed.
        """
        with self._lock:
            if not self._is_open:
                return True
            if self._half_open_call is not None or self._is_probing or self._monotonic() < self._half_open_at:
                return False
            self._half_open_call = key
            return True

    def still_allows(self, key: bytes) -> bool:
        """Return whether an allowed call should still be made after it has waited for a worker."""
        with self._lock:
            return not self._is_open or key == self._half_open_call

    def cancel(self, key: bytes) -> None:
        """Record that an allowed call was not made and therefore revealed nothing about the endpoint."""
        with self._lock:
            if key == self._half_open_call:
                self._half_open_call = None

    def record_success(self) -> None:
        """Close the circuit after any response, regardless of whether the token was valid."""
        with self._lock:
            self._failures = 0
            self._is_open = False
            self._half_open_call = None

    def record_failure(self, key: bytes) -> bool:
        """Record a failure that either the endpoint or the token may have caused.

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
        """Close the circuit if the probe succeeded; otherwise, open it."""
        with self._lock:
            self._is_probing = False
            self._failures = 0
            self._is_open = not succeeded
            if not succeeded:
                self._half_open_at = self._monotonic() + OPEN_SECONDS
