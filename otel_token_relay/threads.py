"""Carry the token into threads that work for one request, and remove it from threads that multiple requests share.

The following rules apply to every pool and worker thread:

* A task runs in the context of the request that submitted it.
* A thread that multiple requests share has no token, regardless of which request started it.

OpenTelemetry's threading instrumentation carries the context into ``Thread``, ``Timer``, and ``ThreadPoolExecutor``.
Authentication must not depend on whether an operator has enabled that instrumentation for tracing. Therefore, the relay
enables the instrumentation itself, just before the first token is bound. At that point, the application has already
enabled its own instrumentation, and OpenTelemetry has finished importing this package.

An instrumented thread inherits the context of the code that starts it. This module's hooks remove the token from
threads that can outlive the request.
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
    # The instrumentation does not wrap an overridden `run` method. However, in Python 3.14 and later, any thread can
    # inherit a context.
    "concurrent.futures.process": (_STANDARD_LIBRARY, ("_ExecutorManagerThread.run",)),
    "logging.handlers": (_STANDARD_LIBRARY, ("QueueListener.start",)),
    "multiprocessing.managers": (_STANDARD_LIBRARY, ("Server.serve_forever",)),
    # The queue's thread pickles objects, and pickling can run application code.
    "multiprocessing.queues": (_STANDARD_LIBRARY, ("Queue._start_thread",)),
    "socketserver": (_STANDARD_LIBRARY, ("BaseServer.serve_forever", "BaseServer.handle_request")),
    "apscheduler.schedulers.base": ("apscheduler", ("BaseScheduler._process_jobs",)),
    # Each channel has a single thread that runs the done callbacks for all of its calls. Separate threads run the
    # callbacks that are registered with `Channel.subscribe`.
    "grpc._channel": ("grpcio", ("_run_channel_spin_thread", "_poll_connectivity", "_deliver")),
    "trio._core._thread_cache": ("trio", ("WorkerThread.__init__",)),
    "twisted._threads._threadworker": ("twisted", ("ThreadWorker.__init__",)),
}
"""For each module, its PyPI package and the functions that start a shared worker thread or run in one.

Functions that run servers are included, because a request can start a server whose clients are unrelated to that
request.
"""


def load_instrumentor() -> Any:
    """Return OpenTelemetry's singleton threading instrumentor."""
    # A top-level import could cause an import cycle, because the instrumentation imports `opentelemetry.propagate`,
    # which can import this package's propagator.
    from opentelemetry.instrumentation.threading import ThreadingInstrumentor

    return ThreadingInstrumentor()


class ThreadCarriage:
    """The changes that make threads carry the token. The changes are recorded so that `switch_off` can undo them."""

    def __init__(self) -> None:
        self._patches = Patches()
        self._ours: Any = None
        self._timer_has_own_start = False

    def switch_on(self, instrumentor: Any) -> None:
        """Enable the threading instrumentation, and remove the token from executor threads.

        If the application has already enabled the instrumentation, it is not changed.

        An executor's threads run its initializer and the callbacks for futures from all requests.
        """
        if not instrumentor.is_instrumented_by_opentelemetry:
            self._timer_has_own_start = "start" in vars(Timer)
            with without_choosing_conventions():
                instrumentor.instrument(skip_dep_check=True)
            self._ours = instrumentor
        self._patches.wrap(futures_thread, "_worker", _without_token)

    def switch_off(self) -> None:
        """Undo the changes that `switch_on` made.

        If the application enabled or removed the instrumentation, it is not changed.
        """
        self._patches.undo()
        instrumentor, self._ours = self._ours, None
        if instrumentor is None or not instrumentor.is_instrumented_by_opentelemetry:
            return
        instrumentor.uninstrument()
        # `uninstrument` does not remove the wrapper that `instrument` added for the inherited method.
        if not self._timer_has_own_start and "start" in vars(Timer):
            del Timer.start


def patch_shared_workers(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Make the functions that `SHARED_WORKERS` lists for *module* run without a token."""
    _, names = SHARED_WORKERS[module.__name__]
    for name in names:
        class_name, _, function_name = name.rpartition(".")
        patches.wrap(getattr(module, class_name) if class_name else module, function_name, _without_token)


# The name of the event loop method that schedules the closing of abandoned asynchronous generators.
_FINALIZER: Final = "_asyncgen_finalizer_hook"


def patch_finalizers(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Make event loops close abandoned asynchronous generators without a token.

    The *module* is ``asyncio.base_events`` or ``uvloop``. Garbage collection can run during any request. Without this
    patch, a task that closes one request's generator can copy a different request's context.
    """
    loop_class: type = module.BaseEventLoop if hasattr(module, "BaseEventLoop") else module.Loop
    patches.override(loop_class, _FINALIZER, _without_token)
    # An event loop looks up this method only when it starts, but some servers import the application, which installs
    # the relay, while the loop is already running.
    finalizer = sys.get_asyncgen_hooks().finalizer
    loop = getattr(finalizer, "__self__", None)
    if isinstance(loop, loop_class) and getattr(finalizer, "__name__", "") == _FINALIZER:
        sys.set_asyncgen_hooks(finalizer=getattr(loop, _FINALIZER))


def patch_pools(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Carry the token into the tasks of a ``ThreadPool``, and remove it from the pool's own threads.

    The *module* is ``multiprocessing.pool`` or a copy of that module. This function wraps four methods, because every
    method that submits tasks calls at least one of them. Tasks for a process pool are not changed, because they are
    pickled.
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

    # A pool has three management threads, which start its workers, run callbacks, and read iterables.
    patches.wrap(module.Pool, "__init__", _without_token)
    for name in ("apply_async", "imap", "imap_unordered"):
        patches.wrap(module.Pool, name, carrying_function)
    patches.wrap(module.Pool, "_map_async", carrying_mapper)


def patch_joblib(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Make joblib submit all tasks of a parallel call in that call's context.

    The *module* is ``joblib.parallel``. After submitting the first tasks, joblib submits each remaining task from an
    earlier task's callback, which runs in one of the pool's threads.
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
    """Return a function that calls *function* in the current context.

    If the context is not bound (see `is_bound`), return *function* unchanged.
    """
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
        """Call the original function without the token of the request that is being processed."""
        if not is_bound(otel_context.get_current()):
            return original(*args, **kwargs)
        return _call_in(with_token(None), original, *args, **kwargs)

    return without_token
