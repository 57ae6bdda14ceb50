"""The demo's processes are started, monitored, and ended."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest

from otel_token_relay.demo.processes import Processes, Signals, StartFailed, listen


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
