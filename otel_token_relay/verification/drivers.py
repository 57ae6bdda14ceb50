"""Run the same generator in threads and on event loops.

Code that might wait is implemented only once, as a generator (the "core"). The core yields a `Wait` each time it must
wait. `drive` runs the core in a thread, and `drive_async` runs the core in an asyncio or trio task.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Generator
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from otel_token_relay.event_loops import running_loop

_Result = TypeVar("_Result")


class Wait(NamedTuple):
    """A future and the maximum number of seconds to wait for it."""

    future: Future[Any]
    seconds: float


def drive(core: Generator[Wait, None, _Result]) -> _Result:
    """Run *core* in the current thread, which is blocked while *core* is waiting."""
    try:
        while True:
            wait = next(core)
            # `concurrent.futures.wait` has the same effect but takes twice as long.
            with contextlib.suppress(concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
                wait.future.exception(wait.seconds)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


async def drive_async(core: Generator[Wait, None, _Result]) -> _Result:
    """Run *core* in the current task. If the task is canceled, the work continues for other waiting callers."""
    try:
        while True:
            wait = next(core)
            if not wait.future.done():
                await (_wait_trio(wait) if running_loop() == "trio" else _wait_asyncio(wait))
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


async def _wait_asyncio(wait: Wait) -> None:
    # A timeout or the cancellation of this task does not cancel the future.
    await asyncio.wait([asyncio.wrap_future(wait.future)], timeout=wait.seconds)


async def _wait_trio(wait: Wait) -> None:
    import trio  # trio has already been imported, because its event loop is running

    token = trio.lowlevel.current_trio_token()
    done = trio.Event()

    def wake(_: Future[Any]) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(done.set)

    wait.future.add_done_callback(wake)
    with trio.move_on_after(wait.seconds):
        await done.wait()
