"""Threads: OpenTelemetry's own threading instrumentation, switched on where the user has not.

It takes the context into ``Thread``, ``Timer`` and ``ThreadPoolExecutor``. Authentication must not
hang on whether somebody wanted that for traces, so the relay sees to it, at the last moment:
before the first token is bound. By then the application has switched on what it wants itself,
and nothing is imported while OpenTelemetry is importing us.
"""

from __future__ import annotations

from concurrent.futures import thread as futures_thread
from threading import Timer
from typing import Any

from opentelemetry import context as otel_context

from otel_token_relay.context import with_token
from otel_token_relay.patching import Function, Patches


def load_instrumentor() -> Any:
    """Give OpenTelemetry's instrumentor of threads, of which there is one.

    Not at the top: this module is imported while ``opentelemetry.propagate`` is, which that needs.
    """
    from opentelemetry.instrumentation.threading import ThreadingInstrumentor

    return ThreadingInstrumentor()


class ThreadCarriage:
    """What was done so that threads carry the token, for taking it back."""

    def __init__(self) -> None:
        self._patches = Patches()
        self._ours: Any = None
        self._timer_has_own_start = False

    def switch_on(self, instrumentor: Any) -> None:
        """Instrument threads, unless they are, and keep the token out of executors' own threads."""
        if not instrumentor.is_instrumented_by_opentelemetry:
            self._timer_has_own_start = "start" in vars(Timer)
            instrumentor.instrument(skip_dep_check=True)
            self._ours = instrumentor
        self._patches.wrap(futures_thread, "_worker", _without_token)

    def switch_off(self) -> None:
        """Undo `switch_on`, as far as it was ours and still stands."""
        self._patches.undo()
        instrumentor, self._ours = self._ours, None
        if instrumentor is None or not instrumentor.is_instrumented_by_opentelemetry:
            return
        instrumentor.uninstrument()
        # It leaves its wrapper of the inherited method behind.
        if not self._timer_has_own_start and "start" in vars(Timer):
            del Timer.start


def _without_token(original: Function) -> Function:
    def _worker(*args: Any) -> Any:
        """Run an executor's thread, which would keep the context of whoever made the pool grow.

        Its initializer and the callbacks of other users' futures run in that; work brings its own.
        """
        attached = otel_context.attach(with_token(None))
        try:
            return original(*args)
        finally:
            otel_context.detach(attached)

    return _worker
