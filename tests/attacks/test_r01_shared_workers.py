"""r01: a thread that works for all requests has no token, regardless of which request started the thread.

Alice's request starts the thread and is still running when Bob's request submits work to the thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import logging.handlers
import multiprocessing
import queue
import socket
import socketserver
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from opentelemetry import context as otel_context

from otel_token_relay.installation import hook_states
from otel_token_relay.threads import SHARED_WORKERS
from tests.support.carrying import PATIENCE, being_served, send, serve, served

ALICE = "alice-token-0001"
BOB = "bob-token-0000001"
NOTHING = "nothing"
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("settings")


def queue_feeder(echo, settings):
    """Run code in a queue's feeder thread, which pickles the objects in the queue."""
    seen = queue.SimpleQueue()

    class Loaded:
        def __reduce__(self):
            seen.put(send(echo))
            return int, ()

    messages = multiprocessing.Queue()
    with being_served(ALICE, settings, lambda: messages.put(0)):
        served(BOB, settings, lambda: messages.put(Loaded()))
        found = seen.get(timeout=PATIENCE)
    assert (messages.get(timeout=PATIENCE), messages.get(timeout=PATIENCE)) == (0, 0)
    messages.close()
    messages.join_thread()
    return found


def queue_listener(echo, settings):
    """Run code in a queue listener's thread, which handles the log records of all requests."""
    seen = queue.SimpleQueue()

    class Handler(logging.Handler):
        def emit(self, record):
            seen.put(send(echo))

    records = queue.SimpleQueue()
    listener = logging.handlers.QueueListener(records, Handler())
    record = logging.LogRecord("x", logging.INFO, "", 0, "", (), None)
    with being_served(ALICE, settings, listener.start):
        served(BOB, settings, lambda: records.put(record))
        found = seen.get(timeout=PATIENCE)
    listener.stop()
    return found


def socket_server(kind, run, echo, settings):
    """Run code in a socket server without a boundary, which any client can call."""
    seen = queue.SimpleQueue()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            seen.put(send(echo))

    with kind(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=functools.partial(run, server), daemon=True)
        # Look up the method in the request, because binding the request's token instruments threads.
        with being_served(ALICE, settings, lambda: thread.start()):
            with closing(socket.create_connection(server.server_address)):
                found = seen.get(timeout=PATIENCE)
            if run is serve_forever:
                server.shutdown()
        thread.join(PATIENCE)
    return found


def serve_forever(server):
    server.serve_forever(poll_interval=0.02)


def handle_request(server):
    server.handle_request()


MANAGER = """
import multiprocessing.managers, os, queue, sys, threading
from otel_token_relay import Settings, install, use_token
from tests.support.carrying import send

install(Settings(destinations=[sys.argv[1]]))
if sys.argv[2:]:
    server_class = multiprocessing.managers.Server
    server_class.serve_forever = server_class.serve_forever.__wrapped__

class Manager(multiprocessing.managers.BaseManager):
    pass

seen = queue.SimpleQueue()
Manager.register("note", callable=lambda: seen.put(send(sys.argv[1])))
server = Manager(("127.0.0.1", 0), b"key").get_server()
with use_token("alice-token-0001"):
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = Manager(server.address, b"key")
    client.connect()
    client.note()
    print(seen.get(timeout=30), flush=True)
    os._exit(0)
"""
"""A manager's object server runs in its own process, because it replaces standard output and does not end."""


@pytest.mark.parametrize(("options", "expected"), [((), NOTHING), (("unhooked",), ALICE)])
def test_r01_the_object_server_of_a_manager_has_no_token(options, expected, echo):
    """A manager's object server, whose clients are other processes, has no token."""
    command = [sys.executable, "-c", MANAGER, echo, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE, cwd=ROOT, check=False)

    assert (done.stdout.strip(), done.stderr) == (expected, "")


def executor_callback(echo, settings):
    """Complete Bob's future in a thread that Alice's task has started."""
    seen, gate = queue.SimpleQueue(), threading.Event()

    def start():
        executor = ThreadPoolExecutor(1)
        executor.submit(int).result()
        return executor

    def add(executor):
        executor.submit(gate.wait, PATIENCE).add_done_callback(lambda _: seen.put(send(echo)))
        gate.set()

    with being_served(ALICE, settings, start) as executor, executor:
        served(BOB, settings, lambda: add(executor))
        return seen.get(timeout=PATIENCE)


