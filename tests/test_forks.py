"""The registered methods of objects that still exist are called in each forked child."""

from __future__ import annotations

import gc
import os
import threading
import warnings
from collections.abc import Callable

import pytest

from otel_token_relay.forks import _methods, call_in_child

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


class Shared:
    """An object with a lock that a child must replace."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pids: list[int] = []

    def renew(self) -> None:
        self.lock = threading.Lock()
        self.pids.append(os.getpid())

    def note(self) -> None:
        self.pids.append(-os.getpid())


def in_child(work: Callable[[], bool]) -> bool:
    """Return whether *work* returned ``True`` in a forked child."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the warning about forking a process with threads
        child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() is True else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_method_is_called_once_in_the_child_and_never_in_the_parent() -> None:
    """The method runs once in the child and never in the parent, and replaces a lock that was held during the fork."""
    shared = Shared()
    call_in_child(shared, Shared.renew)

    with shared.lock:
        assert in_child(lambda: shared.pids == [os.getpid()] and shared.lock.acquire(blocking=False))

    assert shared.pids == []


def test_a_child_of_a_child_is_a_child_too() -> None:
    """A child's own child, as in a daemon that forks twice, is also treated as a forked child."""
    shared = Shared()
    call_in_child(shared, Shared.renew)

    assert in_child(lambda: in_child(lambda: shared.pids == [os.getppid(), os.getpid()]))


def test_each_object_has_one_method() -> None:
    """Each object has one registered method, the last one, and the methods of all objects are called."""
    first, second = Shared(), Shared()
    call_in_child(first, Shared.renew)
    call_in_child(second, Shared.renew)
    call_in_child(first, Shared.note)

    assert in_child(lambda: first.pids == [-os.getpid()] and second.pids == [os.getpid()])


def test_an_object_is_not_kept_alive() -> None:
    """Registering an object does not keep it alive, because tests and new settings replace verifiers and relays."""
    gc.collect()
    before = len(_methods)
    shared = Shared()
    call_in_child(shared, Shared.renew)
    assert len(_methods) == before + 1

    del shared
    gc.collect()

    assert len(_methods) <= before


def test_a_method_may_register_further_objects() -> None:
    """A method can register additional objects, so the child can replace an object."""
    shared, later = Shared(), Shared()
    call_in_child(shared, lambda owner: (owner.renew(), call_in_child(later, Shared.renew))[0])

    assert in_child(lambda: shared.pids == [os.getpid()] and later in _methods)
    assert later not in _methods
