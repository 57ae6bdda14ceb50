"""Real services in their own processes, on ports that the services choose."""

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from otel_token_relay.demo.lifeline import tie

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]

FULL_MATRIX = bool(os.environ.get("FULL_MATRIX"))


def _instrument() -> tuple[str, ...]:
    if FULL_MATRIX:
        return (str(BIN / "opentelemetry-instrument"),)
    spec = find_spec("opentelemetry.instrumentation.auto_instrumentation")
    assert spec is not None
    assert spec.origin is not None
    paths = [str(Path(spec.origin).parent), ".", *filter(None, [os.environ.get("PYTHONPATH")])]
    return ("env", f"PYTHONPATH={os.pathsep.join(paths)}")


# The start of a command that runs a program as ``opentelemetry-instrument`` does. Unless FULL_MATRIX is set, it sets
# the launcher's variable without starting Python for the launcher, which tests/promises/test_zero_code.py runs.
INSTRUMENT = _instrument()
RELAY = {
    "OTEL_PROPAGATORS": "tracecontext,baggage,token_relay",
    **{f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")},
}


def instrumentations(*used: str) -> dict[str, str]:
    """Return the variable that disables the instrumentation of libraries that a program does not use.

    Importing all instrumentation uses most of the processor time of a start. If FULL_MATRIX is set, the variable
    disables nothing.

    Args:
        used: The names of the instrumentation to keep, such as ``"fastapi"``. The instrumentation of threads is
            always kept.
    """
    if FULL_MATRIX:
        return {}
    names = {entry.name for entry in entry_points(group="opentelemetry_instrumentor")}
    unused = names.difference(used, ("threading", "token_relay"))
    return {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join(sorted(unused))}


# Only this process has the write end, so the servers also end when the test run is killed.
_lifeline, _our_end = os.pipe()

_LISTENING = re.compile(r"https?://(?:127\.0\.0\.1|localhost|0\.0\.0\.0):(\d+)")


def unused_port() -> int:
    """Return a free port that is not allocated to a different test.

    The system allocates ports from 32768 upward. A concurrent test's server therefore cannot get this port before
    the program that receives the number.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def start(command: Sequence[str], *, pass_fds: Sequence[int] = (), **options: Any) -> subprocess.Popen[Any]:
    """Start a program in its own process group, which ends when this process ends, even by SIGKILL.

    Args:
        options: Additional arguments for `subprocess.Popen`.
    """
    return subprocess.Popen(tie(command, _lifeline), pass_fds=(_lifeline, *pass_fds), start_new_session=True, **options)


def end(process: subprocess.Popen[Any]) -> None:
    """End a program that `start` started, and all remaining processes in its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


class Service:
    """A process that runs a server.

    Attributes:
        url: Its origin.
        log: The output of the process so far.
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
        """Stop the process and all its workers."""
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(10)
        end(self.process)
        self._reader.join(10)


@contextmanager
def service(*command: str, cwd: Path = ROOT, environ: Mapping[str, str] = {}) -> Iterator[Service]:
    """Run a command that prints its address to stdout or stderr, until the block ends."""
    process = start(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
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