def process_executor_callback(echo, settings):
    """Complete Bob's future in the thread that completes all futures of a process pool."""
    seen = queue.SimpleQueue()

    def start():
        executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        executor.submit(int).result()
        return executor

    def add(executor):
        # Sleep so that the future is not done when the callback is added, because a late callback runs in this thread.
        executor.submit(time.sleep, 0.5).add_done_callback(lambda _: seen.put(send(echo)))

    with being_served(ALICE, settings, start) as executor, executor:
        served(BOB, settings, lambda: add(executor))
        return seen.get(timeout=PATIENCE)


def grpc_callbacks(echo, settings, use):
    """Use a gRPC channel whose thread was started by Alice's call."""
    grpc = pytest.importorskip("grpc")
    seen, gate = queue.SimpleQueue(), threading.Event()

    class Service(grpc.GenericRpcHandler):
        def service(self, details):
            def method(request, context):
                assert request == b"" or gate.wait(PATIENCE)
                return request

            return grpc.unary_unary_rpc_method_handler(method)

    server = grpc.server(ThreadPoolExecutor(2), handlers=(Service(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/service/method")

        def start():
            channel.subscribe(lambda _: None, try_to_connect=True)
            return call.future(b"waits")

        with being_served(ALICE, settings, start) as waiting:
            served(BOB, settings, lambda: use(channel, call, lambda _: seen.put(send(echo))))
            found = seen.get(timeout=PATIENCE)
            gate.set()
            waiting.result()
    server.stop(None).wait(PATIENCE)
    return found


def grpc_future(echo, settings):
    return grpc_callbacks(echo, settings, lambda _, call, note: call.future(b"").add_done_callback(note))


def asyncio_server(echo, settings):
    """Start an asyncio server, which keeps the context in which it starts to accept connections."""
    seen, address, done = queue.SimpleQueue(), queue.SimpleQueue(), threading.Event()

    async def handle(reader, writer):
        seen.put(send(echo))
        writer.close()

    async def main():
        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            address.put(server.sockets[0].getsockname())
            await asyncio.to_thread(done.wait, PATIENCE)

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    with (
        being_served(ALICE, settings, lambda: thread.start()),
        closing(socket.create_connection(address.get(timeout=PATIENCE))),
    ):
        found = seen.get(timeout=PATIENCE)
        done.set()
    thread.join(PATIENCE)
    return found


def background_scheduler(echo, settings):
    """Run a job in an APScheduler thread, which runs the jobs of all requests."""
    seen = queue.SimpleQueue()
    scheduler = pytest.importorskip("apscheduler.schedulers.background").BackgroundScheduler(timezone="UTC")
    with being_served(ALICE, settings, scheduler.start):
        served(BOB, settings, lambda: scheduler.add_job(lambda: seen.put(send(echo))))
        found = seen.get(timeout=PATIENCE)
    while scheduler.get_jobs():  # the scheduler's thread removes each job after running it
        time.sleep(0.01)
    scheduler.shutdown()
    return found


def asyncio_scheduler(echo, settings):
    """Run a job on an event loop's timer, in the context of that timer."""
    scheduler = pytest.importorskip("apscheduler.schedulers.asyncio").AsyncIOScheduler(timezone="UTC")

    async def main():
        seen = asyncio.get_running_loop().create_future()

        async def job():
            seen.set_result(send(echo))

        async def alice():
            scheduler.start()
            scheduler.add_job(job, "date", run_date=datetime.now(UTC) + timedelta(milliseconds=20))
            return await asyncio.wait_for(seen, PATIENCE)

        found = []

        async def body():
            found.append(await alice())

        await serve(ALICE, settings, body)
        scheduler.shutdown()
        await asyncio.sleep(0)
        return found[0]

    return asyncio.run(main())


def trio_thread(echo, settings):
    """Run work in a Trio thread that an earlier request has started."""
    cache = pytest.importorskip("trio._core._thread_cache").ThreadCache()
    seen = queue.SimpleQueue()

    def run(work):
        cache.start_thread_soon(work, seen.put)
        return seen.get(timeout=PATIENCE).unwrap()

    with being_served(ALICE, settings, lambda: run(int)):
        return served(BOB, settings, lambda: run(lambda: send(echo)))


def twisted_thread(echo, settings):
    """Run work in a Twisted thread that an earlier request has started."""
    pool = pytest.importorskip("twisted.python.threadpool").ThreadPool(0, 1)
    seen = queue.SimpleQueue()

    def start():
        pool.start()
        pool.callInThread(seen.put, "started")
        return seen.get(timeout=PATIENCE)

    with being_served(ALICE, settings, start):
        served(BOB, settings, lambda: pool.callInThread(lambda: seen.put(send(echo))))
        found = seen.get(timeout=PATIENCE)
    pool.stop()
    return found


SHARED = {
    "asyncio server": ("asyncio.base_events", asyncio_server),
    "APScheduler": ("apscheduler.schedulers.base", background_scheduler),
    "APScheduler in an event loop": ("apscheduler.schedulers.base", asyncio_scheduler),
    "Trio thread": ("trio._core._thread_cache", trio_thread),
    "Twisted thread": ("twisted._threads._threadworker", twisted_thread),
    "queue feeder": ("multiprocessing.queues", queue_feeder),
    "queue listener": ("logging.handlers", queue_listener),
    "server": ("socketserver", functools.partial(socket_server, socketserver.TCPServer, serve_forever)),
    "threading server": (
        "socketserver",
        functools.partial(socket_server, socketserver.ThreadingTCPServer, serve_forever),
    ),
    "one request": ("socketserver", functools.partial(socket_server, socketserver.TCPServer, handle_request)),
    "executor": ("concurrent.futures.thread", executor_callback),
    "process executor": ("concurrent.futures.process", process_executor_callback),
    "gRPC done callback": ("grpc._channel", grpc_future),
}

every_shared_worker = pytest.mark.parametrize(("module", "use"), SHARED.values(), ids=SHARED.keys())


@every_shared_worker
@pytest.mark.parametrize("threads_inherit", [False, True])
def test_r01_work_for_all_requests_has_no_token(threads_inherit, module, use, echo, settings, monkeypatch):
    """Work for all requests sends no token, even if threads inherit their starter's context."""
    if threads_inherit:
        let_threads_inherit(monkeypatch)

    assert use(echo, settings) == NOTHING


@every_shared_worker
def test_r01_only_the_hook_keeps_the_token_out(module, use, echo, settings, monkeypatch):
    """Without the hook, Bob's work sends Alice's token."""
    served(BOB, settings, lambda: None)  # binding the first token instruments threads
    switch_off(module, monkeypatch)
    if module == "concurrent.futures.process":
        let_threads_inherit(monkeypatch)

    assert use(echo, settings) == ALICE


def let_threads_inherit(monkeypatch):
    """Make every thread start in a copy of its starter's context, as an option of Python 3.14 does."""
    bootstrap = threading.Thread._bootstrap

    def inheriting(self):
        return functools.partial(contextvars.copy_context().run, bootstrap, self)

    monkeypatch.setattr(threading.Thread, "_bootstrap", property(inheriting))


def switch_off(module_name, monkeypatch):
    """Remove the hooks that keep tokens out of a module's threads."""
    module = pytest.importorskip(module_name)
    _, names = SHARED_WORKERS.get(module_name, (None, ("_worker",)))
    for name in names:
        class_name, _, function_name = name.rpartition(".")
        owner = getattr(module, class_name) if class_name else module
        monkeypatch.setattr(owner, function_name, vars(owner)[function_name].__wrapped__)


def test_r01_every_shared_worker_is_tested():
    """Every entry in the table has a test; the entry for managers has a separate test."""
    assert set(SHARED_WORKERS) <= {module for module, _ in SHARED.values()} | {"multiprocessing.managers"}


@pytest.mark.parametrize("module", SHARED_WORKERS)
def test_r01_every_name_of_the_table_exists(module):
    """Every name in the table exists in the installed release and is hooked."""
    pytest.importorskip(module)

    assert hook_states()[module] == "hooked"


def test_r01_work_outside_of_a_request_is_not_changed():
    """Work outside a request runs in an unchanged context."""
    seen = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            seen.append(dict(otel_context.get_current()))

    with (
        socketserver.TCPServer(("127.0.0.1", 0), Handler) as server,
        closing(socket.create_connection(server.server_address)),
    ):
        contextvars.Context().run(server.handle_request)

    assert seen == [{}]
