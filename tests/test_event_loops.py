"""Whether code runs on an event loop, for each loop."""

from __future__ import annotations

import asyncio
import sys

import pytest

from otel_token_relay.event_loops import is_on_event_loop


async def look() -> bool:
    return is_on_event_loop()


def test_asyncio_and_trio_are_recognized_while_they_run() -> None:
    """Before and after, the same thread may block."""
    trio = pytest.importorskip("trio")
    assert [is_on_event_loop(), asyncio.run(look()), trio.run(look), is_on_event_loop()] == [False, True, True, False]


def test_a_worker_thread_of_a_loop_may_block() -> None:
    """The loop runs in another thread."""

    async def look_in_a_thread() -> bool:
        return await asyncio.to_thread(is_on_event_loop)

    assert not asyncio.run(look_in_a_thread())


def test_neither_library_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that uses neither of them has no loop."""
    monkeypatch.delitem(sys.modules, "trio", raising=False)
    monkeypatch.delitem(sys.modules, "asyncio", raising=False)
    assert not is_on_event_loop()
    assert not {"trio", "asyncio"} & sys.modules.keys()
