"""Start programs in separate process groups, and kill all of them at the end, even if this process is killed."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType

from otel_token_relay.demo.lifeline import tie


class StartFailed(Exception):
    """An error that prevents the demo from running. The message can quote the end of a program's log."""


class Signals:
    """A context manager that raises an exception when a termination signal arrives, except while `held` is deferring
    signals.

    ``SIGINT`` raises `KeyboardInterrupt`; the other signals raise `SystemExit`. Only the first signal
    raises an exception, because a second signal must not interrupt the cleanup.
    """

    def __init__(self) -> None:
        self._before: dict[int, object] = {}
        self._is_held = False
        self._received: int | None = None

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # a handler that signal() returned

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received = number
            if not self._is_held:
                self._leave(number)

    @staticmethod
    def _leave(number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    @contextmanager
    def held(self) -> Generator[None, None, None]:
        """Defer signals until the block ends."""
        before = self._received
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if before is None and self._received is not None:
            self._leave(self._received)


class Processes:
    """A context manager that starts programs and kills their process groups when the block ends.

    The process groups are also killed if this process is killed; see `otel_token_relay.demo.lifeline`.

    Args:
        folder: The folder for each program's output files, ``NAME.out`` and ``NAME.err``.
        signals: The `Signals` object, which defers signals while a program is being started. Otherwise, a signal could
            arrive before the program is recorded.
    """

    def __init__(self, folder: Path, signals: Signals) -> None:
        self._folder = folder
        self._signals = signals
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._lifeline, self._our_end = os.pipe()

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._signals.held():
            for process in self._running.values():
                # SIGKILL is safe, because the programs have no data to save.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
            for process in self._running.values():
                process.wait()
            os.close(self._lifeline)
            os.close(self._our_end)

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], listener: socket.socket | None = None
    ) -> None:
        """Start a program.

        Args:
            listener: A socket that the program inherits with the same file descriptor.
        """
        inherited = (self._lifeline,) if listener is None else (self._lifeline, listener.fileno())
        with self.output(name).open("wb") as out, self.log(name).open("wb") as err, self._signals.held():
            self._running[name] = subprocess.Popen(  # noqa: S603  # the commands are fixed
                tie(command, self._lifeline),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                pass_fds=inherited,
                start_new_session=True,
            )

    def wait_until(self, name: str, is_ready: Callable[[], bool], *, seconds: float = 30) -> None:
        """Wait until a program is ready.

        Args:
            is_ready: A callable that returns whether the program is ready.

        Raises:
            StartFailed: The program exited or was not ready in time.
        """
        deadline = time.monotonic() + seconds
        while not is_ready():
            status = self._running[name].poll()
            if status is not None:
                raise StartFailed(f"{name} exited with status {status}.\n{self._end_of_log(name)}")
            if time.monotonic() > deadline:
                raise StartFailed(f"{name} was not ready after {seconds:.0f} s.\n{self._end_of_log(name)}")
            time.sleep(0.03)

    def output(self, name: str) -> Path:
        """Return the path of the file that contains a program's standard output."""
        return self._folder / f"{name}.out"

    def log(self, name: str) -> Path:
        """Return the path of the file that contains a program's standard error."""
        return self._folder / f"{name}.err"

    def _end_of_log(self, name: str) -> str:
        return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-15:])


@contextmanager
def temporary_folder(signals: Signals) -> Generator[Path, None, None]:
    """Create a temporary folder, and remove it when the block ends. Signals do not interrupt these operations.

    Raises:
        StartFailed: The folder cannot be created.
    """
    try:
        with signals.held():
            folder = tempfile.TemporaryDirectory(prefix="otel-token-relay-")
    except OSError as error:
        raise StartFailed(f"The demo cannot create a temporary folder: {error.strerror}.") from None
    try:
        yield Path(folder.name)
    finally:
        with signals.held():
            folder.cleanup()


def keep_standard_streams_open() -> None:
    """Open the null device in place of each closed standard stream.

    If a standard stream stayed closed, the next file or socket that is opened would get the stream's file descriptor. A
    program would then use that file or socket as a standard stream. If standard output is closed, `sys.stdout` is
    ``None``, so this function also replaces `sys.stdout`.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def listen() -> tuple[socket.socket, str]:
    """Listen on a free loopback port, and return the socket and its URL.

    A program can inherit the socket, so no other process can take the port before the program is ready.

    Raises:
        StartFailed: The loopback interface has no usable port.
    """
    try:
        listener = socket.create_server(("127.0.0.1", 0))
        # Test a connection, because binding to a loopback address succeeds even if the interface is down.
        with socket.create_connection(listener.getsockname(), 5), listener.accept()[0]:
            pass
    except OSError as error:
        reason = "no port is free" if error.errno == errno.EADDRINUSE else error.strerror or type(error).__name__
        raise StartFailed(f"The demo cannot listen on 127.0.0.1: {reason}.") from None
    # Accepted connections inherit this option, which uvicorn cannot set on an inherited socket.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}"
