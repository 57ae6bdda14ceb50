"""Clocks that a test sets."""

from __future__ import annotations

import time


class ShiftedClock:
    """The machine's clocks, which a test sets forward by ``ahead`` seconds."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def now(self) -> float:
        return time.time() + self.ahead

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


class StoppedClock:
    """A monotonic clock that only a test moves, by setting ``seconds``."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds
