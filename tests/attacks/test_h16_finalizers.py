"""h16: the cleanup of an abandoned async generator never sends the token of another request."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import trio
from opentelemetry import context as otel_context

from otel_token_relay import Settings, current_token, install, uninstall, use_token
from otel_token_relay.context import TOKEN_KEY
from tests.support.carrying import PATIENCE, serve
from tests.support.loopback import Party, party

ALICE = "alice-token-0001"
BOB = "bob-token-0000001"

NewLoop = Callable[[], asyncio.AbstractEventLoop]


def new_uvloop() -> asyncio.AbstractEventLoop:
    loop: asyncio.AbstractEventLoop = pytest.importorskip("uvloop").new_event_loop()
    return loop


LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, new_uvloop], ids=["asyncio", "uvloop"])


def keep_in_cycle(value: object) -> None:
    """Keep *value* alive until the next garbage collection."""
    cycle = [value]
    cycle.append(cycle)


class Abandoned:
    """An async generator that only a reference cycle keeps alive, and whose cleanup calls a listed destination."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.closed = asyncio.Event()
        self.status = 0

    async def pages(self) -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            async with httpx.AsyncClient(trust_env=False) as client:
                self.status = (await client.get(self.url)).status_code
            self.closed.set()

    async def read_one_page(self) -> None:
        generator = self.pages()
        keep_in_cycle(generator)
        await anext(generator)


def run(new_loop: NewLoop, main: Callable[[], Any]) -> None:
    # Start in a new context, because the loop itself must not have a token.
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(asyncio.wait_for(main(), PATIENCE), context=contextvars.Context())


async def abandon(one: Party, collect: Callable[[], None]) -> None:
    """Abandon a generator in Alice's request, and run *collect* while Bob's request is being served."""
    settings = Settings(destinations=[one.url])
    abandoned = Abandoned(one.url)

    async def bob() -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"{one.url}/bob")).status_code == 200
        collect()
        await abandoned.closed.wait()
        token = current_token()
        assert token is not None
        assert token.reveal() == BOB

    gc.disable()
    try:
        await serve(ALICE, settings, abandoned.read_one_page)
        await serve(BOB, settings, bob)
    finally:
        gc.enable()
    assert abandoned.status == 200


def collect() -> None:
    gc.collect()


@LOOPS
def test_the_cleanup_of_an_abandoned_generator_has_no_token(new_loop: NewLoop) -> None:
    """The cleanup of an abandoned generator sends neither Alice's nor Bob's token."""
    with party() as one:
        install(Settings(destinations=[one.url]))
        run(new_loop, lambda: abandon(one, collect))

    assert [(request.target, request.header_lines("authorization")) for request in one.requests] == [
        ("/bob", [f"Bearer {BOB}"]),
        ("/", []),
    ]


@LOOPS
def test_the_same_holds_in_a_loop_that_ran_before_the_installation(new_loop: NewLoop) -> None:
    """The cleanup sends no token even if the relay is installed while the loop is running."""
    with party() as one:

        async def main() -> None:
            install(Settings(destinations=[one.url]))
            await abandon(one, collect)
            uninstall()
            install(Settings(destinations=[one.url]))
            await abandon(one, collect)

        run(new_loop, main)

    assert one.lines() == [[f"Bearer {BOB}"], []] * 2


@LOOPS
def test_a_finalizer_in_another_thread_has_no_token(new_loop: NewLoop) -> None:
    """The cleanup sends no token even if the garbage collector runs in a thread of another request."""
    with party() as one:
        install(Settings(destinations=[one.url]))

        async def main() -> None:
            # Bob's request continues in a thread, where the garbage collector runs.
            loop = asyncio.get_running_loop()
            settings = Settings(destinations=[one.url])
            abandoned = Abandoned(one.url)

            async def bob() -> None:
                await loop.run_in_executor(None, contextvars.copy_context().run, collect)
                await abandoned.closed.wait()

            gc.disable()
            try:
                await serve(ALICE, settings, abandoned.read_one_page)
                await serve(BOB, settings, bob)
            finally:
                gc.enable()

        run(new_loop, main)

    assert one.lines() == [[]]


@LOOPS
def test_uninstall_restores_the_finalizer(new_loop: NewLoop) -> None:
    """Uninstalling restores the original finalizer hook of the loop's class."""
    loop = new_loop()
    kind = next(k for k in type(loop).__mro__ if k.__module__.partition(".")[0] in ("asyncio", "uvloop"))
    loop.close()
    owners = [k for k in type(loop).__mro__ if "_asyncgen_finalizer_hook" in vars(k)]
    before = [vars(owner)["_asyncgen_finalizer_hook"] for owner in owners]
    install(Settings())
    assert kind._asyncgen_finalizer_hook is not before[0]  # type: ignore[attr-defined]
    uninstall()

    assert [k for k in type(loop).__mro__ if "_asyncgen_finalizer_hook" in vars(k)] == owners
    assert [vars(owner)["_asyncgen_finalizer_hook"] for owner in owners] == before


def test_a_finalizer_without_a_request_runs_in_its_own_context() -> None:
    """Outside a request, a finalizer runs in an unchanged context."""
    install(Settings())
    contexts: list[Any] = []

    async def generator() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            contexts.append(TOKEN_KEY in otel_context.get_current())

    async def main() -> None:
        await anext(generator())
        gc.collect()
        while not contexts:
            await asyncio.sleep(0)

    run(asyncio.new_event_loop, main)

    assert contexts == [False]


def test_other_finalizer_hooks_of_a_thread_are_kept() -> None:
    """A finalizer hook that does not belong to an event loop is not replaced."""
    hooks = sys.get_asyncgen_hooks()
    own: list[Any] = []
    sys.set_asyncgen_hooks(finalizer=own.append)
    try:
        install(Settings())
        assert sys.get_asyncgen_hooks().finalizer == own.append
    finally:
        sys.set_asyncgen_hooks(*hooks)


def test_trio_closes_generators_in_a_context_of_its_own() -> None:
    """Trio closes abandoned generators in system tasks, which have no token."""
    install(Settings())
    seen: list[Any] = []

    async def pages() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            seen.append(current_token())

    async def main() -> None:
        with use_token(ALICE):
            generator = pages()
            keep_in_cycle(generator)
            await anext(generator)
            del generator
        with use_token(BOB), pytest.warns(ResourceWarning, match="garbage collected"):
            gc.collect()
        with trio.fail_after(PATIENCE):
            while not seen:
                await trio.sleep(0.002)

    contextvars.Context().run(trio.run, main)

    assert seen == [None]
