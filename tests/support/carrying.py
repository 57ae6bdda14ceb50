"""Ways to start work from a request, and the real request that the work sends.

A row starts the work without waiting for it. When the test releases the work, the work sends a real request to
a listed loopback server. It then records the token that the server received.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import queue
import sched
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import gevent
import urllib3

from otel_token_relay import Settings
from otel_token_relay.servers import asgi, wsgi

PATIENCE = 30.0
"""The number of seconds after which a hanging test fails. No test uses this value to measure time."""


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        seen = ",".join(self.headers.get_all("Authorization", ["nothing"])).removeprefix("Bearer ").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(seen)))
        self.end_headers()
        self.wfile.write(seen)

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests."""


@contextmanager
def echo_server() -> Iterator[str]:
    """Run a server that responds with the token that it received, or with ``nothing``, and yield its origin."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    server.daemon_threads = True
    # The server's thread must not inherit the test's context.
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    contextvars.Context().run(thread.start)
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def send(url: str) -> str:
    """Send a request to the echo server and return the token that the server received."""
    with urllib3.PoolManager(retries=False, timeout=PATIENCE) as manager:
        return manager.request("GET", url).data.decode()


class Work:
    """Work that a request starts. A row calls the work or awaits its `coroutine`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.gate = threading.Event()
        self.done = threading.Event()
        self.seen = "never ran"
        self.pump: Callable[[], object] | None = None
        """Run the work if no thread or event loop of the row runs it."""

    def __call__(self, *_: object) -> None:
        try:
            assert self.gate.wait(PATIENCE), "the test did not release the work"
            self.seen = send(self.url)
        finally:
            self.done.set()

    async def coroutine(self) -> None:
        with anyio.fail_after(PATIENCE):
            while not self.gate.is_set():
                await anyio.sleep(0.002)
        self()

    def outcome(self) -> str:
        """Wait for the work in an empty context, and return the token that the server received."""
        if self.pump is not None:
            contextvars.Context().run(self.pump)
        assert self.done.wait(PATIENCE), "the work did not run"
        return self.seen

    async def outcome_async(self) -> str:
        with anyio.fail_after(PATIENCE):
            while not self.done.is_set():
                await anyio.sleep(0.002)
        return self.seen


