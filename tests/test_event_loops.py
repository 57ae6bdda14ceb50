"""Which event loop runs the current code."""

from __future__ import annotations

import asyncio
import sys

import pytest

from otel_token_relay.event_loops import running_loop


async def look() -> str | None:
    return running_loop()


def test_asyncio_and_trio_are_recognized_while_they_run() -> None:
    """Before and after, the same thread may block."""
    trio = pytest.importorskip("trio")
    assert [running_loop(), asyncio.run(look()), trio.run(look), running_loop()] == [None, "asyncio", "trio", None]


def test_a_worker_thread_of_a_loop_may_block() -> None:
    """The loop runs in another thread."""

    async def look_in_a_thread() -> str | None:
        return await asyncio.to_thread(running_loop)

    assert asyncio.run(look_in_a_thread()) is None


def test_neither_library_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that uses neither of them has no loop."""
    monkeypatch.delitem(sys.modules, "trio", raising=False)
    monkeypatch.delitem(sys.modules, "asyncio", raising=False)
    assert running_loop() is None
    assert not {"trio", "asyncio"} & sys.modules.keys()
