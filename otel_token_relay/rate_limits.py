"""Limit the number of warnings and spans that requests can cause."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

# Custom authenticators can use any number of reasons as keys. Keys beyond this maximum share a single limit.
_MAX_KEYS: Final = 64


class _Window:
    __slots__ = ("admitted", "opened_at", "skipped")

    def __init__(self, opened_at: float) -> None:
        self.opened_at = opened_at
        self.admitted = 1
        self.skipped = 0


class RateLimit:
    """A limit on the number of events for each key in each period. A key's period starts with its first event.

    Instances are thread-safe. For speed, events are counted without a lock, so simultaneous events from multiple
    threads might occasionally exceed the limit.

    Args:
        limit: The maximum number of events for each key in each period.
        seconds: The length of the period, in seconds.
        clock: A function that returns the time on a monotonic clock, in seconds.
    """

    def __init__(self, limit: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._seconds = seconds
        self._clock = clock
        self._windows: dict[str, _Window] = {}

    def admit(self, key: str) -> int | None:
        """Return the number of events skipped since the last admitted event, or ``None`` if this event must be
        skipped.
        """
        windows = self._windows
        if key not in windows and len(windows) >= _MAX_KEYS:
            key = ""
        window, now = windows.get(key), self._clock()
        if window is None or now - window.opened_at >= self._seconds:
            windows[key] = _Window(now)
            return 0 if window is None else window.skipped
        if window.admitted < self._limit:
            window.admitted += 1
            return 0
        window.skipped += 1
        return None
