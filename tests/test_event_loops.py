"""The event loop that runs the current code is recognized."""

from __future__ import annotations

import asyncio
import sys

import pytest

from otel_token_relay.event_loops import running_loop


async def look() -> str | None:
    return running_loop()


def test_asyncio_and_trio_are_recognized_while_they_run() -> None:
    """asyncio and trio are recognized only while they run in the thread."""
    trio = pytest.importorskip("trio")
    assert [running_loop(), asyncio.run(look()), trio.run(look), running_loop()] == [None, "asyncio", "trio", None]


def test_a_worker_thread_of_a_loop_may_block() -> None:
    """A worker thread of an event loop can block, because the loop runs in a different thread."""

    async def look_in_a_thread() -> str | None:
        return await asyncio.to_thread(running_loop)

    assert asyncio.run(look_in_a_thread()) is None


def test_neither_library_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checking for an event loop does not import asyncio or trio."""
    monkeypatch.delitem(sys.modules, "trio", raising=False)
    monkeypatch.delitem(sys.modules, "asyncio", raising=False)
    assert running_loop() is None
    assert not {"trio", "asyncio"} & sys.modules.keys()
