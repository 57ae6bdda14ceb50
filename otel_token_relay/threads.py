"""Carry the token into a request's threads, and keep it out of threads that serve all requests.

Two rules hold for every pool and worker thread:

* A task runs in the context of the request that submitted it.
* A thread that serves all requests has no token, regardless of which request started it.

OpenTelemetry's threading instrumentation carries the context into ``Thread``, ``Timer``, and ``ThreadPoolExecutor``.
Authentication must not depend on whether an operator enabled that instrumentation for tracing. Therefore, the relay
enables the instrumentation itself, as late as possible: just before the first token is bound. By then, the application
has enabled its own instrumentation, and OpenTelemetry is no longer in the middle of importing this package. With the
instrumentation, a thread has the context of the code that started it. This module's hooks remove the token from threads
that outlive the request.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from concurrent.futures import thread as futures_thread
from threading import Timer
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from otel_token_relay.context import is_bound, with_token
from otel_token_relay.otel import without_choosing_conventions
from otel_token_relay.patching import Function, Patches
from otel_token_relay.runtime import Runtime

_STANDARD_LIBRARY: Final = None

SHARED_WORKERS: Final[Mapping[str, tuple[str | None, tuple[str, ...]]]] = {
    "asyncio.base_events": (_STANDARD_LIBRARY, ("Server._start_serving",)),
    # Instrumentation does not wrap an overridden `run`, but in Python 3.14, any thread can inherit a context.
    "concurrent.futures.process": (_STANDARD_LIBRARY, ("_ExecutorManagerThread.run",)),
    "logging.handlers": (_STANDARD_LIBRARY, ("QueueListener.start",)),
    "multiprocessing.managers": (_STANDARD_LIBRARY, ("Server.serve_forever",)),
    # This thread pickles the objects in the queue, and pickling runs application code.
    "multiprocessing.queues": (_STANDARD_LIBRARY, ("Queue._start_thread",)),
    "socketserver": (_STANDARD_LIBRARY, ("BaseServer.serve_forever", "BaseServer.handle_request")),
    "apscheduler.schedulers.base": ("apscheduler", ("BaseScheduler._process_jobs",)),
    # One thread per channel runs the done callbacks for all of the channel's calls. Other threads run the callbacks for
    # `Channel.subscribe`.
    "grpc._channel": ("grpcio", ("_run_channel_spin_thread", "_poll_connectivity", "_deliver")),
    "trio._core._thread_cache": ("trio", ("WorkerThread.__init__",)),
    "twisted._threads._threadworker": ("twisted", ("ThreadWorker.__init__",)),
}
"""Each module's PyPI package, and the module's functions that start or run in a thread that serves all requests.

The functions include servers, because a server's clients are unrelated to the request in which the server was started.
"""


def load_instrumentor() -> Any:
    """Return OpenTelemetry's threading instrumentor, which is a singleton."""
    # Not imported at the top: it requires `opentelemetry.propagate`, and importing that module may import this one.
    from opentelemetry.instrumentation.threading import ThreadingInstrumentor

    return ThreadingInstrumentor()


class ThreadCarriage:
    """The changes that make threads carry the token, recorded so that they can be undone."""

    def __init__(self) -> None:
        self._patches = Patches()
        self._ours: Any = None
        self._timer_has_own_start = False

    def switch_on(self, instrumentor: Any) -> None:
        """Instrument threads if they are not instrumented yet, and keep the token out of executors' own threads.

        An executor's thread runs the executor's initializer and the callbacks for the futures of all requests.
        """
        if not instrumentor.is_instrumented_by_opentelemetry:
            self._timer_has_own_start = "start" in vars(Timer)
            with without_choosing_conventions():
                instrumentor.instrument(skip_dep_check=True)
            self._ours = instrumentor
        self._patches.wrap(futures_thread, "_worker", _without_token)

    def switch_off(self) -> None:
        """Undo `switch_on`, but do not touch instrumentation that the application enabled or has already removed."""
        self._patches.undo()
        instrumentor, self._ours = self._ours, None
        if instrumentor is None or not instrumentor.is_instrumented_by_opentelemetry:
            return
        instrumentor.uninstrument()
        # `uninstrument` leaves its wrapper around the inherited method behind.
        if not self._timer_has_own_start and "start" in vars(Timer):
            del Timer.start


