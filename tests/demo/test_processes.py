"""The demo's processes are started, monitored, and ended."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from otel_token_relay.demo.processes import (
    Processes,
    Signals,
    StartFailed,
    keep_standard_streams_open,
    listen,
    temporary_folder,
)


def test_signal_is_postponed_while_held():
    """A signal that arrives in a held block takes effect at the end of the block."""
    reached = []

    def start_something():
        with Signals() as signals, signals.held():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("the end of the block")

    with pytest.raises(KeyboardInterrupt):
        start_something()

    assert reached == ["the end of the block"]


def test_second_signal_does_not_interrupt_the_cleanup():
    """Only the first signal raises an exception, so a second signal does not interrupt the cleanup."""
    before = signal.getsignal(signal.SIGTERM)

    def end_twice():
        with Signals():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as ended:
        end_twice()

    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_signals_on_another_thread_are_left_alone() -> None:
    """Outside the main thread, no signal handler is changed."""
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def enter() -> None:
        with Signals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()

    assert seen == [before]


# This program starts a child that inherits the test's connection.
PARENT = """
import os, subprocess, sys
print(os.environ["NAME"], flush=True)
print("a line of the log", file=sys.stderr, flush=True)
fd = int(sys.argv[1])
subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], pass_fds=(fd,)).wait()
"""


def test_programs_and_their_children_are_ended(tmp_path: Path) -> None:
    """When the demo ends, each program ends together with all of its child processes."""
    mine, theirs = socket.socketpair()
    with mine, Signals() as signals:
        with Processes(tmp_path, signals) as processes:
            command = [sys.executable, "-c", PARENT, str(theirs.fileno())]
            processes.start("one", command, os.environ | {"NAME": "a name"}, theirs)
            theirs.close()
            processes.wait_until("one", lambda: processes.output("one").read_text() == "a name\n")
            processes.wait_until("one", lambda: processes.log("one").read_text() == "a line of the log\n")

        mine.settimeout(20)
        # The connection is closed when the last process that inherited it ends.
        assert mine.recv(1) == b""


def test_a_program_that_ends_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    """If a program ends, the error contains its name, its status, and the end of its log."""
    code = "import sys; sys.stderr.buffer.write(b'first\\n' * 50 + b'last \\xff\\n'); sys.exit(3)"
    with Signals() as signals, Processes(tmp_path, signals) as processes:
        processes.start("one", [sys.executable, "-c", code], os.environ)
        with pytest.raises(StartFailed) as failed:
            processes.wait_until("one", lambda: False)

    message = str(failed.value)
    assert message.startswith("one exited with status 3.\n")
    assert message.endswith("last \ufffd")
    assert message.count("first") == 14


def test_a_program_that_is_not_ready_in_time_is_reported(tmp_path: Path) -> None:
    """A program that does not become ready in time is reported."""
    with Signals() as signals, Processes(tmp_path, signals) as processes:
        processes.start("one", [sys.executable, "-c", "import signal; signal.pause()"], os.environ)
        with pytest.raises(StartFailed, match="one was not ready after 0 s"):
            processes.wait_until("one", lambda: False, seconds=0)


def test_the_listener_is_on_loopback_at_the_port_of_its_url() -> None:
    """The listener accepts connections on loopback before the program is ready."""
    listener, url = listen()
    with listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1"
        assert url == f"http://127.0.0.1:{port}"
        with socket.create_connection((host, port)), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_temporary_folder_exists_until_the_block_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder exists while the block runs and is removed with its content, also after a signal."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[Path] = []

    def work(*, is_interrupted: bool) -> None:
        with Signals() as signals, temporary_folder(signals) as folder:
            seen.append(folder)
            (folder / "user-service.out").write_text("a line")
            if is_interrupted:
                os.kill(os.getpid(), signal.SIGINT)

    work(is_interrupted=False)
    with pytest.raises(KeyboardInterrupt):
        work(is_interrupted=True)

    assert [folder.parent for folder in seen] == [tmp_path] * 2
    assert seen[0] != seen[1]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error contains the reason from the operating system but no path."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(StartFailed) as failed, Signals() as signals, temporary_folder(signals):
        pytest.fail("the folder was created")

    assert str(failed.value) == "The demo cannot create a temporary folder: No such file or directory."


def test_closed_standard_streams_are_replaced_by_the_null_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed standard streams are opened again so that no file or socket gets their file descriptors, and programs
    inherit them.
    """
    kept = [os.dup(number) for number in range(3)]
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    try:
        for number in range(3):
            os.close(number)
        keep_standard_streams_open()
        null = os.stat(os.devnull)
        replaced = [(os.fstat(number).st_rdev, os.get_inheritable(number)) for number in range(3)]
        print("a line", file=sys.stdout)  # noqa: T201  # the program's own output
        print("a line", file=sys.stderr)  # noqa: T201
    finally:
        for number, original in enumerate(kept):
            os.dup2(original, number)
            os.close(original)

    assert replaced == [(null.st_rdev, True)] * 3
    for stream in (sys.stdout, sys.stderr):
        assert stream.name == os.devnull
        stream.close()


def test_open_standard_streams_are_left_alone() -> None:
    """Standard streams that are open are not replaced."""
    before = sys.stdout, sys.stderr, [os.fstat(number) for number in range(3)]
    keep_standard_streams_open()

    assert (sys.stdout, sys.stderr, [os.fstat(number) for number in range(3)]) == before
