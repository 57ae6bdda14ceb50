"""P2, one request, one token: work that outlives its request, or that is shared, has no user's token.

Each case runs twice: unchanged, and with the rule that prevents the leak disabled. Without the rule, the token is sent,
usually on behalf of a different user.
"""

from __future__ import annotations

import asyncio
import base64
import contextvars
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import thread as futures_thread
from dataclasses import dataclass
from pathlib import Path

import pytest
from apscheduler.events import EVENT_JOB_REMOVED
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.base import BaseScheduler
from opentelemetry import context as otel_context
from opentelemetry import propagate

from otel_token_relay import Settings, install
from tests.support import forks
from tests.support.carrying import PATIENCE, Request, Work, send, serve

ALICE = forks.ALICE
BOB = "bob-token-0000001"
NOTHING = "nothing"

pytestmark = pytest.mark.usefixtures("settings")


def request(token, settings, body):
    """Serve one request in a separate thread, and wait for its response."""
    Request(token, settings, body).wait_for_response()


def worker_thread(echo, settings):
    """Start a worker in Alice's request, and give it a job in Bob's request."""
    jobs = queue.Queue()

    def work():
        while (job := jobs.get()) is not None:
            job()

    worker = threading.Thread(target=work, daemon=True)
    job = Work(echo)
    job.gate.set()
    request(ALICE, settings, worker.start)
    request(BOB, settings, lambda: jobs.put(job))
    seen = job.outcome()
    jobs.put(None)
    worker.join()
    return seen


def asyncio_consumer(echo, settings):
    """Start a consumer task in Alice's request, and give it a job in Bob's request, in the same event loop."""

    async def main():
        jobs = asyncio.Queue()
        tasks = []

        async def consume():
            job = await jobs.get()
            return job()

        async def start():
            tasks.append(asyncio.create_task(consume()))

        await serve(ALICE, settings, start)
        await serve(BOB, settings, lambda: jobs.put(lambda: send(echo)))
        return await tasks[0]

    return asyncio.run(main())


def initializer(echo, settings):
    """Submit an executor's first job, which runs the initializer, while Alice's request is still running."""
    seen = []

    def body():
        with ThreadPoolExecutor(1, initializer=lambda: seen.append(send(echo))) as pool:
            pool.submit(int).result()

    request(ALICE, settings, body)
    return seen[0]


def done_callback(echo, settings):
    """Run Bob's callback on the worker that Alice's request, which is still running, has started."""
    seen = []

    def bob(pool):
        released = threading.Event()
        future = pool.submit(released.wait, PATIENCE)
        future.add_done_callback(lambda _: seen.append(send(echo)))
        released.set()

    def alice():
        with ThreadPoolExecutor(1) as pool:
            pool.submit(int).result()
            request(BOB, settings, lambda: bob(pool))

    request(ALICE, settings, alice)
    return seen[0]


def scheduled_job(echo, settings):
    """Start a scheduler in Alice's request, and add a job in Bob's request while Alice's is still running."""
    scheduler = BackgroundScheduler(timezone="UTC")
    job = Work(echo)
    job.gate.set()
    seen = []
    removed = threading.Event()
    scheduler.add_listener(lambda event: removed.set(), EVENT_JOB_REMOVED)

    def alice():
        scheduler.start()
        request(BOB, settings, lambda: scheduler.add_job(job))
        seen.append(job.outcome())

    try:
        request(ALICE, settings, alice)
        return seen[0]
    finally:
        removed.wait(5)  # the scheduler removes a job after running it, and fails if it has been shut down earlier
        scheduler.shutdown()


def task_left_behind(echo, settings):
    """Start a task that continues after the response has been sent."""

    async def main():
        tasks, response = [], asyncio.Event()

        async def linger():
            await response.wait()
            return send(echo)

        async def start():
            tasks.append(asyncio.create_task(linger()))

        await serve(ALICE, settings, start)
        response.set()
        return await tasks[0]

    return asyncio.run(main())


def stream_abandoned(echo, settings):
    """Disconnect the client during a response while one of the request's threads continues."""
    job = Work(echo)

    async def main():
        async def body():
            threading.Thread(target=job, daemon=True).start()
            await asyncio.sleep(PATIENCE)

        task = asyncio.create_task(serve(ALICE, settings, body))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    job.gate.set()
    return job.outcome()


def next_request_of_the_connection(echo, settings):
    """Serve a connection's next request, which event loops start in the context of the previous request."""

    async def main():
        seen, contexts = [], []

        async def alice():
            contexts.append(contextvars.copy_context())

        await serve(ALICE, settings, alice)
        task = asyncio.get_running_loop().create_task(asyncio.to_thread(send, echo), context=contexts[0])
        seen.append(await task)
        return seen[0]

    return asyncio.run(main())


def forked(way):
    """Return a function that forks during Alice's request."""

    def run(echo, settings, *unguarded):
        command = [sys.executable, forks.__file__, way, echo, *unguarded]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, cwd=Path(__file__).parents[2], check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@dataclass(frozen=True)
class Case:
    """A case of work that outlives its request.

    Attributes:
        run: A function of ``echo`` and ``settings`` that returns the token that the listed server received.
        unguarded: A function that disables the rule that prevents the leak.
    """

    run: Callable[..., str]
    unguarded: Callable[[pytest.MonkeyPatch], None]


def without_lease(monkeypatch):
    monkeypatch.setattr("otel_token_relay.token.Lease.is_open", True)


def with_plain_workers(monkeypatch):
    monkeypatch.setattr(futures_thread, "_worker", getattr(futures_thread._worker, "__wrapped__", None))


def with_plain_scheduler(monkeypatch):
    process_jobs = BaseScheduler._process_jobs
    monkeypatch.setattr(BaseScheduler, "_process_jobs", getattr(process_jobs, "__wrapped__", process_jobs))


CASES = {
    "lazily started worker thread": Case(worker_thread, without_lease),
    "lazily started asyncio consumer": Case(asyncio_consumer, without_lease),
    "executor initializer": Case(initializer, with_plain_workers),
    "done-callback of another user's future": Case(done_callback, with_plain_workers),
    "scheduled job": Case(scheduled_job, with_plain_scheduler),
    "task left behind": Case(task_left_behind, without_lease),
    "thread of a request that was aborted": Case(stream_abandoned, without_lease),
    "next request of the connection": Case(next_request_of_the_connection, without_lease),
}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@every_case
def test_no_other_users_token_is_sent(case, echo, settings):
    """Work that outlives its request sends neither a different user's token nor its own request's token."""
    # The first token installs the thread hooks, so the test binds a token before the case runs.
    request(BOB, settings, lambda: None)

    assert case.run(echo, settings) == NOTHING


@every_case
def test_one_rule_prevents_it(case, echo, settings, monkeypatch):
    """Without the rule, Alice's token is sent."""
    request(BOB, settings, lambda: None)
    case.unguarded(monkeypatch)

    assert case.run(echo, settings) == ALICE


FORKS = ("fork", "process", "process_pool")


@pytest.mark.parametrize("way", FORKS)
def test_a_forked_child_has_no_token(way, echo, settings):
    """A forked child, which has a copy of its parent's memory, relays no token."""
    assert forked("here")(echo, settings) == ALICE
    assert forked(way)(echo, settings) == NOTHING


@pytest.mark.parametrize("way", FORKS)
def test_the_process_id_prevents_it(way, echo, settings):
    """If a token were usable in every process, the child would send it."""
    assert forked(way)(echo, settings, "unguarded") == ALICE


def jwt(**claims):
    """Return a JWT with an invalid signature."""
    part = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJub25lIn0.{part}.c2ln"


def test_no_token_after_its_expiry(echo, settings):
    """No token is sent after it has expired, even in work that the request waits for."""
    token = jwt(exp=time.time() + 0.2)
    seen = []

    def body():
        thread = threading.Thread(target=lambda: seen.append(send(echo)))
        time.sleep(0.25)
        thread.start()
        thread.join()

    request(jwt(exp=time.time() + PATIENCE), settings, body)
    request(token, settings, body)

    assert len(seen) == 2
    assert seen[0].startswith("eyJ")
    assert seen[1] == NOTHING


@pytest.mark.parametrize(("max_age", "expected"), [(0.02, NOTHING), (PATIENCE, ALICE)], ids=["too old", "young enough"])
def test_no_token_beyond_the_maximum_age(echo, max_age, expected):
    """Without a boundary, the maximum age limits how long a token is used."""
    install(Settings(destinations=(echo,), max_age=max_age))
    work = Work(echo)
    attached = otel_context.attach(propagate.extract({"authorization": f"Bearer {ALICE}"}))
    try:
        threading.Thread(target=work, daemon=True).start()
    finally:
        otel_context.detach(attached)

    time.sleep(0.03)
    work.gate.set()

    assert work.outcome() == expected