class Request:
    """A request in its own thread, from its arrival to its response."""

    def __init__(self, token: str | None, settings: Settings, body: Callable[[], object]) -> None:
        environ = {} if token is None else {"HTTP_AUTHORIZATION": f"Bearer {token}"}

        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            body()
            return [b""]

        served = wsgi.TokenRelayMiddleware(app, settings)
        self._thread = threading.Thread(target=lambda: served(environ, lambda *_: None), daemon=True)
        contextvars.Context().run(self._thread.start)

    def wait_for_response(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


def served(token: str | None, settings: Settings, body: Callable[[], Any]) -> Any:
    """Run *body* in its own request, and return the result after the response."""
    with being_served(token, settings, body) as result:
        return result


@contextmanager
def being_served(token: str | None, settings: Settings, body: Callable[[], Any]) -> Iterator[Any]:
    """Run *body* in its own request, keep the request open until the block ends, and yield the result."""
    outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    end = threading.Event()

    def run() -> None:
        try:
            outcome.put((body(), None))
        except BaseException as error:
            outcome.put((None, error))
        end.wait(PATIENCE)

    request = Request(token, settings, run)
    try:
        result, error = outcome.get(timeout=PATIENCE)
        if error is not None:
            raise error
        yield result
    finally:
        end.set()
        request.wait_for_response()


async def serve(token: str | None, settings: Settings, body: Callable[[], Awaitable[object]]) -> None:
    """Send one request to an ASGI application."""
    headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await body()

    async def nothing(*_: Any) -> dict[str, Any]:
        return {}

    await asgi.TokenRelayMiddleware(app, settings)({"type": "http", "headers": headers}, nothing, nothing)


Take = Callable[[Any], Any]
"""Wraps work that runs outside the request's context with `carry` and the test's timeout."""


@dataclass(frozen=True)
class Way:
    """A way to start work from a request.

    Attributes:
        start: ``start(work, take)``. An asynchronous function is awaited and receives the application's task group
            as its third argument.
        is_carried: Whether the work needs `carry`, so that it can outlive the request.
        backends: The anyio backends on which an asynchronous function runs.
    """

    name: str
    start: Callable[..., Any]
    is_carried: bool = False
    backends: tuple[str, ...] = ()


class OwnRun(threading.Thread):
    """A thread class with its own ``run`` method, as libraries define it, which instrumentation does not cover."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.work = work

    def run(self) -> None:
        self.work()


class HandMade:
    """A custom executor with long-lived threads and a queue."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._threads = [OwnRun(self._serve) for _ in range(4)]
        for thread in self._threads:
            thread.start()

    def put(self, work: Callable[[], None]) -> None:
        self._queue.put(work)

    def _serve(self) -> None:
        while (work := self._queue.get()) is not None:
            work()

    def shutdown(self) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()


# All requests share these executors, so work for different users runs in the same threads.
_pool = functools.cache(lambda: ThreadPoolExecutor(4))
_hand_made = functools.cache(HandMade)


def stop_workers() -> None:
    """Stop the shared threads; the next request starts new ones."""
    for shared in (_pool, _hand_made):
        if shared.cache_info().currsize:
            shared().shutdown()
            shared.cache_clear()


def _thread(work: Work, take: Take) -> None:
    threading.Thread(target=work, daemon=True).start()


def _timer(work: Work, take: Take) -> None:
    timer = threading.Timer(0, work)
    timer.daemon = True
    timer.start()


def _scheduler(work: Work, take: Take) -> None:
    scheduler = sched.scheduler()
    scheduler.enter(0, 0, take(work))
    work.pump = scheduler.run


def _greenlet(work: Work, take: Take) -> None:
    # A gevent hub belongs to one thread, so the greenlets start and run in a single new thread.
    def run() -> None:
        greenlet = gevent.spawn(taken)
        greenlet.join()

    taken = take(work)
    OwnRun(run).start()


SYNC_WAYS = (
    Way("Thread", _thread),
    Way("Timer", _timer),
    Way("executor submit", lambda work, take: _pool().submit(work)),
    Way("executor map", lambda work, take: _pool().map(work, [0])),
    Way("Thread with its own run, carried", lambda work, take: OwnRun(take(work)).start(), is_carried=True),
    Way("sched, carried", _scheduler, is_carried=True),
    Way("gevent, carried", _greenlet, is_carried=True),
    Way("custom executor, carried", lambda work, take: _hand_made().put(take(work)), is_carried=True),
    Way(
        "generator function, carried",
        lambda work, take: _hand_made().put(functools.partial(list, take(_generator)(work))),
        is_carried=True,
    ),
)

_tasks: set[Any] = set()


def _keep(task: Any) -> None:
    """Keep a reference to *task*, because event loops hold only weak references."""
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


def _generator(work: Work) -> Iterator[int]:
    yield 1
    work()
    yield 2


async def _async_generator(work: Work) -> Any:
    yield 1
    await work.coroutine()
    yield 2


async def _exhaust(generator: Any) -> None:
    async for _ in generator:
        pass


async def _executor(work: Work, take: Take, group: Any) -> None:
    _keep(asyncio.get_running_loop().run_in_executor(None, work))


async def _to_thread(work: Work, take: Take, group: Any) -> None:
    _keep(asyncio.ensure_future(asyncio.to_thread(work)))


async def _create_task(work: Work, take: Take, group: Any) -> None:
    _keep(asyncio.create_task(work.coroutine()))


async def _gather(work: Work, take: Take, group: Any) -> None:
    _keep(asyncio.gather(work.coroutine(), asyncio.sleep(0)))


async def _task_group(work: Work, take: Take, group: Any) -> None:
    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(work.coroutine())

    _keep(asyncio.create_task(run()))


async def _call_soon_threadsafe(work: Work, take: Take, group: Any) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(loop.call_soon_threadsafe, lambda: _keep(loop.create_task(work.coroutine())))


async def _run_coroutine_threadsafe(work: Work, take: Take, group: Any) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(lambda: _keep(asyncio.run_coroutine_threadsafe(work.coroutine(), loop)))


async def _thread_of_coroutine(work: Work, take: Take, group: Any) -> None:
    threading.Thread(target=work, daemon=True).start()


async def _anyio_thread(work: Work, take: Take, group: Any) -> None:
    group.start_soon(anyio.to_thread.run_sync, work)


async def _anyio_from_thread(work: Work, take: Take, group: Any) -> None:
    group.start_soon(anyio.to_thread.run_sync, functools.partial(anyio.from_thread.run, work.coroutine))


async def _anyio_task(work: Work, take: Take, group: Any) -> None:
    group.start_soon(work.coroutine)


# Start a task outside the request's context.
def _elsewhere(start: Callable[[], Awaitable[None]], group: Any) -> None:
    contextvars.Context().run(group.start_soon, start)


async def _carried_coroutine(work: Work, take: Take, group: Any) -> None:
    coroutine = take(work.coroutine())

    async def run() -> None:
        await coroutine

    _elsewhere(run, group)


async def _carried_function(work: Work, take: Take, group: Any) -> None:
    _elsewhere(take(work.coroutine), group)


async def _carried_lambda(work: Work, take: Take, group: Any) -> None:
    _elsewhere(take(lambda: work.coroutine()), group)


async def _carried_generator(work: Work, take: Take, group: Any) -> None:
    generator = take(_async_generator)(work)
    _elsewhere(functools.partial(_exhaust, generator), group)


ASYNCIO = ("asyncio",)
BOTH = ("asyncio", "trio")

ASYNC_WAYS = (
    Way("run_in_executor", _executor, backends=ASYNCIO),
    Way("to_thread", _to_thread, backends=ASYNCIO),
    Way("create_task", _create_task, backends=ASYNCIO),
    Way("gather", _gather, backends=ASYNCIO),
    Way("TaskGroup", _task_group, backends=ASYNCIO),
    Way("call_soon_threadsafe", _call_soon_threadsafe, backends=ASYNCIO),
    Way("run_coroutine_threadsafe", _run_coroutine_threadsafe, backends=ASYNCIO),
    Way("Thread from a coroutine", _thread_of_coroutine, backends=BOTH),
    Way("anyio thread", _anyio_thread, backends=BOTH),
    Way("anyio from_thread", _anyio_from_thread, backends=BOTH),
    Way("anyio task group", _anyio_task, backends=BOTH),
    Way("coroutine, carried", _carried_coroutine, is_carried=True, backends=BOTH),
    Way("coroutine function, carried", _carried_function, is_carried=True, backends=BOTH),
    Way("lambda of a coroutine, carried", _carried_lambda, is_carried=True, backends=BOTH),
    Way("async generator, carried", _carried_generator, is_carried=True, backends=BOTH),
)
