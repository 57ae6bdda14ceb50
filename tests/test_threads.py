"""Threading instrumentation is enabled once, while there is a token, regardless of how the application starts."""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import socketserver
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import thread as futures_thread
from multiprocessing.pool import ThreadPool

import pytest
from opentelemetry.instrumentation.threading import ThreadingInstrumentor

from otel_token_relay import Settings, current_token, install, uninstall, use_token
from tests.support.processes import INSTRUMENT, instrumentations

LISTED = Settings(destinations=("https://a",))
ALICE = "alice-token-0001"
BOB = "bob-token-0000001"
PATIENCE = 20

DISABLED = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
PROPAGATOR = {"OTEL_PROPAGATORS": "tracecontext,baggage,token_relay"}
NO_EXPORT = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}
BY_HAND = "from opentelemetry.instrumentation.threading import ThreadingInstrumentor as T; T().instrument()\n"
INSTALL = "import otel_token_relay; otel_token_relay.install()\n"

# Extract the tokens of two requests, and read them in a thread and in an executor.
PROBE = """
import threading
from concurrent.futures import ThreadPoolExecutor
from opentelemetry import context, propagate

def seen():
    from otel_token_relay import current_token
    token = current_token()
    return token and token.reveal()

results = []
for name in ("first", "second"):
    attached = context.attach(propagate.extract({"authorization": "Bearer " + name}))
    thread = threading.Thread(target=lambda: results.append(seen()))
    thread.start()
    thread.join()
    with ThreadPoolExecutor(1) as pool:
        results.append(pool.submit(seen).result())
    context.detach(attached)
layers, start = 0, vars(threading.Thread)["start"]
while hasattr(start, "__wrapped__"):
    layers, start = layers + 1, start.__wrapped__
print(results, layers)
"""

EXPECTED = "['first', 'first', 'second', 'second'] 1"


@pytest.mark.parametrize(
    ("launcher", "before", "environ"),
    [
        pytest.param([], INSTALL, {}, id="install"),
        pytest.param([], "", PROPAGATOR, id="OTEL_PROPAGATORS alone"),
        pytest.param([], INSTALL, PROPAGATOR, id="both"),
        pytest.param(INSTRUMENT, "", PROPAGATOR, id="opentelemetry-instrument"),
        pytest.param(
            INSTRUMENT,
            "",
            {**PROPAGATOR, DISABLED: "threading"},
            id="instrumentation of threads disabled",
        ),
        pytest.param(
            INSTRUMENT,
            "",
            {**PROPAGATOR, DISABLED: "*"},
            id="every instrumentation disabled",
        ),
        pytest.param(INSTRUMENT, "", {**PROPAGATOR, "OTEL_SDK_DISABLED": "true"}, id="the SDK disabled"),
        pytest.param(INSTRUMENT, INSTALL, PROPAGATOR, id="opentelemetry-instrument and install"),
        pytest.param([], BY_HAND + INSTALL, {}, id="by the user, before install"),
        pytest.param([], INSTALL + BY_HAND, {}, id="by the user, after install"),
        pytest.param([], BY_HAND, PROPAGATOR, id="by the user, whose import loads the package"),
        pytest.param([], "import concurrent.futures.thread, threading\n" + INSTALL, {}, id="threads imported first"),
    ],
)
def test_threads_have_the_token_in_every_start_up_order(launcher, before, environ):
    """Threading is instrumented once in every startup order, and nothing is logged."""
    left_out = [variables[DISABLED] for variables in (instrumentations(), environ) if DISABLED in variables]
    done = subprocess.run(
        [*launcher, sys.executable, "-c", before + PROBE],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **NO_EXPORT, **environ, DISABLED: ",".join(left_out)},
    )

    # On Python 3.12, contrib's logging handler starts a thread at exit, which raises an error.
    assert done.stderr.partition("Exception ignored in atexit callback")[0] == ""
    assert done.stdout.strip() == EXPECTED


def patched():
    """Return all attributes that can be patched, for comparison."""
    own = {name: vars(threading.Timer).get(name) for name in ("start", "run")}
    return own, threading.Thread.start, threading.Thread.run, ThreadPoolExecutor.submit, futures_thread._worker


@pytest.fixture(autouse=True)
def _clean():
    before = patched()
    yield
    uninstall()
    assert patched() == before


def seen_in_a_thread():
    """Return the token that is visible in a new thread."""
    results = []
    thread = threading.Thread(target=lambda: results.append(current_token()))
    thread.start()
    thread.join()
    return results[0]


def test_nothing_is_patched_before_there_is_a_token():
    """Nothing is patched before there is a token, so an application that relays nothing has no overhead."""
    before = patched()

    install(LISTED)

    with use_token(None):
        assert patched() == before


def test_uninstall_removes_our_patches():
    """`uninstall` removes the package's patches, including `Timer`, which contrib leaves wrapped."""
    before = patched()
    install(LISTED)
    with use_token(ALICE):
        assert seen_in_a_thread().reveal() == ALICE
        assert patched() != before

        uninstall()

        assert patched() == before
        assert seen_in_a_thread() is None


