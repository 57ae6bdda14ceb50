"""r01: a thread pool's task has its submitter's token, and the pool's own threads have none.

Alice's request creates the pool and is still running when other requests use the pool.
"""

from __future__ import annotations

import contextvars
import functools
import math
import multiprocessing
import multiprocessing.dummy
import multiprocessing.managers
import multiprocessing.pool
import operator
import queue
import subprocess
import sys
import threading
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
from opentelemetry import context as otel_context
from opentelemetry.instrumentation.threading import ThreadingInstrumentor

from otel_token_relay import carry, current_token, install, uninstall
from tests.support.carrying import PATIENCE, Request, being_served, send, served

ALICE = "alice-token-0001"
BOB = "bob-token-0000001"
NOTHING = "nothing"
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("settings")


@contextmanager
def ended(pool):
    """Provide the pool, and wait until all its threads have ended."""
    try:
        yield pool
    finally:
        pool.close()
        pool.join()


def outside(work):
    """Run *work* outside any request, as a job at process startup does."""
    return contextvars.Context().run(work)


# ---- Thread pools: the tokens of tasks


ITEMS = range(5)
PAIRS = [(item, item) for item in ITEMS]

METHODS = {
    "apply": (1, lambda pool, function: [pool.apply(function, (0,))]),
    "apply_async": (1, lambda pool, function: [pool.apply_async(function, (0,), {}).get(PATIENCE)]),
    "apply_async by keyword": (1, lambda pool, function: [pool.apply_async(func=function, args=(0,)).get(PATIENCE)]),
    "map": (5, lambda pool, function: pool.map(function, ITEMS)),
    "map in chunks": (5, lambda pool, function: pool.map(function, ITEMS, 2)),
    "map of a generator": (5, lambda pool, function: pool.map(func=function, iterable=iter(ITEMS))),
    "map_async": (5, lambda pool, function: pool.map_async(function, ITEMS, chunksize=3).get(PATIENCE)),
    "starmap": (5, lambda pool, function: pool.starmap(function, PAIRS)),
    "starmap_async": (5, lambda pool, function: pool.starmap_async(function, PAIRS, 2).get(PATIENCE)),
    "imap": (5, lambda pool, function: list(pool.imap(function, ITEMS))),
    "imap in chunks": (5, lambda pool, function: list(pool.imap(function, ITEMS, chunksize=2))),
    "imap_unordered": (5, lambda pool, function: list(pool.imap_unordered(function, ITEMS))),
    "imap_unordered in chunks": (5, lambda pool, function: list(pool.imap_unordered(function, ITEMS, 2))),
}

every_method = pytest.mark.parametrize(("count", "submit"), METHODS.values(), ids=METHODS.keys())


@every_method
def test_r01_a_task_has_its_submitters_token(count, submit, echo, settings):
    """A task has its submitter's token, both while the request that created the pool is running and afterward."""

    def task(*_):
        return send(echo)

    def use(pool):
        return submit(pool, task)

    with being_served(ALICE, settings, lambda: ThreadPool(2)) as pool, ended(pool):
        assert served(BOB, settings, lambda: use(pool)) == [BOB] * count
        assert served(None, settings, lambda: use(pool)) == [NOTHING] * count
        assert served(ALICE, settings, lambda: use(pool)) == [ALICE] * count
        assert outside(lambda: use(pool)) == [NOTHING] * count

    with ended(served(ALICE, settings, lambda: ThreadPool(2))) as pool:
        assert served(BOB, settings, lambda: use(pool)) == [BOB] * count
        assert served(None, settings, lambda: use(pool)) == [NOTHING] * count


def test_r01_users_can_share_a_pool_at_the_same_time(settings):
    """Several users can submit tasks to the same pool at the same time, and each task has its own user's token."""
    seen = {}

    def task(_):
        token = current_token()
        return token and token.reveal()

    def use(token, pool):
        seen[token] = {found for _ in range(20) for found in pool.map(task, range(10), chunksize=1)}

    with being_served(ALICE, settings, lambda: ThreadPool(2)) as pool, ended(pool):
        users = [None, *(f"token-of-user-{number}" for number in range(5))]
        requests = [Request(user, settings, functools.partial(use, user, pool)) for user in users]
        for request in requests:
            request.wait_for_response()

    assert seen == {user: {user} for user in users}


def test_r01_a_task_that_outlives_its_request_has_no_token(echo, settings):
    """A task that starts after its request has ended has no token."""
    gate = threading.Event()

    def task():
        assert gate.wait(PATIENCE)
        return send(echo)

    with ended(served(ALICE, settings, lambda: ThreadPool(1))) as pool:
        left = served(BOB, settings, lambda: pool.apply_async(task))
        gate.set()

        assert left.get(PATIENCE) == NOTHING


class Subclass(ThreadPool):
    def apply_async(self, *args, **kwargs):
        return super().apply_async(*args, **kwargs)

    def map_at_once(self, function, items):
        return multiprocessing.pool.Pool.map(self, function, items)


POOLS = {
    "ThreadPool": lambda: ThreadPool(1),
    "multiprocessing.dummy": lambda: multiprocessing.dummy.Pool(1),
    "subclass": lambda: Subclass(1),
    "copy in another distribution": lambda: pytest.importorskip("multiprocess.pool").ThreadPool(1),
}


@pytest.mark.parametrize("make", POOLS.values(), ids=POOLS.keys())
def test_r01_tasks_of_every_kind_of_pool_have_the_token(make, echo, settings):
    """Tasks have their submitter's token in every kind of pool, including subclasses."""

    def task(*_):
        return send(echo)

    with being_served(ALICE, settings, make) as pool, ended(pool):
        for map_items in (pool.map, getattr(pool, "map_at_once", pool.map)):
            seen = served(BOB, settings, lambda use=map_items: [pool.apply(task), *use(task, [1])])
            assert seen == [BOB, BOB]
        assert served(None, settings, lambda: pool.apply(task)) == NOTHING


def test_r01_a_pool_created_before_install(echo, settings):
    """Tasks have their submitter's token even if the pool was created before installation."""
    uninstall()
    with ended(ThreadPool(1)) as pool:
        install(settings)

        assert served(BOB, settings, lambda: pool.apply(send, (echo,))) == BOB
        assert served(None, settings, lambda: pool.apply(send, (echo,))) == NOTHING


def test_r01_a_pool_created_in_a_request_before_install(echo, settings):
    """Tasks have their submitter's token even if instrumented threads gave the pool's workers Alice's token."""
    uninstall()
    instrumentor = ThreadingInstrumentor()
    instrumentor.instrument()
    try:
        with being_served(ALICE, settings, lambda: ThreadPool(1)) as pool, ended(pool):
            install(settings)

            assert served(BOB, settings, lambda: pool.apply(send, (echo,))) == BOB
            assert served(None, settings, lambda: pool.apply(send, (echo,))) == NOTHING
    finally:
        uninstall()
        instrumentor.uninstrument()
        vars(threading.Timer).get("start") and delattr(threading.Timer, "start")


class Unhashable:
    __hash__ = None

    def __init__(self, url):
        self.url = url

    def __call__(self, _):
        return send(self.url)

    def method(self, _):
        return send(self.url)

    @classmethod
    def of_class(cls, url):
        return send(url)


class Sent(str):
    """A task that is a class, whose instance contains the header that the server received."""

    def __new__(cls, url):
        return super().__new__(cls, send(url))


FUNCTIONS = {
    "unhashable": lambda url: (Unhashable(url), 0),
    "bound method": lambda url: (Unhashable(url).method, 0),
    "class method": lambda url: (Unhashable.of_class, url),
    "class": lambda url: (Sent, url),
    "partial": lambda url: (functools.partial(send), url),
    "lambda": lambda url: (lambda _: send(url), 0),
}


