"""P2, one request, one token: all work of a request has the request's token, which ends with the request."""

from __future__ import annotations

import threading
import time

import anyio
import pytest

from otel_token_relay import Settings, carry, install
from tests.support.carrying import (
    ASYNC_WAYS,
    PATIENCE,
    SYNC_WAYS,
    Request,
    Way,
    Work,
    serve,
    stop_workers,
)

ALICE = "alice-token-0001"
BOB = "bob-token-0000001"
NOTHING = "nothing"

pytestmark = pytest.mark.usefixtures("settings")


@pytest.fixture(scope="module", autouse=True)
def workers(echo):
    """Stop the workers while the server is still running."""
    yield
    stop_workers()


def together(way: Way, tokens, settings, echo):
    """Serve several requests at the same time, start their work, and return the token that each work sent."""
    works = [Work(echo) for _ in tokens]
    started = [threading.Event() for _ in tokens]

    def body(work, event):
        way.start(work, carry)
        event.set()
        if work.pump is None:
            work.done.wait(PATIENCE)

    requests = []
    for token, work, event in zip(tokens, works, started, strict=True):
        requests.append(Request(token, settings, lambda work=work, event=event: body(work, event)))
        assert event.wait(PATIENCE)
    for work in reversed(works):
        work.gate.set()
    seen = [work.outcome() for work in works]
    for request in requests:
        request.wait_for_response()
    return seen


def after(way: Way, token, settings, echo, take=carry):
    """Wait for the end of the request, start its work, and return the token that the work sent."""
    work = Work(echo)
    Request(token, settings, lambda: way.start(work, take)).wait_for_response()
    work.gate.set()
    return work.outcome()


def together_async(way: Way, backend, tokens, settings, echo):
    """Do the same as `together`, but in one event loop."""
    works = [Work(echo) for _ in tokens]
    started = [threading.Event() for _ in tokens]

    async def request(token, work, event, group):
        async def body():
            await way.start(work, carry, group)
            event.set()
            await work.outcome_async()

        await serve(token, settings, body)

    async def main():
        async with anyio.create_task_group() as group:
            for token, work, event in zip(tokens, works, started, strict=True):
                group.start_soon(request, token, work, event, group)
                with anyio.fail_after(PATIENCE):
                    while not event.is_set():
                        await anyio.sleep(0.001)
            for work in reversed(works):
                work.gate.set()
            return [await work.outcome_async() for work in works]

    return anyio.run(main, backend=backend)


def after_async(way: Way, backend, token, settings, echo, take=carry):
    """Do the same as `after`, but in one event loop."""
    work = Work(echo)

    async def main():
        async with anyio.create_task_group() as group:
            await serve(token, settings, lambda: way.start(work, take, group))
            work.gate.set()
            return await work.outcome_async()

    return anyio.run(main, backend=backend)


# The table has one row for each synchronous way, and one for each event loop of each asynchronous way.
ROWS = [pytest.param(way, None, id=way.name) for way in SYNC_WAYS] + [
    pytest.param(way, backend, id=f"{way.name}-{backend}") for way in ASYNC_WAYS for backend in way.backends
]

every_way = pytest.mark.parametrize(("way", "backend"), ROWS)


def send_together(way, backend, *arguments):
    return together(way, *arguments) if backend is None else together_async(way, backend, *arguments)


def send_after(way, backend, *arguments, **options):
    return after(way, *arguments, **options) if backend is None else after_async(way, backend, *arguments, **options)


@every_way
def test_work_has_its_requests_token(way, backend, settings, echo):
    """Work that the request waits for has the request's token."""
    assert send_together(way, backend, [ALICE], settings, echo) == [ALICE]


@every_way
def test_work_never_has_another_users_token(way, backend, settings, echo):
    """Work that runs on the same threads for several requests sends only its own request's token."""
    tokens = [ALICE, BOB, ALICE]

    assert send_together(way, backend, tokens, settings, echo) == tokens


@every_way
def test_anonymous_requests_stay_anonymous(way, backend, settings, echo):
    """An anonymous request sends no token, even between or after requests with a token."""
    assert send_together(way, backend, [ALICE, None, BOB], settings, echo) == [ALICE, NOTHING, BOB]
    assert send_together(way, backend, [None], settings, echo) == [NOTHING]


def briefly(work):
    """Carry *work* for zero seconds."""
    return carry(work, seconds=0)


@every_way
def test_no_token_after_the_lease(way, backend, settings, echo):
    """Work sends no token after the lease has ended or the carried time is over."""
    assert send_after(way, backend, ALICE, settings, echo, take=briefly) == NOTHING


@every_way
def test_the_lease_prevents_it(way, backend, settings, echo, monkeypatch):
    """If leases never ended, the same work would send the token."""
    monkeypatch.setattr("otel_token_relay.token.Lease.is_open", True)

    assert send_after(way, backend, ALICE, settings, echo, take=briefly) == ALICE


@pytest.mark.parametrize(("way", "backend"), [row for row in ROWS if row.values[0].is_carried])
def test_carried_work_outlives_the_request(way, backend, settings, echo):
    """Carried work has the token for the given number of seconds, or for `…_MAX_AGE` by default."""

    def take(work):
        return carry(work, seconds=PATIENCE)

    assert send_after(way, backend, ALICE, settings, echo, take=take) == ALICE
    assert send_after(way, backend, ALICE, settings, echo) == ALICE
    assert send_after(way, backend, None, settings, echo) == NOTHING


@every_way
def test_linger_extends_the_lease_of_work_that_outlives_its_request(way, backend, echo):
    """Work that runs within the lingering time after the response still has the token."""
    lingering = Settings(destinations=(echo,), linger=PATIENCE)
    install(lingering)

    assert send_after(way, backend, ALICE, lingering, echo) == ALICE


def test_linger_ends(echo):
    """Work that runs after the lingering time has no token."""
    brief = Settings(destinations=(echo,), linger=0.02)
    install(brief)
    work = Work(echo)
    Request(ALICE, brief, lambda: threading.Thread(target=work, daemon=True).start()).wait_for_response()

    time.sleep(0.03)
    work.gate.set()

    assert work.outcome() == NOTHING
