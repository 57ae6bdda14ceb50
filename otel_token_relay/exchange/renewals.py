"""Limit how often rejected tokens are renewed. This module performs no I/O and does not read the system clock directly.

When a destination rejects a token, the first affected request starts a trial. The relay obtains a new token for that
request and sends the request again. Other requests with the rejected token wait for the trial's result and are sent
again only if the destination accepts the new token.

At most one trial starts every 30 seconds for each combination of a caller's token and a destination. Therefore, a
destination that rejects every token receives at most one additional request every 30 seconds for each caller's token.
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
"""The minimum number of seconds between two trials for the same caller's token and destination."""
WAIT_SECONDS: Final = 5.0
"""The maximum number of seconds that a request waits for another request's trial."""
_SIZE: Final = 4096


class Trial:
    """An attempt to use a new token after a destination has rejected a token.

    Attributes:
        result: A future whose result is ``True`` if the destination accepted the new token, and ``False`` if the
            destination rejected it or the request could not be sent.
        has_ended: Whether the destination has rejected the new token after accepting it.
    """

    __slots__ = ("_lock", "has_ended", "result", "started_at")

    def __init__(self, started_at: float) -> None:
        self.started_at: float = started_at
        self.result: Future[bool] = Future()
        self.has_ended: bool = False
        self._lock = threading.RLock()

    def settle(self, is_accepted: bool) -> None:
        """Set the trial's result. Only the first call has an effect."""
        with self._lock:
            if not self.result.done():
                self.result.set_result(is_accepted)

    @property
    def is_accepted(self) -> bool:
        """Whether requests with an older token can be sent again with the new token."""
        return not self.has_ended and self.result.done() and self.result.result()


class Renewals:
    """A collection of recent trials. This class is thread-safe.

    Args:
        monotonic: A monotonic clock that returns the time in seconds.
        size: The maximum number of trials in the collection.
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
        """Return the trial for a key, and whether this call started it.

        The calling code must settle every trial that it starts.
        """
        now = self._monotonic()
        with self._lock:
            trial = self._trials.get(key)
            if trial is not None and now - trial.started_at < TRIAL_SECONDS:
                return trial, False
            trial = Trial(now)
            self._trials.put(key, trial)
            return trial, True
