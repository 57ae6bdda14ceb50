"""Limit how often rejected tokens are renewed. This module performs no I/O, and the clock is passed in.

A destination may reject every token. The first request whose token is rejected therefore starts a trial: it obtains a
new token and is sent again. Other requests with the rejected token wait for the result and are sent again only if the
new token has been accepted. For 30 seconds, no other trial is started for the same caller's token and destination. A
destination that always responds with 401 therefore receives at most one additional request in that time.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Final

from otel_token_relay.forks import call_in_child
from otel_token_relay.token import Clock
from otel_token_relay.verification.cache import Cache

TRIAL_SECONDS: Final = 30.0
"""The minimum number of seconds between two trials."""
WAIT_SECONDS: Final = 5.0
"""The maximum number of seconds that a request waits for another request's trial."""
_SIZE: Final = 4096


class Trial:
    """A trial of whether a destination accepts a new token.

    Attributes:
        result: Becomes ``True`` when the new token has been accepted, and ``False`` when it has been rejected or the
            request could not be sent.
        has_ended: Whether the new token has since been rejected.
    """

    __slots__ = ("_lock", "has_ended", "result", "started_at")

    def __init__(self, started_at: float) -> None:
        self.started_at: float = started_at
        self.result: Future[bool] = Future()
        self.has_ended: bool = False
        self._lock = threading.RLock()

    def settle(self, is_accepted: bool) -> None:
        """Report the result. Only the first call has an effect."""
        with self._lock:
            if not self.result.done():
                self.result.set_result(is_accepted)

    @property
    def is_accepted(self) -> bool:
        """Whether requests with an older token may be sent again with the new one."""
        return not self.has_ended and self.result.done() and self.result.result()


class Renewals:
    """The trials from the last 30 seconds. Safe to share between threads.

    Args:
        monotonic: A clock in seconds that never goes backward.
        size: The maximum number of trials.
    """

    def __init__(self, monotonic: Clock = time.monotonic, size: int = _SIZE) -> None:
        self._monotonic = monotonic
        self._size = size
        self._start_over()
        call_in_child(self, Renewals._start_over)

    def _start_over(self) -> None:
        self._lock = threading.RLock()
        self._trials: Cache[Trial] = Cache(self._size)

    def join(self, key: bytes) -> tuple[Trial, bool]:
        """Return the trial for a key, and whether this call has started it, so that the calling code must settle it."""
        now = self._monotonic()
        with self._lock:
            trial = self._trials.get(key)
            if trial is not None and now - trial.started_at < TRIAL_SECONDS:
                return trial, False
            trial = Trial(now)
            self._trials.put(key, trial)
            return trial, True
