"""Use a single thread to call functions when their deadlines pass.

Almost every watch ends before its deadline. Starting a ``threading.Timer`` for each watch would take longer than the
rest of the request. The thread starts with the first watch and exits after the last watch ends. The thread sleeps until
the earliest deadline, but never for more than a few seconds. A watch that ends early does not wake up the thread.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Generator
from typing import Final

from otel_token_relay.forks import call_in_child

_LONGEST_SLEEP: Final = 5.0


class Watchdog:
    """A thread that enforces deadlines. This class is thread-safe and can be used after a fork."""

    def __init__(self) -> None:
        self._start_over()
        call_in_child(self, Watchdog._start_over)

    def _start_over(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._entries: list[tuple[float, int, list[Callable[[], None] | None]]] = []
        self._numbers = itertools.count()
        self._is_running = False
        self._wakes_at = 0.0
        self._tidy_at = 0.0  # when the entries of ended watches are next removed

    @contextlib.contextmanager
    def watching(self, deadline: float, call: Callable[[], None]) -> Generator[None, None, None]:
        """Call *call* in the watchdog's thread if the ``with`` block has not ended by the monotonic time *deadline*.

        The call might still occur shortly after the ``with`` block has ended.
        """
        held: list[Callable[[], None] | None] = [call]
        with self._changed:
            heapq.heappush(self._entries, (deadline, next(self._numbers), held))
            if not self._is_running:
                self._is_running = True
                thread = threading.Thread(target=self._run, name="token-relay-watchdog", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the process has reached its thread limit or is exiting
                    self._is_running = False
            elif deadline < self._wakes_at:
                self._changed.notify()
        try:
            yield
        finally:
            held[0] = None  # release the callable without waiting for the deadline

    def _run(self) -> None:
        while True:
            due: list[Callable[[], None]] = []
            with self._changed:
                now = time.monotonic()
                while self._entries and self._entries[0][0] <= now:
                    call = heapq.heappop(self._entries)[2][0]
                    if call is not None:
                        due.append(call)
                if not due:
                    if now >= self._tidy_at:
                        self._tidy_at = now + _LONGEST_SLEEP
                        self._entries = [entry for entry in self._entries if entry[2][0] is not None]
                        heapq.heapify(self._entries)
                    if not self._entries:
                        self._is_running = False
                        return
                    self._wakes_at = min(self._entries[0][0], self._tidy_at)
                    self._changed.wait(self._wakes_at - now)
                    self._wakes_at = 0.0
            for call in due:
                with contextlib.suppress(Exception):
                    call()
            del due


@functools.cache
def shared() -> Watchdog:
    """Return this process's watchdog.

    The watchdog is created on first use, because gevent cannot patch existing locks and threads.
    """
    return Watchdog()