def patch_shared_workers(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Keep the token out of the functions that `SHARED_WORKERS` lists for *module*."""
    _, names = SHARED_WORKERS[module.__name__]
    for name in names:
        class_name, _, function_name = name.rpartition(".")
        patches.wrap(getattr(module, class_name) if class_name else module, function_name, _without_token)


# The event loop method that schedules the closing of an abandoned asynchronous generator.
_FINALIZER: Final = "_asyncgen_finalizer_hook"


def patch_finalizers(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Close abandoned asynchronous generators without a token.

    *module* is ``asyncio.base_events`` or ``uvloop``. Garbage collection can run during any request, and a task that
    closes a different request's generator would otherwise get a copy of the current request's context.
    """
    loop_class: type = module.BaseEventLoop if hasattr(module, "BaseEventLoop") else module.Loop
    patches.override(loop_class, _FINALIZER, _without_token)
    # A running loop keeps the method that it found when it started. Some servers import the application, and therefore
    # install the relay, while the loop is running.
    finalizer = sys.get_asyncgen_hooks().finalizer
    loop = getattr(finalizer, "__self__", None)
    if isinstance(loop, loop_class) and getattr(finalizer, "__name__", "") == _FINALIZER:
        sys.set_asyncgen_hooks(finalizer=getattr(loop, _FINALIZER))


def patch_pools(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Carry the submitter's token into the tasks of a ``ThreadPool``, and keep it out of the pool's own threads.

    *module* is ``multiprocessing.pool`` or a copy of it. Every method that submits tasks calls one of the four methods
    that are wrapped here. A process pool's tasks are pickled, so they are left unchanged.
    """

    def carrying_function(original: Function) -> Function:
        def submit(self: Any, func: Function, *args: Any, **kwargs: Any) -> Any:
            if isinstance(self, module.ThreadPool):
                func = _in_this_context(func)
            return original(self, func, *args, **kwargs)

        return submit

    def carrying_mapper(original: Function) -> Function:
        def submit(self: Any, func: Function, iterable: Any, mapper: Function, *args: Any, **kwargs: Any) -> Any:
            if isinstance(self, module.ThreadPool):
                mapper = _in_this_context(mapper)  # called once per chunk, not once per item
            return original(self, func, iterable, mapper, *args, **kwargs)

        return submit

    # The three threads that manage a pool start its workers (now and later), run callbacks, and read iterables.
    patches.wrap(module.Pool, "__init__", _without_token)
    for name in ("apply_async", "imap", "imap_unordered"):
        patches.wrap(module.Pool, name, carrying_function)
    patches.wrap(module.Pool, "_map_async", carrying_mapper)


def patch_joblib(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Make joblib submit all of a call's tasks in that call's context.

    *module* is ``joblib.parallel``. joblib submits most tasks from an earlier task's callback, which runs in one of the
    pool's threads.
    """

    def remembering(original: Function) -> Function:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            self._token_relay_context = otel_context.get_current()

        return __init__

    def resuming(original: Function) -> Function:
        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
            context: Context = getattr(self, "_token_relay_context", None) or otel_context.get_current()
            return _call_in(context, original, self, *args, **kwargs)

        return __call__

    patches.wrap(module.BatchCompletionCallBack, "__init__", remembering)
    patches.wrap(module.BatchCompletionCallBack, "__call__", resuming)


def _in_this_context(function: Function) -> Function:
    """Return *function*, bound to the current context if it shows on whose behalf code runs; see `is_bound`."""
    context = otel_context.get_current()
    if not is_bound(context):
        return function

    return functools.partial(_call_in, context, function)


def _call_in(context: Context, function: Function, /, *args: Any, **kwargs: Any) -> Any:
    attached = otel_context.attach(context)
    try:
        return function(*args, **kwargs)
    finally:
        otel_context.detach(attached)


def _without_token(original: Function) -> Function:
    def without_token(*args: Any, **kwargs: Any) -> Any:
        """Run or start work that serves all requests, without the token of the call that happens to start it."""
        if not is_bound(otel_context.get_current()):
            return original(*args, **kwargs)
        return _call_in(with_token(None), original, *args, **kwargs)

    return without_token
