"""Programs that are tied to a parent process end when that process ends for any reason."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from otel_token_relay.demo import lifeline as lifeline_module
from otel_token_relay.demo.lifeline import tie
from tests.support.processes import ROOT

# This program sends its process ID, starts a child that inherits the connection, and waits.
PROGRAM = """
import os, signal, socket, subprocess, sys
connection = socket.socket(fileno=int(sys.argv[1]))
wait = [sys.executable, "-c", "import signal; signal.pause()"]
subprocess.Popen(wait, pass_fds=(connection.fileno(),))
connection.sendall(b"%d" % os.getpid())
signal.pause()
"""


class Tied:
    """A tied program, and the connection that the program and its child keep open.

    Attributes:
        connection: The test's end of the connection, which is closed when the program and its child have ended.
        our_end: The write end of the lifeline.
    """

    def __init__(self, process: subprocess.Popen[Any], connection: socket.socket, our_end: int) -> None:
        self.process = process
        self.connection = connection
        self.our_end = our_end

    def wait_for_end(self) -> None:
        """Wait until the program and its child have ended."""
        self.connection.settimeout(20)
        while self.connection.recv(100):
            pass
        self.process.wait(20)


@contextmanager
def tied(*, is_cut: bool = False) -> Iterator[Tied]:
    """Start a tied program, whose lifeline is already closed if *is_cut* is true."""
    mine, theirs = socket.socketpair()
    lifeline, our_end = os.pipe()
    if is_cut:
        os.close(our_end)
    with mine, theirs:
        process = subprocess.Popen(
            tie([sys.executable, "-c", PROGRAM, str(theirs.fileno())], lifeline),
            pass_fds=(lifeline, theirs.fileno()),
            start_new_session=True,
        )
        os.close(lifeline)
        theirs.close()
        try:
            yield Tied(process, mine, our_end)
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
            with suppress(OSError):
                os.close(our_end)


def test_a_program_and_its_child_end_with_the_lifeline() -> None:
    """A program and its child end when the lifeline is closed."""
    with tied() as one:
        assert int(one.connection.recv(100)) == one.process.pid
        assert one.process.poll() is None

        os.close(one.our_end)

        one.wait_for_end()
        assert one.process.returncode == -signal.SIGKILL


def test_a_program_does_not_outlive_a_parent_that_ended_before_it_started() -> None:
    """A program ends immediately if its parent ended before the program started."""
    with tied(is_cut=True) as one:
        one.wait_for_end()


def fork_to(command: list[str], lifeline: int) -> int:
    """Run the script's function in a child of this process, and return the child's process ID."""
    with warnings.catch_warnings():
        # Forking with threads is deprecated, because the child can wait for a lock. This child only starts a program.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os.setsid()
            sys.argv = [lifeline_module.__file__, str(lifeline), *command]
            lifeline_module.main()
        finally:
            os._exit(1)
    return child


def test_the_program_replaces_the_script_and_the_guard_ends_it() -> None:
    """The program has the process ID of the script, and the guard kills it and its child when the lifeline is
    closed.
    """
    mine, theirs = socket.socketpair()
    lifeline, our_end = os.pipe()
    os.set_inheritable(theirs.fileno(), True)
    with mine, theirs:
        child = fork_to([sys.executable, "-c", PROGRAM, str(theirs.fileno())], lifeline)
        try:
            os.close(lifeline)
            theirs.close()
            mine.settimeout(10)
            assert mine.recv(100) == b"%d" % child

            os.close(our_end)

            assert mine.recv(100) == b""
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        except BaseException:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)
            raise


def test_the_guard_remains_while_a_program_ignores_a_signal() -> None:
    """The guard keeps running while its program ignores a signal, so it can still act if the parent is killed."""
    command = [
        sys.executable,
        "-c",
        "import signal\nsignal.signal(15, signal.SIG_IGN)\nprint(flush=True)\nsignal.pause()",
    ]
    lifeline, our_end = os.pipe()
    process = subprocess.Popen(
        tie(command, lifeline), pass_fds=(lifeline,), stdout=subprocess.PIPE, start_new_session=True
    )
    os.close(lifeline)
    assert process.stdout is not None
    with process.stdout as output:
        output.readline()
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.1)
        assert process.poll() is None

        os.close(our_end)

        assert process.wait(20) == -signal.SIGKILL


def test_the_guard_holds_nothing_of_the_program_open() -> None:
    """The guard does not keep the program's output or its listener open."""
    lifeline, our_end = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = subprocess.Popen(
            tie([sys.executable, "-c", "print('done')"], lifeline),
            pass_fds=(lifeline, listener.fileno()),
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        address = listener.getsockname()
    try:
        assert process.stdout is not None
        assert process.communicate(timeout=20) == (b"done\n", None)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        os.killpg(process.pid, 0)  # the guard is still running
    finally:
        os.close(lifeline)
        os.close(our_end)


RUN = """
import signal, sys
from tests.support.processes import start
start(sys.argv[1:], pass_fds=(int(sys.argv[4]),))
signal.pause()
"""


def test_a_test_run_that_is_killed_leaves_no_server() -> None:
    """If the test process is killed, the servers of its tests end."""
    mine, theirs = socket.socketpair()
    with mine, theirs:
        run = subprocess.Popen(
            [sys.executable, "-c", RUN, sys.executable, "-c", PROGRAM, str(theirs.fileno())],
            cwd=ROOT,
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        mine.settimeout(60)
        server = int(mine.recv(100))
        assert server != run.pid

        run.kill()
        run.wait(20)

        assert mine.recv(100) == b""