def test_uninstall_keeps_the_users_instrumentation():
    """`uninstall` keeps instrumentation that the user enabled."""
    timer_start = vars(threading.Timer).get("start")
    ThreadingInstrumentor().instrument()
    try:
        install(LISTED)
        with use_token(ALICE):
            uninstall()

            assert ThreadingInstrumentor().is_instrumented_by_opentelemetry
            assert seen_in_a_thread().reveal() == ALICE
    finally:
        ThreadingInstrumentor().uninstrument()
        if timer_start is None:
            del threading.Timer.start


def test_instrumentation_that_the_user_switches_off_stays_off():
    """Instrumentation that the user disabled is not disabled again, which would remove another library's wrapper."""
    install(LISTED)
    with use_token(ALICE):
        ThreadingInstrumentor().uninstrument()
        del threading.Timer.start

    uninstall()

    assert not ThreadingInstrumentor().is_instrumented_by_opentelemetry


def test_threads_are_instrumented_again_after_another_install():
    """Threads are instrumented again after a second installation."""
    for settings in (LISTED, Settings(destinations=("https://b",))):
        install(settings)
        with use_token(ALICE):
            assert seen_in_a_thread().reveal() == ALICE


def test_the_first_tokens_may_be_bound_concurrently():
    """If the first tokens are bound concurrently, later requests wait until the first one has instrumented threads."""
    install(LISTED)
    barrier = threading.Barrier(8)
    results = []

    def request(name):
        barrier.wait()
        with use_token(name):
            results.append(seen_in_a_thread().reveal() == name)

    threads = [threading.Thread(target=request, args=(f"token-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results == [True] * 8


def test_a_failure_is_reported_once_and_the_relay_works(monkeypatch, caplog):
    """A failure of the instrumentation is reported once, and the relay works in the request's own thread."""
    monkeypatch.setattr(ThreadingInstrumentor, "_instrument", lambda self: 1 / 0)
    install(LISTED)

    for _ in range(2):
        with use_token(ALICE):
            assert current_token().reveal() == ALICE

    assert caplog.text.count("cannot carry tokens into threads") == 1


def shown(*_):
    """Return the value of the current token."""
    token = current_token()
    return token and token.reveal()


def test_a_task_of_a_thread_pool_has_its_submitters_token_and_a_callback_has_none():
    """A task has its submitter's token, and the pool's own threads lack the token of the request that created it."""
    seen = queue.SimpleQueue()
    install(LISTED)
    with use_token(ALICE), ThreadPool(1) as pool:
        with use_token(BOB):
            results = [pool.apply(shown), *pool.map(shown, [1]), *pool.imap(shown, [1]), *pool.starmap(shown, [(1,)])]
            pool.apply_async(int, callback=lambda _: seen.put(shown()))
            assert seen.get(timeout=PATIENCE) is None
        with use_token(None):
            results.append(pool.apply(shown))
        pool.close()
        pool.join()

    assert results == [BOB, BOB, BOB, BOB, None]


def test_a_joblib_call_has_the_token_of_its_own_request():
    """Every task of a joblib call has the caller's token, including tasks that an earlier task's thread submits."""
    joblib = pytest.importorskip("joblib")
    install(LISTED)
    with use_token(ALICE), joblib.Parallel(2, backend="threading", pre_dispatch=1) as parallel:
        with use_token(BOB):
            seen = parallel(joblib.delayed(shown)() for _ in range(12))
        own = parallel(joblib.delayed(shown)() for _ in range(12))

    assert (seen, own) == ([BOB] * 12, [ALICE] * 12)


def test_a_server_that_a_request_starts_has_no_token():
    """A socket server that a request starts has no token, because its clients are unrelated to that request."""
    seen = queue.SimpleQueue()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            seen.put(shown())

    install(LISTED)
    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server, use_token(ALICE):
        server.timeout = PATIENCE
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with socket.create_connection(server.server_address, timeout=PATIENCE):
            thread.join(PATIENCE)
        assert shown() == ALICE

    assert seen.get(timeout=1) is None


@pytest.mark.parametrize("runs_before", [False, True], ids=["new loop", "loop that ran before the installation"])
def test_an_abandoned_asynchronous_generator_is_closed_without_a_token(runs_before):
    """An abandoned asynchronous generator is closed without the token of the request that happens to be running."""
    seen = []

    async def pages(closed):
        try:
            yield shown()
        finally:
            seen.append(shown())
            closed.set()

    async def main():
        if runs_before:
            install(LISTED)
        closed = asyncio.Event()
        with use_token(ALICE):
            generator = pages(closed)
            seen.append(await anext(generator))
        with use_token(BOB):
            del generator
            await asyncio.wait_for(closed.wait(), PATIENCE)
            seen.append(shown())

    if not runs_before:
        install(LISTED)
    asyncio.run(main())

    assert seen == [ALICE, None, BOB]
