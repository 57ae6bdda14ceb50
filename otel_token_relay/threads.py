"""Carry the token into the threads of a request, and keep it out of threads that serve all requests.

Two rules hold for every pool and worker thread:

* A task runs in the context of the request that submitted it.
* A thread that works for all requests has no token, regardless of which request started it.

OpenTelemetry's threading instrumentation carries the context into ``Thread``, ``Timer`` and
``ThreadPoolExecutor``. Authentication must not depend on whether an operator enabled it for traces,
so the relay enables it, as late as possible: before the first token is bound. By then the application
has enabled its own instrumentation, and nothing is imported while OpenTelemetry is importing this
package. With the instrumentation, a thread has the context of the code that started it; the hooks of
this module remove the token if such a thread outlives the request.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import thread as futures_thread
from threading import Timer
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from otel_token_relay.context import TOKEN_KEY, with_token
from otel_token_relay.patching import Function, Patches
from otel_token_relay.runtime import Runtime

_STANDARD_LIBRARY: Final = None

SHARED_WORKERS: Final[Mapping[str, tuple[str | None, tuple[str, ...]]]] = {
    "asyncio.base_events": (_STANDARD_LIBRARY, ("Server._start_serving",)),
    # Instrumentation does not wrap an overridden `run`, but in Python 3.14 every thread can inherit a context.
    "concurrent.futures.process": (_STANDARD_LIBRARY, ("_ExecutorManagerThread.run",)),
    "logging.handlers": (_STANDARD_LIBRARY, ("QueueListener.start",)),
    "multiprocessing.managers": (_STANDARD_LIBRARY, ("Server.serve_forever",)),
    # The thread pickles the objects in the queue, which runs the application's code.
    "multiprocessing.queues": (_STANDARD_LIBRARY, ("Queue._start_thread",)),
    "socketserver": (_STANDARD_LIBRARY, ("BaseServer.serve_forever", "BaseServer.handle_request")),
    "apscheduler.schedulers.base": ("apscheduler", ("BaseScheduler._process_jobs",)),
    # One thread of a channel runs the done callbacks of all calls, further ones those of `Channel.subscribe`.
    "grpc._channel": ("grpcio", ("_run_channel_spin_thread", "_poll_connectivity", "_deliver")),
    "trio._core._thread_cache": ("trio", ("WorkerThread.__init__",)),
    "twisted._threads._threadworker": ("twisted", ("ThreadWorker.__init__",)),
}
"""The functions that start a thread for all requests, or run in one: by module, with its package on PyPI.

They include servers: their clients are not the request in which the server was started.
"""


def load_instrumentor() -> Any:
    """Return OpenTelemetry's instrumentor of threads, which is a singleton."""
    # Not at the top: it needs `opentelemetry.propagate`, and this module is imported while that is.
    from opentelemetry.instrumentation.threading import ThreadingInstrumentor

    return ThreadingInstrumentor()


class ThreadCarriage:
    """The changes through which threads carry the token, kept to undo them."""

    def __init__(self) -> None:
        self._patches = Patches()
        self._ours: Any = None
        self._timer_has_own_start = False

    def switch_on(self, instrumentor: Any) -> None:
        """Instrument threads if they are not instrumented yet, and keep the token out of executors' own threads.

        A thread of an executor runs its initializer, and the callbacks of the futures of all requests.
        """
        if not instrumentor.is_instrumented_by_opentelemetry:
            self._timer_has_own_start = "start" in vars(Timer)
            instrumentor.instrument(skip_dep_check=True)
            self._ours = instrumentor
        self._patches.wrap(futures_thread, "_worker", _without_token)

    def switch_off(self) -> None:
        """Undo `switch_on`, except for instrumentation that the application enabled or has removed."""
        self._patches.undo()
        instrumentor, self._ours = self._ours, None
        if instrumentor is None or not instrumentor.is_instrumented_by_opentelemetry:
            return
        instrumentor.uninstrument()
        # `uninstrument` leaves its wrapper of the inherited method behind.
        if not self._timer_has_own_start and "start" in vars(Timer):
            del Timer.start


def patch_shared_workers(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Keep the token out of the functions of *module* in `SHARED_WORKERS`."""
    _, names = SHARED_WORKERS[module.__name__]
    for name in names:
        class_name, _, function_name = name.rpartition(".")
        patches.wrap(getattr(module, class_name) if class_name else module, function_name, _without_token)


def patch_pools(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Carry the submitter's token into the tasks of a ``ThreadPool``, and keep it out of the pool's own threads.

    *module* is ``multiprocessing.pool``, or a copy of it. Every method that submits tasks calls one
    of the four that are wrapped here. The tasks of a process pool are pickled, and are not changed.
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
                mapper = _in_this_context(mapper)  # called for each chunk, not for each item
            return original(self, func, iterable, mapper, *args, **kwargs)

        return submit

    # The three threads that manage a pool start its workers, now and later, run callbacks, and read iterables.
    patches.wrap(module.Pool, "__init__", _without_token)
    for name in ("apply_async", "imap", "imap_unordered"):
        patches.wrap(module.Pool, name, carrying_function)
    patches.wrap(module.Pool, "_map_async", carrying_mapper)


def patch_joblib(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Make joblib submit all tasks of a call in the context of that call.

    *module* is ``joblib.parallel``. It submits most tasks in the callback of an earlier one, which
    runs in a thread of the pool.
    """

    def remembering(original: Function) -> Function:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            self._token_relay_context = otel_context.get_current()

        return __init__

    def resuming(original: Function) -> Function:
        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
            context: Context = getattr(self, "_token_relay_context", None) or otel_context.get_current()
            attached = otel_context.attach(context)
            try:
                return original(self, *args, **kwargs)
            finally:
                otel_context.detach(attached)

        return __call__

    patches.wrap(module.BatchCompletionCallBack, "__init__", remembering)
    patches.wrap(module.BatchCompletionCallBack, "__call__", resuming)


def _in_this_context(function: Function) -> Function:
    """Return *function*, bound to the current context if that is a request's, with or without a token."""
    context = otel_context.get_current()
    if TOKEN_KEY not in context:
        return function

    def bound(*args: Any, **kwargs: Any) -> Any:
        attached = otel_context.attach(context)
        try:
            return function(*args, **kwargs)
        finally:
            otel_context.detach(attached)

    return bound


def _without_token(original: Function) -> Function:
    def without_token(*args: Any, **kwargs: Any) -> Any:
        """Run or start work for all requests, without the token of the request that happens to start it."""
        if TOKEN_KEY not in otel_context.get_current():
            return original(*args, **kwargs)
        attached = otel_context.attach(with_token(None))
        try:
            return original(*args, **kwargs)
        finally:
            otel_context.detach(attached)

    return without_token
