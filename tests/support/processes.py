"""Real services in their own processes, on ports that they choose."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]

INSTRUMENT = (str(BIN / "opentelemetry-instrument"),)
RELAY = {
    "OTEL_PROPAGATORS": "tracecontext,baggage,token_relay",
    **{f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")},
}

_LISTENING = re.compile(r"https?://(?:127\.0\.0\.1|localhost|0\.0\.0\.0):(\d+)")


def unused_port() -> int:
    """Return a free port that no other test is given.

    The system gives out ports from 32768 on, so that a server of a test that runs meanwhile cannot get this one
    before the program that is told its number.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Service:
    """A process that serves.

    Attributes:
        url: Its origin.
        log: Its output so far.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log = ""
        self._port: int | None = None
        self._has_answered = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log += line
            if self._port is None and (found := _LISTENING.search(line)) and found[1] != "0":
                self._port = int(found[1])
                self._has_answered.set()
        self._has_answered.set()

    @property
    def url(self) -> str:
        """Wait until the service listens, and return its origin."""
        if not self._has_answered.wait(60) or self._port is None:
            raise AssertionError(f"the service does not listen:\n{self.log}")
        return f"http://127.0.0.1:{self._port}"

    def stop(self) -> None:
        """Stop the process and all of its workers."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, sign)
                self.process.wait(10)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
            break
        self._reader.join(10)


@contextmanager
def service(*command: str, cwd: Path = ROOT, environ: Mapping[str, str] = {}) -> Iterator[Service]:
    """Run a command that prints its address to stdout or stderr, until the block ends."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    running = Service(process)
    try:
        yield running
    finally:
        running.stop()
        assert process.stdout is not None
        process.stdout.close()


def uvicorn(app: str, *options: str) -> tuple[str, ...]:
    """Return the command that serves an ASGI application on a free port."""
    return (str(BIN / "uvicorn"), app, "--host", "127.0.0.1", "--port", "0", *options)
