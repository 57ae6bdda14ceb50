"""Tell an outage of an endpoint from tokens that it fails on. Pure, but for the clock it is given.

Anybody can bring tokens, and may know some that the endpoint answers with an error or by hanging
up. If that counted as an outage, whoever sends them would shut everybody else out. So failures
only raise a doubt: after several in a row the endpoint is asked about a token that we have made up
ourselves, and its answer to that decides.
"""

from __future__ import annotations

import threading
from typing import Final

from otel_token_relay.token import Clock

# So many failures without a single answer in between raise the doubt.
DOUBT_AFTER: Final = 3
# In an outage nobody asks for so long, and then one at a time.
PAUSE_SECONDS: Final = 1.0


class OutageWatch:
    """Who may ask an endpoint, and whether it is out. Safe to share between threads."""

    def __init__(self, monotonic: Clock) -> None:
        self._monotonic = monotonic
        self._failures = 0
        self._is_out = False
        self._resume_at = float("-inf")
        self.start_over()

    def start_over(self) -> None:
        """Forget what was under way: in a forked child it is not there any more."""
        self._lock = threading.Lock()
        self._trial: bytes | None = None
        self._is_probing = False

    def admits(self, key: bytes) -> bool:
        """Whether a question may be asked.

        In an outage, one at a time is the trial: it has to `answer`, to `fail`, or to be taken back
        by `withdraw`. Until then no other one is admitted.
        """
        with self._lock:
            if not self._is_out:
                return True
            if self._trial is not None or self._is_probing or self._monotonic() < self._resume_at:
                return False
            self._trial = key
            return True

    def still_admits(self, key: bytes) -> bool:
        """Whether a question that was admitted is still worth asking, after it stood in line."""
        with self._lock:
            return not self._is_out or key == self._trial

    def withdraw(self, key: bytes) -> None:
        """Take back a question that was admitted and then not asked: that says nothing about the endpoint."""
        with self._lock:
            if key == self._trial:
                self._trial = None

    def answer(self) -> None:
        """Note an answer, whatever it says: the endpoint is not out."""
        with self._lock:
            self._failures = 0
            self._is_out = False
            self._trial = None

    def fail(self, key: bytes) -> bool:
        """Note a failure that may be one of the endpoint.

        Returns:
            Whether the caller has to probe it now, and then to call `conclude`.
        """
        with self._lock:
            self._failures += 1
            was_trial = key == self._trial
            if was_trial:
                self._trial = None
            if self._is_probing or not (was_trial if self._is_out else self._failures >= DOUBT_AFTER):
                return False
            self._is_probing = True
            return True

    def conclude(self, is_out: bool) -> None:
        """Take in what the probe has found."""
        with self._lock:
            self._is_probing = False
            self._failures = 0
            self._is_out = is_out
            if is_out:
                self._resume_at = self._monotonic() + PAUSE_SECONDS
