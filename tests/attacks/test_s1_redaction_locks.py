"""s1: redaction acquires no lock during an export, a collection, or the end of a record."""

from __future__ import annotations

import gc
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry._logs import LogRecord
from opentelemetry.context import Context
from opentelemetry.metrics import Observation
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_token_relay
from otel_token_relay import Settings, install, use_token
from otel_token_relay.redaction import RedactingSpanExporter, installation, known_tokens
from otel_token_relay.redaction.known_tokens import REMEMBERED, RememberedTokens, listen, stop_listening
from otel_token_relay.redaction.scrubber import MASK
from otel_token_relay.verification.circuit_breaker import CircuitBreaker
from otel_token_relay.verification.introspection import Introspection
from otel_token_relay.verification.jwks_client import KeySource, KeyTimes
from tests.redaction.corpus import OWN_OPAQUE

# This timeout only prevents a failed test from hanging; no test depends on time.
_HANG_GUARD = 15.0


@contextmanager
def locked() -> Iterator[None]:
    """Hold the lock of the remembered tokens in another thread until the block ends."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with REMEMBERED._lock:
            held.set()
            done.wait(2 * _HANG_GUARD)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert held.wait(_HANG_GUARD)
    try:
        yield
    finally:
        done.set()
        thread.join()


def ends(work: Callable[[], object]) -> bool:
    """Return whether *work* completes while the lock is held."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    with locked():
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(_HANG_GUARD)
        is_over = not thread.is_alive()
    assert failures == []
    return is_over


@pytest.fixture(autouse=True)
def redaction() -> None:
    install(Settings())


def older_trace() -> int:
    """Return the ID of a trace in the older generation, which must stay there when it is read."""
    trace_id = 4711
    REMEMBERED.remember(trace_id, OWN_OPAQUE)
    REMEMBERED.older_traces, REMEMBERED.recent_traces = REMEMBERED.recent_traces, {}
    return trace_id


def test_s1_spans_end_and_are_exported_while_the_lock_is_held() -> None:
    """Spans end and are exported while the lock is held, in recent, older, and unknown traces."""
    simple, batch = InMemorySpanExporter(), InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(simple))
    provider.add_span_processor(BatchSpanProcessor(batch))
    tracer = provider.get_tracer("t")
    with use_token(OWN_OPAQUE):
        held = tracer.start_span(f"of {OWN_OPAQUE}")
    parent = trace.SpanContext(older_trace(), 1, is_remote=True, trace_flags=trace.TraceFlags(1))
    of_older = tracer.start_span(
        f"of {OWN_OPAQUE}", trace.set_span_in_context(trace.NonRecordingSpan(parent), Context())
    )
    of_none = tracer.start_span("of none", Context())

    def work() -> None:
        for span in (held, of_older, of_none):
            span.end()
        tracer.start_span("of none", Context()).end()
        provider.force_flush()

    assert ends(work)
    assert [span.name for span in simple.get_finished_spans()] == [f"of {MASK}"] * 2 + ["of none"] * 2
    assert len(batch.get_finished_spans()) == 4
    provider.shutdown()


def test_s1_a_redacting_span_exporter_does_not_wait() -> None:
    """`RedactingSpanExporter` exports a span while the lock is held."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(RedactingSpanExporter(exporter, Settings())))
    try:
        with use_token(OWN_OPAQUE):
            pass
        span = provider.get_tracer("t").start_span(f"of {OWN_OPAQUE}", Context())
        assert ends(lambda: (span.end(), provider.force_flush()))
    finally:
        stop_listening()
        provider.shutdown()

    assert [span.name for span in exporter.get_finished_spans()] == [f"of {MASK}"]


def test_s1_log_records_are_emitted_and_exported_while_the_lock_is_held() -> None:
    """Log records are emitted and exported while the lock is held, with and without a trace."""
    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter))
    logger = provider.get_logger("t")
    trace_id = older_trace()

    def work() -> None:
        logger.emit(LogRecord(timestamp=1, trace_id=trace_id, span_id=1, body=f"of {OWN_OPAQUE}"))
        logger.emit(LogRecord(timestamp=1, body="of none"))
        provider.force_flush()

    assert ends(work)
    bodies = [record.log_record.body for record in exporter.get_finished_logs()]
    assert sorted(map(str, bodies)) == [f"of {MASK}"] * 2 + ["of none"] * 2
    provider.shutdown()


def test_s1_metrics_are_recorded_and_collected_while_the_lock_is_held() -> None:
    """Metrics are recorded and collected while the lock is held, including by a callback."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    meter = provider.get_meter("t")
    counter = meter.create_counter("c")
    meter.create_observable_gauge("g", [lambda _: [Observation(1, {"a": f"of {OWN_OPAQUE}"})]])
    with use_token(OWN_OPAQUE):
        pass
    parent = trace.SpanContext(older_trace(), 1, is_remote=True)
    context = trace.set_span_in_context(trace.NonRecordingSpan(parent), Context())
    collected: list[Any] = []

    def work() -> None:
        counter.add(1, {"a": f"of {OWN_OPAQUE}"}, context)
        meter.create_histogram("made.meanwhile").record(1)
        collected.append(reader.get_metrics_data())

    assert ends(work)
    text = collected[0].to_json()
    assert OWN_OPAQUE not in text
    assert text.count(f"of {MASK}") == 2
    provider.shutdown()


