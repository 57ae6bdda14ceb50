"""A single thread watches all deadlines and exists only while there are any."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref

import pytest

from otel_token_relay.verification.watchdog import Watchdog, shared
from tests.support.issuers import wait_until

NAME = "token-relay-watchdog"


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


@pytest.fixture
def watchdog() -> Watchdog:
    return Watchdog()


def soon(seconds: float = 0.02) -> float:
    return time.monotonic() + seconds


def test_a_deadline_that_passes_is_reported_once(watchdog: Watchdog) -> None:
    """A deadline that passes is reported once, and then the thread ends."""
    calls: list[str] = []
    with watchdog.watching(soon(), lambda: calls.append("late")):
        wait_until(lambda: bool(calls))
        wait_until(lambda: not watchdog._is_running)
    assert calls == ["late"]


def test_a_block_that_ends_in_time_is_not_reported(watchdog: Watchdog) -> None:
    """A block that ends in time is not reported, its references are released, and the thread ends
    before the deadline.
    """

    class Connection:
        def cut(self) -> None:
            raise AssertionError

    connection = Connection()
    reference = weakref.ref(connection)
    with watchdog.watching(soon(600), connection.cut):
        del connection
    gc.collect()
    assert reference() is None
    wait_until(lambda: not watchdog._is_running, 60)


def test_an_earlier_deadline_wakes_the_thread(watchdog: Watchdog) -> None:
    """A new, earlier deadline wakes the thread, which sleeps until the earliest deadline."""
    calls: list[str] = []
    with watchdog.watching(soon(600), lambda: calls.append("never")):
        wait_until(lambda: watchdog._wakes_at > 0)
        with watchdog.watching(soon(), lambda: calls.append("late")):
            wait_until(lambda: bool(calls))
    assert calls == ["late"]


def test_all_blocks_share_one_thread(watchdog: Watchdog) -> None:
    """All blocks share one thread, even if they start in many threads simultaneously or a call raises an error."""
    calls: list[int] = []
    before = len(threads())

    def late(number: int) -> None:
        calls.append(number)
        raise RuntimeError

    def work(number: int) -> None:
        with watchdog.watching(soon(0.1), lambda: late(number)):
            wait_until(lambda: len(calls) == 20)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for worker in workers:
        worker.start()
    assert len(threads()) <= before + 1
    for worker in workers:
        worker.join()
    assert sorted(calls) == [*range(20)]


def test_a_forked_child_has_a_thread_of_its_own(watchdog: Watchdog) -> None:
    """A forked child starts its own thread, because the parent's thread does not exist there."""
    with watchdog.watching(soon(600), lambda: None):
        child = os.fork()
        if child == 0:
            done = threading.Event()
            with watchdog.watching(soon(), done.set):
                os._exit(0 if done.wait(20) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_without_a_thread_the_block_runs_all_the_same(watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the process cannot start another thread, the block runs unwatched, and the next block tries again."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    calls: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with watchdog.watching(soon(600), lambda: calls.append("never")):
            pass
    with watchdog.watching(soon(), lambda: calls.append("late")):
        wait_until(lambda: bool(calls))


def test_the_process_has_one_shared_watchdog() -> None:
    """All callers share one watchdog, which also calls functions when their deadlines pass."""
    calls: list[str] = []
    with shared().watching(soon(), lambda: calls.append("late")):
        wait_until(lambda: bool(calls))

    assert shared() is shared()
    wait_until(lambda: not shared()._is_running, 60)
