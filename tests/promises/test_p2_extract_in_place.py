"""P2: inside a server boundary, `extract` handles carriers other than the request itself.

Work that the request runs in place keeps the caller's token, regardless of what its instrumentation extracts. Work that
the request only starts, and that handles other messages, has each message's token, or none.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator

import pytest
from celery import Celery, signals
from celery.contrib.testing.worker import start_worker
from opentelemetry import context as otel_context
from opentelemetry import propagate
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from otel_token_relay import Settings, current_token, install

ALICE, BOB = "token-of-alice", "token-of-bob"
NOTHING: dict[str, str] = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
OF_BOB = {"authorization": f"Bearer {BOB}"}


def seen() -> str | None:
    token = current_token()
    return token and token.reveal()


def handle(carrier: dict[str, str]) -> str | None:
    """Extract a message's context, as a consumer's instrumentation does, and return the token that the handler has."""
    attached = otel_context.attach(propagate.extract(carrier))
    try:
        return seen()
    finally:
        otel_context.detach(attached)


def serve(work: Callable[[], Awaitable[None]]) -> None:
    """Serve a request from Alice that runs *work*."""

    async def endpoint(request: object) -> PlainTextResponse:
        await work()
        return PlainTextResponse("done")

    app = Starlette(routes=[Route("/", endpoint)])
    assert TestClient(app).get("/", headers={"authorization": f"Bearer {ALICE}"}).text == "done"


@pytest.fixture(autouse=True)
def installed() -> None:
    install(Settings())


@pytest.fixture
def celery() -> Iterator[Celery]:
    """Return an instrumented application on Celery's in-memory broker."""

    def leave_logging_alone(**_: object) -> None: ...

    app = Celery("test", broker="memory://", backend="cache+memory://")
    signals.setup_logging.connect(leave_logging_alone)
    CeleryInstrumentor().instrument(tracer_provider=TracerProvider())
    try:
        yield app
    finally:
        CeleryInstrumentor().uninstrument()
        signals.setup_logging.disconnect(leave_logging_alone)
        app.close()


@pytest.mark.parametrize(("carrier", "expected"), [(NOTHING, ALICE), (OF_BOB, BOB)], ids=["no token", "its own token"])
def test_work_in_place_keeps_the_callers_token_unless_it_brings_its_own(carrier: dict[str, str], expected: str) -> None:
    """Work in the request's own task has the caller's token, unless its message has a different token."""
    found: list[str | None] = []

    async def work() -> None:
        found.append(handle(carrier))

    serve(work)
    assert found == [expected]


def test_credentials_that_are_invalid_hide_the_callers_token() -> None:
    """A message with invalid credentials does not get the caller's token."""
    found: list[str | None] = []

    async def work() -> None:
        found.append(handle({"authorization": "Bearer not a token"}))

    serve(work)
    assert found == [None]


def test_a_celery_task_that_runs_in_place_has_the_callers_token(celery: Celery) -> None:
    """A Celery task that runs in place has the caller's token, although its own headers contain only the trace."""
    found: list[str | None] = []

    @celery.task
    def report() -> None:
        found.append(seen())

    async def work() -> None:
        report.apply()

    serve(work)
    assert found == [ALICE]


def test_a_celery_worker_that_a_request_starts_has_no_token(celery: Celery) -> None:
    """A Celery worker that a request starts has no token, because the worker runs the tasks of all callers."""
    found: list[str | None] = []

    @celery.task(name="in-a-worker")
    def report() -> None:
        found.append(seen())

    async def work() -> None:
        with start_worker(celery, pool="solo", perform_ping_check=False, loglevel="CRITICAL"):
            await asyncio.to_thread(report.delay().get, timeout=10)

    serve(work)
    assert found
    assert set(found) == {None}


@pytest.mark.parametrize(("carrier", "expected"), [(NOTHING, None), (OF_BOB, BOB)], ids=["no token", "its own token"])
def test_a_consumer_task_that_a_request_starts_has_each_messages_token(
    carrier: dict[str, str], expected: str | None
) -> None:
    """A consumer task that a running request starts has each message's token, or none."""
    found: list[str | None] = []

    async def consume() -> None:
        found.append(seen())
        found.append(handle(carrier))

    async def work() -> None:
        await asyncio.create_task(consume())

    serve(work)
    assert found == [ALICE, expected]


@pytest.mark.parametrize(("carrier", "expected"), [(NOTHING, None), (OF_BOB, BOB)], ids=["no token", "its own token"])
def test_a_consumer_thread_that_a_request_starts_has_each_messages_token(
    carrier: dict[str, str], expected: str | None
) -> None:
    """A consumer thread has each message's token, or none, even if the thread runs in the request's context."""
    found: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    async def work() -> None:
        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: found.put(context.run(handle, carrier)))
        thread.start()
        await asyncio.to_thread(thread.join)

    serve(work)
    assert found.get_nowait() == expected


def test_an_event_loop_callback_has_no_token_of_its_own() -> None:
    """An event loop callback has no token, although it runs in the request's context."""
    found: list[str | None] = []

    async def work() -> None:
        done = asyncio.Event()

        def callback() -> None:
            found.append(handle(NOTHING))
            done.set()

        asyncio.get_running_loop().call_soon(callback)
        await done.wait()

    serve(work)
    assert found == [None]


def test_a_warm_serverless_handler_has_each_events_token() -> None:
    """A serverless handler that is reused without a boundary has each event's token, or none."""
    assert [handle(OF_BOB), handle(NOTHING), handle({"Authorization": f"Bearer {ALICE}"}), handle(NOTHING)] == [
        BOB,
        None,
        ALICE,
        None,
    ]


def test_after_the_request_nothing_is_kept() -> None:
    """A context that is kept after the request has ended contains no token."""
    kept: list[contextvars.Context] = []

    async def work() -> None:
        kept.append(contextvars.copy_context())

    serve(work)
    assert kept[0].run(handle, NOTHING) is None
    assert kept[0].run(handle, OF_BOB) == BOB