def test_s1_a_finalizer_can_bind_a_token_while_its_own_thread_holds_the_lock() -> None:
    """A finalizer can bind a token in a thread that holds the lock, even during garbage collection."""
    remembered = RememberedTokens()
    ran = threading.Event()

    class Cycle:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            remembered.remember(1, OWN_OPAQUE)
            remembered.remember_without_trace(OWN_OPAQUE)
            ran.set()

    def work() -> None:
        Cycle()
        with remembered._lock:  # same as in `remember`
            gc.collect()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_HANG_GUARD)

    assert ran.is_set()
    assert remembered.of_trace(1).values == (OWN_OPAQUE,)


def _while_locked() -> dict[str, tuple[Callable[[], Any], Callable[[], object]]]:
    """Map each lock of the package to work that acquires the lock."""
    breaker = CircuitBreaker(time.monotonic)
    introspection = Introspection("https://127.0.0.1:9/introspect", timeout=0.1)
    keys = KeySource("https://127.0.0.1:9", frozenset({"RS256"}), times=KeyTimes(timeout=0.1))
    return {
        "remembered tokens": (lambda: REMEMBERED._lock, lambda: REMEMBERED.remember(1, OWN_OPAQUE)),
        "listeners": (lambda: known_tokens._lock, lambda: (listen(), stop_listening())),
        "hooks": (lambda: installation._hooks.lock, installation.states),
        "circuit breaker": (lambda: breaker._lock, lambda: breaker.record_failure(b"key")),
        "introspection": (lambda: introspection._lock, lambda: introspection.look_up(b"key", OWN_OPAQUE)),
        "keys": (lambda: keys._lock, keys._launch),
    }


@pytest.mark.parametrize("name", _while_locked())
def test_s1_a_finalizer_can_take_each_lock_that_its_own_thread_holds(name: str) -> None:
    """A finalizer can acquire any lock that its own thread already holds."""
    lock, work = _while_locked()[name]
    ran = threading.Event()

    class Cycle:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            work()
            ran.set()

    def collect() -> None:
        Cycle()
        with lock():
            gc.collect()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(_HANG_GUARD)

    assert ran.is_set()


def test_s1_each_lock_of_the_package_is_reentrant() -> None:
    """Every lock of the package is reentrant, except for locks in the demo, which runs in its own process."""
    package = Path(otel_token_relay.__file__).parent
    sources = [path for path in package.rglob("*.py") if "demo" not in path.relative_to(package).parts]
    plain = re.compile(r"\b(?:Lock|Condition(?!\(threading\.RLock\(\)\))|Queue|BoundedSemaphore|Barrier)\(")
    found = [path.name for path in sources if plain.search(path.read_text("utf-8"))]

    assert len(sources) > 50
    assert found == []


def test_s1_reading_a_trace_extends_how_long_it_is_remembered() -> None:
    """A trace that is read regularly stays remembered."""
    remembered = RememberedTokens(traces=4)
    remembered.remember(1, OWN_OPAQUE)

    for number in range(100):
        assert remembered.of_trace(1).values == (OWN_OPAQUE,)
        remembered.remember(number + 2, f"another-token-{number:06}")

    assert len(remembered.recent_traces) + len(remembered.older_traces) <= 10
