"""The same core runs in threads, on asyncio, and on trio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from otel_token_relay.verification.drivers import Wait, drive, drive_async

BACKENDS = ["asyncio", "trio"]
Core = Generator[Wait, None, Any]


def waiting_for(future: Future[str], seconds: float = 60.0, waits: list[Wait] | None = None) -> Core:
    """A core that waits once, and returns the future's result if there is one."""
    wait = Wait(future, seconds)
    if waits is not None:
        waits.append(wait)
    yield wait
    return future.result() if future.done() else "gave up"


def in_thread(core: Core) -> Any:
    return drive(core)


def on_asyncio(core: Core) -> Any:
    return anyio.run(drive_async, core, backend="asyncio")


def on_trio(core: Core) -> Any:
    return anyio.run(drive_async, core, backend="trio")


every_driver = pytest.mark.parametrize("run", [in_thread, on_asyncio, on_trio])
Run = Callable[[Core], Any]


@every_driver
def test_a_core_that_waits_for_nothing_returns_its_result(run: Run) -> None:
    """A core that waits for nothing, or only for finished futures, returns its result."""
    failed: Future[str] = Future()
    failed.set_exception(ValueError("not the driver's to raise"))

    def core(waits: int) -> Core:
        for _ in range(waits):
            yield Wait(failed, 60.0)
        return waits

    assert [run(core(waits)) for waits in (0, 1, 3)] == [0, 1, 3]


@every_driver
def test_a_core_continues_when_its_time_is_over(run: Run) -> None:
    """When its time is over, a core continues without changing the future that other callers wait for."""
    future: Future[str] = Future()

    assert run(waiting_for(future, seconds=0.0)) == "gave up"
    assert run(waiting_for(future, seconds=0.01)) == "gave up"
    assert not future.done()
    assert not future.cancelled()


@every_driver
def test_the_error_of_a_core_reaches_the_caller(run: Run) -> None:
    """A core's error is raised in the caller, even after a wait, and even if the error is a `TimeoutError`."""

    def core(error: Exception, *, waits: bool) -> Core:
        if waits:
            yield Wait(Future(), 0.0)
        raise error

    for error in (KeyError("a"), TimeoutError("of the core")):
        for waits in (False, True):
            with pytest.raises(type(error)) as raised:
                run(core(error, waits=waits))
            assert raised.value is error


def test_a_thread_continues_when_the_future_is_done() -> None:
    """A waiting thread continues when a different thread sets the future's result."""
    future: Future[str] = Future()
    waits: list[Wait] = []
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(drive(waiting_for(future, waits=waits))))
    thread.start()
    future.set_result("done")
    thread.join(60)

    assert found == ["done"]
    assert waits == [(future, 60.0)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_tasks_continue_when_the_future_is_done(backend: str) -> None:
    """All waiting tasks continue when the future is done, and the loop runs other tasks in the meantime."""
    future: Future[str] = Future()
    waits: list[Wait] = []
    found: list[str] = []
    setter = threading.Thread(target=future.set_result, args=("done",))

    async def wait() -> None:
        found.append(await drive_async(waiting_for(future, waits=waits)))

    async def main() -> None:
        # A loop that is not woken up continues only when the wait is over, which is later.
        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(wait)
                while len(waits) < 3:
                    await anyio.lowlevel.checkpoint()
                assert found == []
                setter.start()

    anyio.run(main, backend=backend)
    setter.join(60)

    assert found == ["done"] * 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_task_that_is_canceled_leaves_the_future_alone(backend: str) -> None:
    """A canceled task does not cancel the future, so the other callers get its result."""
    future: Future[str] = Future()
    waits: list[Wait] = []

    async def wait() -> None:
        await drive_async(waiting_for(future, waits=waits))

    async def main() -> str:
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            while not waits:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        assert not future.cancelled()
        future.set_result("done")
        return str(await drive_async(waiting_for(future)))

    assert anyio.run(main, backend=backend) == "done"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_future_outlives_the_loop_that_waited_for_it(backend: str, caplog: pytest.LogCaptureFixture) -> None:
    """Setting the result of a future after its loop ended raises and logs nothing."""
    future: Future[str] = Future()
    assert anyio.run(drive_async, waiting_for(future, seconds=0.01), backend=backend) == "gave up"

    future.set_result("done")
    assert caplog.records == []


def test_asyncio_is_recognized_after_trio_has_run() -> None:
    """asyncio is recognized after trio ran, because a process can use one after the other."""
    assert on_trio(waiting_for(Future(), seconds=0.0)) == "gave up"

    assert asyncio.run(drive_async(waiting_for(Future(), seconds=0.01))) == "gave up"