@pytest.mark.parametrize("function_of", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_r01_every_callable_can_be_a_task(function_of, echo, settings):
    """Any callable can be a task and has its submitter's token."""
    function, argument = function_of(echo)

    with being_served(ALICE, settings, lambda: ThreadPool(1)) as pool, ended(pool):
        seen = served(BOB, settings, lambda: [pool.apply(function, (argument,)), *pool.imap(function, [argument])])

    assert seen == [BOB, BOB]


def test_r01_results_arguments_and_errors_are_passed_through(settings):
    """Results, arguments, and errors of a task are passed through unchanged."""

    def fail(item):
        raise KeyError(item)

    def body(pool):
        with pytest.raises(KeyError, match="7"):
            pool.apply(fail, (7,))
        with pytest.raises(KeyError, match="7"):
            pool.map(fail, [7])
        with pytest.raises(KeyError, match="7"):
            next(pool.imap(fail, [7]))
        with pytest.raises(TypeError, match="not callable"):
            pool.apply(None)
        with pytest.raises(TypeError):
            pool.map(math.sqrt, 5)
        with pytest.raises(ValueError, match="Chunksize"):
            pool.imap(math.sqrt, [1], chunksize=0)
        return [
            pool.apply(int, ("ff",), {"base": 16}),
            pool.map(math.sqrt, [4, 9]),
            pool.starmap(pow, [(2, 3), (3, 2)]),
            list(pool.imap(operator.neg, iter([1, 2]))),
            pool.map(math.sqrt, []),
        ]

    with ended(ThreadPool(1)) as pool:
        assert served(BOB, settings, lambda: body(pool)) == [255, [2.0, 3.0], [8, 9], [-1, -2], []]
        with pytest.raises(ValueError, match="not running"):
            served(BOB, settings, lambda: (pool.close(), pool.apply(int)))


def test_r01_a_token_that_a_task_binds_ends_with_the_task(settings):
    """A context that a task attaches is not visible to the next task on the same thread."""

    def spoil():
        otel_context.attach(otel_context.set_value("spoiled", True))
        raise ValueError("spoiled")

    def body(pool):
        with pytest.raises(ValueError, match="spoiled"):
            pool.apply(spoil)
        return pool.apply(otel_context.get_value, ("spoiled",))

    with ended(ThreadPool(1)) as pool:
        assert served(BOB, settings, lambda: body(pool)) is None


def test_r01_a_task_has_its_submitters_whole_context(settings):
    """A task has its submitter's complete context, including the trace."""

    def body(pool):
        attached = otel_context.attach(otel_context.set_value("trace", "bobs"))
        try:
            return pool.apply(otel_context.get_value, ("trace",))
        finally:
            otel_context.detach(attached)

    with ended(ThreadPool(1)) as pool:
        assert served(BOB, settings, lambda: body(pool)) == "bobs"


# ---- Thread pools: the pool's own threads


def callback(echo, settings, pool, seen):
    served(BOB, settings, lambda: pool.apply_async(int, callback=lambda _: seen.put(send(echo))))


def error_callback(echo, settings, pool, seen):
    served(BOB, settings, lambda: pool.map_async(int, "x", error_callback=lambda _: seen.put(send(echo))))


def iterable_of_imap(echo, settings, pool, seen):
    def items():
        seen.put(send(echo))
        yield 1

    served(BOB, settings, lambda: list(pool.imap(int, items())))


class Lazy(list):
    """A sequence that runs a function when it is iterated."""

    def __init__(self, load):
        super().__init__([1])
        self.load = load

    def __iter__(self):
        self.load()
        return super().__iter__()


def sequence_of_map(echo, settings, pool, seen):
    served(BOB, settings, lambda: pool.map(int, Lazy(lambda: seen.put(send(echo)))))


def successor_of_a_worker(echo, settings, pool, seen):
    """End a worker in a task, so that the pool starts a replacement."""
    served(BOB, settings, lambda: pool.apply_async(sys.exit))
    pool._pool[0].join(PATIENCE)
    pool._change_notifier.put(None)
    outside(lambda: seen.put(pool.apply(send, (echo,))))


POOL_THREADS = (
    callback,
    error_callback,
    iterable_of_imap,
    sequence_of_map,
    pytest.param(
        successor_of_a_worker,
        marks=pytest.mark.filterwarnings("ignore:Exception in thread:pytest.PytestUnhandledThreadExceptionWarning"),
    ),
)

every_pool_thread = pytest.mark.parametrize("use", POOL_THREADS)


def in_threads_of_pool(use, echo, settings):
    seen = queue.SimpleQueue()
    with being_served(ALICE, settings, lambda: ThreadPool(1)) as pool:
        use(echo, settings, pool, seen)
        found = seen.get(timeout=PATIENCE)
        pool.terminate()
        pool.join()
    return found


@every_pool_thread
def test_r01_threads_of_a_pool_have_no_token(use, echo, settings):
    """A pool's own threads have no token."""
    assert in_threads_of_pool(use, echo, settings) == NOTHING


@every_pool_thread
def test_r01_only_the_hook_keeps_the_creators_token_out(use, echo, settings, monkeypatch):
    """Without the hook, a pool's own threads have the token of the request that created the pool."""
    pool = multiprocessing.pool.Pool
    monkeypatch.setattr(pool, "__init__", pool.__init__.__wrapped__)

    assert in_threads_of_pool(use, echo, settings) == ALICE


def test_r01_work_for_threads_of_a_pool_can_be_carried(echo, settings):
    """A callback and an iterable that the request carries have the request's token."""
    seen = queue.SimpleQueue()

    def items():
        yield send(echo)

    def body(pool):
        pool.apply_async(int, callback=carry(lambda _: seen.put(send(echo))))
        return list(pool.imap(str, carry(items)()))

    with being_served(ALICE, settings, lambda: ThreadPool(1)) as pool, ended(pool):
        assert served(BOB, settings, lambda: (*body(pool), seen.get(timeout=PATIENCE))) == (BOB, BOB)


def test_r01_initializers_have_no_token(echo, settings):
    """A thread pool's initializer has no token, like an executor's initializer."""
    seen = queue.SimpleQueue()

    with being_served(ALICE, settings, lambda: ThreadPool(1, lambda: seen.put(send(echo)))) as pool, ended(pool):
        assert seen.get(timeout=PATIENCE) == NOTHING


# ---- Process pools


def test_r01_process_pools_keep_working(echo, settings):
    """A process pool returns correct results, and its callbacks have no token."""
    seen = queue.SimpleQueue()

    def body():
        return multiprocessing.get_context("spawn").Pool(1)

    def use(pool):
        pool.apply_async(math.sqrt, (4,), callback=lambda _: seen.put(send(echo))).get(PATIENCE)
        return [
            pool.apply(math.sqrt, (9,)),
            pool.map(operator.neg, ITEMS),
            pool.starmap(pow, PAIRS, 2),
            list(pool.imap(operator.neg, ITEMS)),
            sorted(pool.imap_unordered(operator.neg, ITEMS, 2)),
        ]

    with being_served(ALICE, settings, body) as pool, ended(pool):
        results = served(BOB, settings, lambda: use(pool))

    negative = [-item for item in ITEMS]
    assert results == [3.0, negative, [1, 1, 4, 27, 256], negative, sorted(negative)]
    assert seen.get(timeout=PATIENCE) == NOTHING


def test_r01_pools_are_not_imported_by_install_and_are_restored_by_uninstall():
    """Installing does not import the pool module, and uninstalling restores the module's original methods."""
    code = """
import sys
from otel_token_relay import install, uninstall, use_token
install()
with use_token("alice-token-0001"):
    print("multiprocessing.pool" in sys.modules)
import multiprocessing.pool as pool
hooked = dict(vars(pool.Pool))
uninstall()
print(sorted(name for name in hooked if hooked[name] is not vars(pool.Pool)[name]))
functions = {name: value for name, value in vars(pool.Pool).items() if type(value) is type(install)}
print([name for name, value in functions.items() if hasattr(value, "__wrapped__")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)

    assert done.stdout.splitlines() == [
        "False",
        "['__init__', '_map_async', 'apply_async', 'imap', 'imap_unordered']",
        "[]",
    ]


# ---- joblib


@pytest.mark.parametrize("options", [{}, {"pre_dispatch": 1}, {"batch_size": 3}, {"return_as": "generator"}])
def test_r01_all_tasks_of_a_joblib_call_have_its_token(options, echo, settings):
    """Every task of a joblib call has the token of the request that makes the call."""
    joblib = pytest.importorskip("joblib")

    def use(token):
        items = (joblib.delayed(send)(echo) for _ in range(12))
        seen = served(token, settings, lambda: list(joblib.Parallel(2, backend="threading", **options)(items)))
        return set(seen)

    with being_served(ALICE, settings, lambda: None):
        assert use(BOB) == {BOB}
        assert use(None) == {NOTHING}


def test_r01_each_call_has_its_own_token_in_a_pool_that_joblib_keeps(echo, settings):
    """Each joblib call has its own request's token, even in a pool that an earlier request created."""
    joblib = pytest.importorskip("joblib")
    parallel = joblib.Parallel(2, backend="threading")

    def use():
        return set(parallel(joblib.delayed(send)(echo) for _ in range(12)))

    with being_served(ALICE, settings, lambda: (parallel.__enter__(), use())[1]) as seen:
        assert seen == {ALICE}
        assert served(BOB, settings, use) == {BOB}
        assert served(None, settings, use) == {NOTHING}
    parallel.__exit__(None, None, None)
