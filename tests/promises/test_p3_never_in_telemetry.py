"""P3: no span, log record or metric that leaves the process contains a token, whole, in parts or encoded."""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import (
    BatchLogRecordProcessor,
    InMemoryLogRecordExporter,
    SimpleLogRecordProcessor,
)
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ConcurrentMultiSpanProcessor, ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from otel_token_relay import Settings, install, uninstall, use_token
from otel_token_relay.redaction import (
    RedactingFilter,
    RedactingSpanExporter,
    RedactingSpanProcessor,
    installation,
    known_tokens,
    spans,
)
from otel_token_relay.redaction.deferred import DEFERRED
from otel_token_relay.redaction.scrubber import FAILED, MASK, Scrubber
from otel_token_relay.redaction.token_search import _index_of
from tests.redaction.corpus import (
    BENIGN,
    FOREIGN_FORMS,
    FOREIGN_JWT,
    OWN_FORMS,
    OWN_JWT,
    OWN_OPAQUE,
    Encoding,
    fragments,
)
from tests.support.otlp_receiver import otlp_receiver

# The part of a foreign JWT that must be masked: everything after the header, which is not secret.
FOREIGN_SECRET = FOREIGN_JWT[FOREIGN_JWT.index(".") + 1 :]
TOKENS: dict[str, tuple[str, str, dict[str, Encoding], bool]] = {
    "own-jwt": (OWN_JWT, OWN_JWT, OWN_FORMS, True),
    "own-opaque": (OWN_OPAQUE, OWN_OPAQUE, OWN_FORMS, True),
    "foreign-jwt": (FOREIGN_JWT, FOREIGN_SECRET, FOREIGN_FORMS, False),
}


def readable_runs(token: str, *, coded: bool = True) -> list[bytes]:
    """Return every run of 17 characters, and the runs of the base64-encoded token."""
    runs = fragments(token)
    if coded:
        for before in range(3):
            text = base64.b64encode(b"u" * before + token.encode()).decode()[4:-4]
            runs += fragments(text, 24)
    return [run.lower().encode() for run in runs]


def leaks(token: str, data: bytes) -> int:
    """Count the runs of a token that appear in some bytes, ignoring case."""
    lowered = data.lower()
    return sum(run in lowered for run in readable_runs(token))


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    uninstall()
    yield
    uninstall()


class Pipeline:
    """All three signals, with simple and batch exporters added before and after the installation."""

    def __init__(self, resource: Resource | None = None) -> None:
        resource = Resource({"service.name": "test"}) if resource is None else resource
        self.spans = [InMemorySpanExporter() for _ in range(4)]
        self.logs = [InMemoryLogRecordExporter() for _ in range(4)]
        self.tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.loggers = LoggerProvider(resource=resource, shutdown_on_exit=False)
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider(
            [self.reader], resource=resource, exemplar_filter=AlwaysOnExemplarFilter(), shutdown_on_exit=False
        )
        # This tracer and this logger exist before the installation.
        self.tracer = self.tracers.get_tracer("test", "1")
        self.logger = self.loggers.get_logger("test", "1")
        self.meter = self.meters.get_meter("test", "1")
        self.add(0)

    def add(self, at: int) -> None:
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans[at]))
        self.tracers.add_span_processor(BatchSpanProcessor(self.spans[at + 1]))
        self.loggers.add_log_record_processor(SimpleLogRecordProcessor(self.logs[at]))
        self.loggers.add_log_record_processor(BatchLogRecordProcessor(self.logs[at + 1]))

    def exported(self) -> list[bytes]:
        """Return the records that each exporter received, as text. The last item contains the metrics."""
        self.tracers.force_flush()
        self.loggers.force_flush()
        found = []
        for spans_, logs in zip(self.spans, self.logs, strict=True):
            found.append(
                repr([shown(span) for span in spans_.get_finished_spans()])
                + repr([shown(log) for log in logs.get_finished_logs()])
            )
        found.append(repr(shown(self.reader.get_metrics_data())))
        return [text.encode("utf-8", "backslashreplace") for text in found]

    def close(self) -> None:
        self.tracers.shutdown()
        self.loggers.shutdown()
        self.meters.shutdown()


def shown(value: Any, depth: int = 0) -> Any:
    """Return everything that an exporter can reach from a record, including private attributes."""
    if value is None or isinstance(value, (str, bytes, int, float)) or depth > 12:
        return value
    if isinstance(value, Context):
        return None  # contains the token as an object that does not show its value
    if isinstance(value, dict):
        return {str(k): shown(v, depth + 1) for k, v in value.items()}
    if isinstance(value, (SpanContext, SpanKind)):
        return (repr(value), dict(value.trace_state)) if isinstance(value, SpanContext) else repr(value)
    if isinstance(value, (list, tuple, set)):
        # Also joined, since a token may be split over the elements.
        return [shown(item, depth + 1) for item in value], "".join(i for i in value if isinstance(i, str))
    if isinstance(value, (ReadableSpan, ReadableLogRecord)):
        # Reads an attribute, as an exporter does: records are cleaned on first access.
        assert value.resource is not None
        assert DEFERRED not in vars(value)
    if isinstance(value, type) or callable(value):
        return None
    if isinstance(value, BaseException):
        return repr(value)
    state = getattr(value, "__dict__", None)
    if state is None:
        state = {name: getattr(value, name, None) for name in getattr(type(value), "__slots__", ())}
    state = {name: inner for name, inner in state.items() if not name.endswith("lock")}
    if "_dq" in state:
        state["_dq"] = list(state["_dq"])
    return shown(state, depth + 1)


def _span(p: Pipeline, **kwargs: Any) -> None:
    p.tracer.start_span(kwargs.pop("name", "x"), **kwargs).end()


def _end(span: Any) -> None:
    span.end()


def _raise(value: str) -> None:
    try:
        raise KeyError(value)
    except KeyError as error:
        error.add_note(value)
        raise ValueError(value) from error


def _fail(p: Pipeline, value: str) -> None:
    with contextlib.suppress(ValueError), p.tracer.start_as_current_span("x"):
        _raise(value)


def _state(value: str, *, remote_parent: bool) -> Any:
    state = TraceState([("vendor", value)])
    return SpanContext(
        trace.get_current_span().get_span_context().trace_id or 1, 2, remote_parent, TraceFlags(1), state
    )


def _remote_state(p: Pipeline, value: str) -> None:
    parent = trace.set_span_in_context(trace.NonRecordingSpan(_state(value, remote_parent=True)))
    p.tracer.start_span("x", context=parent).end()


def _nested_in_log(value: Any) -> LogRecord:
    return LogRecord(timestamp=1, body={"a": [value, {"b": value}]}, severity_number=SeverityNumber.INFO)


def _through_logging(p: Pipeline, value: str, **kwargs: Any) -> None:
    logger = logging.Logger("plain")  # noqa: LOG001  # not shared with other loggers
    logger.addHandler(LoggingHandler(logger_provider=p.loggers))
    try:
        raise ValueError(value)
    except ValueError:
        logger.exception("failed with %s", value, **kwargs)


def _observe(p: Pipeline, value: str) -> None:
    def callback(options: CallbackOptions) -> list[Observation]:
        return [Observation(1, {"a": value})]

    p.meter.create_observable_gauge("g", [callback])


def _with_resource(p: Pipeline, resource: Resource) -> None:
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    loggers = LoggerProvider(resource=resource, shutdown_on_exit=False)
    for spans_, logs in zip(p.spans, p.logs, strict=True):
        tracers.add_span_processor(SimpleSpanProcessor(spans_))
        loggers.add_log_record_processor(SimpleLogRecordProcessor(logs))
    tracers.get_tracer("t").start_span("x").end()
    loggers.get_logger("t").emit(LogRecord(timestamp=1, body="x"))


POSITIONS: dict[str, Callable[[Pipeline, Any], Any]] = {
    "span-name": lambda p, v: _span(p, name=v),
    "span-new-name": lambda p, v: (s := p.tracer.start_span("x"), s.update_name(v), s.end()),
    "span-first-attribute": lambda p, v: _span(p, attributes={"a": v}),
    "span-attribute": lambda p, v: (s := p.tracer.start_span("x"), s.set_attribute("a", v), s.end()),
    "span-attribute-key": lambda p, v: _span(p, attributes={v: 1}),
    "span-header": lambda p, v: _span(p, attributes={"http.request.header.authorization": (v,)}),
    "event-name": lambda p, v: (s := p.tracer.start_span("x"), s.add_event(v), s.end()),
    "event-attribute": lambda p, v: (s := p.tracer.start_span("x"), s.add_event("e", {"a": v}), s.end()),
    "exception": _fail,
    "status": lambda p, v: (s := p.tracer.start_span("x"), s.set_status(Status(StatusCode.ERROR, v)), s.end()),
    "link-attribute": lambda p, v: _span(p, links=[Link(SpanContext(1, 2, False), {"a": v})]),
    "link-state": lambda p, v: _span(p, links=[Link(_state(v, remote_parent=False))]),
    "trace-state": _remote_state,
    "scope-name": lambda p, v: p.tracers.get_tracer(v).start_span("x").end(),
    "scope-version": lambda p, v: p.tracers.get_tracer("t", v).start_span("x").end(),
    "scope-attribute": lambda p, v: p.tracers.get_tracer("t", attributes={"a": v}).start_span("x").end(),
    "resource": lambda p, v: _with_resource(p, Resource({"a": v}, schema_url=str(v))),
    "log-body": lambda p, v: p.logger.emit(LogRecord(timestamp=1, body=v)),
    "log-body-nested": lambda p, v: p.logger.emit(_nested_in_log(v)),
    "log-attribute": lambda p, v: p.logger.emit(LogRecord(timestamp=1, body="x", attributes={"a": v})),
    "log-event-name": lambda p, v: p.logger.emit(LogRecord(timestamp=1, body="x", event_name=v)),
    "log-severity": lambda p, v: p.logger.emit(LogRecord(timestamp=1, body="x", severity_text=v)),
    "logger-name": lambda p, v: p.loggers.get_logger(v).emit(LogRecord(timestamp=1, body="x")),
    "logging-exception": _through_logging,
    "logging-extra": lambda p, v: _through_logging(p, "x", extra={"a": v, "b": {"c": v}}),
    "metric-attribute": lambda p, v: p.meter.create_counter("c").add(1, {"a": v}),
    "metric-attribute-key": lambda p, v: p.meter.create_counter("c").add(1, {v: "a"}),
    "metric-histogram": lambda p, v: p.meter.create_histogram("h").record(1, {"a": v}),
    "metric-callback": _observe,
    "metric-scope": lambda p, v: p.meters.get_meter(v).create_counter("c").add(1),
    "metric-description": lambda p, v: p.meter.create_counter("c", description=v).add(1),
}
TAKES_ANYTHING = {
    "span-first-attribute",
    "span-attribute",
    "event-attribute",
    "link-attribute",
    "log-body",
    "log-body-nested",
    "log-attribute",
}
ONLY_PLAIN = {"trace-state", "link-state"}  # other forms are not valid in a trace state


def run(position: str, kind: str, *, redaction: bool) -> tuple[int, int]:
    """Put every form of a token in one position. Return how many forms leaked, and how many were tried."""
    token, secret, forms, is_own = TOKENS[kind]
    leaked = total = 0
    for name, form in forms.items():
        value: Any = form(token)
        if not isinstance(value, str) and position not in TAKES_ANYTHING:
            continue
        if position in ONLY_PLAIN and name not in ("raw", "head-24", "upper"):
            continue
        pipeline = Pipeline()
        try:
            install(Settings(redaction=redaction))
            pipeline.add(2)
            with use_token(token if is_own else None):
                POSITIONS[position](pipeline, value)
                exported = pipeline.exported()
        finally:
            pipeline.close()
            uninstall()
        total += 1
        leaked += any(leaks(secret, text) for text in exported)
    return leaked, total


@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize("position", POSITIONS)
def test_no_position_leaks_any_form(position, kind):
    """No exporter receives a readable run of the token: simple or batch, added before or after the installation."""
    leaked, total = run(position, kind, redaction=True)

    assert total
    assert leaked == 0


@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize("position", POSITIONS)
def test_without_redaction_the_search_finds_the_token(position, kind):
    """This proves that the search above can find a leak."""
    leaked, _ = run(position, kind, redaction=False)

    assert leaked


@pytest.mark.parametrize("redaction", [True, False], ids=["on", "off"])
def test_the_bytes_that_a_receiver_gets_contain_no_token(redaction):
    """All records are exported over real OTLP/HTTP, and the received bytes are searched."""
    with otlp_receiver() as receiver:
        resource = Resource({"service.name": "test", "process.command_args": ["--token", FOREIGN_JWT]})
        pipeline = Pipeline(resource)
        before = OTLPSpanExporter(f"{receiver.url}/v1/traces")
        pipeline.tracers.add_span_processor(BatchSpanProcessor(before))
        install(Settings(redaction=redaction))
        pipeline.tracers.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{receiver.url}/v1/traces")))
        pipeline.loggers.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(f"{receiver.url}/v1/logs")))
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{receiver.url}/v1/metrics"), 600_000)
        pipeline.meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        pipeline.meter = pipeline.meters.get_meter("test")
        try:
            for token, _, forms, is_own in TOKENS.values():
                for name in ("raw", "bearer", "url", "json", "upper", "basic", "head-24"):
                    if name not in forms:
                        continue
                    with use_token(token if is_own else None):
                        for position, plant in POSITIONS.items():
                            if position not in ONLY_PLAIN:
                                plant(pipeline, forms[name](token))
        finally:
            pipeline.close()

        for signal in ("traces", "logs", "metrics"):
            data = receiver.bytes_for(signal)
            assert len(data) > 1000
            found = sum(leaks(secret, data) for _, secret, _, _ in TOKENS.values())
            assert bool(found) is not redaction


def benign_records(p: Pipeline) -> None:
    limits = SpanLimits(max_span_attributes=5, max_events=2, max_links=1)
    p.tracers._span_limits = limits
    tracer = p.tracers.get_tracer("benign", "2", "https://schema", {"s": "x"})
    link = Link(SpanContext(5, 6, True), {"l": "v", "n": 3})
    with tracer.start_as_current_span("parent", kind=SpanKind.SERVER, start_time=10) as parent:
        for number, text in enumerate(BENIGN):
            attributes = {"text": text, "n": number, "f": 0.5, "b": True, "t": (text, "z"), "i": (1, 2), "more": "x"}
            span = tracer.start_span(
                text[:40] or "empty", kind=SpanKind.CLIENT, attributes=attributes, links=[link, link], start_time=20
            )
            for at in range(3):
                span.add_event(f"event {at}", {"text": text}, timestamp=30 + at)
            span.set_status(Status(StatusCode.ERROR, text))
            span.end(50)
        parent.set_attribute("child.count", len(BENIGN))
    for text in BENIGN:
        p.logger.emit(
            LogRecord(
                timestamp=1,
                observed_timestamp=2,
                severity_number=SeverityNumber.WARN,
                severity_text="WARN",
                body={"text": text, "list": [text, 1, None, 2.5]},
                attributes={"text": text, "n": 1},
                event_name="event",
            )
        )
        p.meter.create_counter("c", unit="1").add(2, {"text": text, "n": 1})


class FixedIds:
    """Generates the same IDs in each run, so that two runs can be compared."""

    def __init__(self) -> None:
        self.last = 0

    def generate_trace_id(self) -> int:
        self.last += 1
        return self.last

    generate_span_id = generate_trace_id

    def is_trace_id_random(self) -> bool:
        return False


def _without_times(text: str) -> str:
    import re

    return re.sub(r"'?_?(start_time|end_time|time_unix_nano|start_time_unix_nano)'?(=|: )\d+", "", text)


def test_benign_telemetry_is_not_changed():
    """IDs, times, numbers, counts, dropped counts, parent, kind, links and every text are the same."""
    exported = {}
    for redaction in (False, True):
        pipeline = Pipeline()
        pipeline.tracers.id_generator = FixedIds()  # type: ignore[assignment]
        install(Settings(redaction=redaction))
        pipeline.add(2)
        try:
            with use_token(OWN_OPAQUE):
                benign_records(pipeline)
                pipeline.exported()
                finished = pipeline.spans[0].get_finished_spans()
                records = pipeline.logs[0].get_finished_logs()
                exported[redaction] = (
                    [
                        (
                            s.to_json(),
                            s.dropped_attributes,
                            s.dropped_events,
                            s.dropped_links,
                            s.parent,
                            s.kind,
                            s.instrumentation_scope,
                            type(s.attributes),
                            s.get_span_context(),
                        )
                        for s in finished
                        if s.name != "parent"
                    ],
                    [(r.to_json(), r.dropped_attributes, r.instrumentation_scope) for r in records],
                    _without_times(repr(shown(pipeline.reader.get_metrics_data()))),
                )
        finally:
            pipeline.close()
            uninstall()

    assert exported[True] == exported[False]
    assert exported[True][0][0][1:4] == (2, 1, 1)


def test_only_the_token_is_removed_from_a_record():
    """When one value is masked, counts, limits, times, IDs and the rest of the record stay the same."""
    pipeline = Pipeline()
    pipeline.tracers._span_limits = SpanLimits(max_span_attributes=2, max_events=1)
    install(Settings())
    link = Link(SpanContext(5, 6, True, TraceFlags(1), TraceState([("v", OWN_OPAQUE)])), {"a": OWN_OPAQUE})
    try:
        with use_token(OWN_OPAQUE):
            span = pipeline.tracers.get_tracer("t").start_span(
                "x", links=[link], attributes={"a": 1, "b": 2, "c": OWN_OPAQUE}
            )
            span.add_event("one")
            span.add_event("two", {"a": OWN_OPAQUE, "n": 7}, timestamp=77)
            span.end()
            live = dict(span.attributes)
        exported = pipeline.spans[0].get_finished_spans()[0]
    finally:
        pipeline.close()

    assert dict(exported.attributes) == {"b": 2, "c": MASK}
    assert (exported.dropped_attributes, exported.dropped_events) == (1, 1)
    assert (exported.events[0].timestamp, dict(exported.events[0].attributes)) == (77, {"a": MASK, "n": 7})
    assert exported.get_span_context() == span.get_span_context()
    assert exported.start_time == span.start_time
    assert dict(exported.links[0].context.trace_state) == {"v": MASK}
    # The application's objects, and the trace state sent on the wire, are not modified.
    assert live == {"b": 2, "c": OWN_OPAQUE}
    assert dict(link.attributes) == {"a": OWN_OPAQUE}
    assert dict(link.context.trace_state) == {"v": OWN_OPAQUE}


def test_tokens_do_not_create_time_series():
    """Tokens are masked before the aggregation, so the number of series does not depend on the number of users."""
    pipeline = Pipeline()
    install(Settings())
    try:
        histogram = pipeline.meter.create_histogram("http.client.duration")
        for token in (OWN_JWT, OWN_OPAQUE, FOREIGN_JWT):
            with use_token(token):
                histogram.record(3, {"http.url": f"https://a.example/?access_token={token}"})
        data = pipeline.reader.get_metrics_data()
    finally:
        pipeline.close()

    points = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
    assert [(dict(point.attributes), point.count) for point in points] == [
        ({"http.url": f"https://a.example/?access_token={MASK}"}, 3)
    ]


def test_a_span_that_ends_after_the_request_is_masked():
    """The trace's token is known in every thread, even after no context contains it."""
    pipeline = Pipeline()
    install(Settings())
    try:
        with use_token(OWN_OPAQUE):
            span = pipeline.tracer.start_span("x")
            child = pipeline.tracer.start_span("y", context=trace.set_span_in_context(span))
        span.set_attribute("a", OWN_OPAQUE)
        child.update_name(f"late {OWN_OPAQUE}")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(child.end).result()
            pool.submit(span.end).result()
        exported = pipeline.exported()
    finally:
        pipeline.close()

    assert not any(leaks(OWN_OPAQUE, text) for text in exported)


def test_a_span_that_ends_under_another_token_contains_neither():
    """A span that starts for one user and ends in another user's context is masked for both tokens."""
    pipeline = Pipeline()
    other = "kZ8fWq2Lr0TnVb5YxHj3MdPs7c"
    install(Settings())
    try:
        with use_token(OWN_OPAQUE):
            span = pipeline.tracer.start_span("x")
        span.set_attributes({"a": f"of {OWN_OPAQUE}", "b": f"of {other}"})
        with use_token(other):
            span.end()
        exported = pipeline.exported()
    finally:
        pipeline.close()

    assert not any(leaks(token, text) for token in (OWN_OPAQUE, other) for text in exported)


def test_a_span_without_a_request_knows_the_recent_tokens_of_its_thread():
    """Such a span may receive a token as an attribute, and end when the token is no longer bound."""
    pipeline = Pipeline()
    install(Settings())
    try:
        span = pipeline.tracer.start_span("x", context=Context())
        with use_token(OWN_OPAQUE):
            span.set_attribute("a", f"of {OWN_OPAQUE}")
        span.end()
        exported = pipeline.exported()
    finally:
        pipeline.close()

    assert not any(leaks(OWN_OPAQUE, text) for text in exported)


def test_a_collection_is_compared_with_no_token():
    """What is said of a metric is collected again and again; it was compared when the metric was made."""
    pipeline = Pipeline()
    install(Settings())
    try:
        for number in range(3000):
            known_tokens.REMEMBERED.remember(number + 1, f"another-token-{number:06}")
        with use_token(OWN_OPAQUE):
            pipeline.meter.create_counter("c", description=f"tells the bearer of {OWN_OPAQUE}").add(1)
        _index_of.cache_clear()
        data = pipeline.reader.get_metrics_data()
        searched = _index_of.cache_info().misses
    finally:
        pipeline.close()

    assert not leaks(OWN_OPAQUE, data.to_json().encode())
    assert searched == 0


def test_a_metric_callback_knows_the_recent_tokens():
    """An observable instrument's callback runs in the reader's thread, which has no request."""
    pipeline = Pipeline()
    install(Settings())
    try:
        with use_token(OWN_OPAQUE):
            pass
        pipeline.meter.create_observable_gauge("g", [lambda _: [Observation(1, {"a": f"of {OWN_OPAQUE}"})]])
        with ThreadPoolExecutor(1) as pool:
            data = pool.submit(pipeline.reader.get_metrics_data).result()
    finally:
        pipeline.close()

    assert not leaks(OWN_OPAQUE, data.to_json().encode())
    assert MASK in data.to_json()


def test_if_metric_metadata_cannot_be_cleaned_the_numbers_are_kept(monkeypatch):
    """The metadata is wiped. The values and their attributes, which are clean, are kept."""
    pipeline = Pipeline(Resource({"service.name": OWN_OPAQUE}))
    install(Settings())

    def fail(*args: Any) -> None:
        raise RuntimeError("no")

    try:
        pipeline.meter.create_counter(f"n-{OWN_OPAQUE[:8]}", description=OWN_OPAQUE).add(3, {"a": "b"})
        monkeypatch.setattr("otel_token_relay.redaction.metrics.clean_collected", fail)
        data = pipeline.reader.get_metrics_data()
    finally:
        pipeline.close()

    assert not leaks(OWN_OPAQUE, data.to_json().encode())
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    assert metric.name == FAILED
    assert [(point.value, point.attributes) for point in metric.data.data_points] == [(3, {"a": "b"})]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_a_child_that_is_forked_while_tokens_are_bound_does_not_deadlock():
    """No lock of the package is held in the child by a thread that exists only in the parent."""
    program = FORKING.format(token=OWN_OPAQUE)

    out = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120)

    assert out.stdout.split() == ["0"] * 30, out.stderr


FORKING = """
import os, signal, sys, threading
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otel_token_relay import install, use_token

install()
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
busy = TracerProvider().get_tracer("t")
stop = threading.Event()

def churn(worker):
    number = 0
    while not stop.is_set():
        number += 1
        with use_token(f"churn-{{worker}}-{{number}}"), busy.start_as_current_span("c"):
            pass

threads = [threading.Thread(target=churn, args=(worker,)) for worker in range(3)]
for thread in threads:
    thread.start()
for _ in range(30):
    child = os.fork()
    if not child:
        signal.alarm(10)
        with use_token("{token}"), provider.get_tracer("f").start_as_current_span("s") as span:
            span.set_attribute("a", "{token}")
        os._exit(exporter.get_finished_spans()[0].attributes["a"] != "[REDACTED]")
    print(os.waitpid(child, 0)[1])
stop.set()
"""


def test_a_span_that_outlives_thousands_of_traces_is_masked():
    """The number of remembered traces is bounded, but a long-running stream must not be forgotten."""
    pipeline = Pipeline()
    install(Settings())
    try:
        with use_token(OWN_OPAQUE):
            span = pipeline.tracer.start_span("stream")
        for number in range(10_000):
            known_tokens.REMEMBERED.remember(number + 1, f"another-token-{number:06}")
        span.set_attribute("a", OWN_OPAQUE)
        span.end()
        exported = pipeline.exported()
        kept = len(known_tokens.REMEMBERED.recent_traces) + len(known_tokens.REMEMBERED._older_traces)
    finally:
        pipeline.close()

    assert not any(leaks(OWN_OPAQUE, text) for text in exported)
    assert kept <= 4098


def test_a_token_that_is_bound_after_the_span_has_started_is_known():
    """This happens with a server span outside the boundary, or with a login during a request."""
    pipeline = Pipeline()
    install(Settings())
    try:
        with pipeline.tracer.start_as_current_span("server") as server:
            with use_token(OWN_OPAQUE):
                pass
            server.set_attribute("a", OWN_OPAQUE)
            pipeline.logger.emit(LogRecord(timestamp=1, body=OWN_OPAQUE))
        exported = pipeline.exported()
    finally:
        pipeline.close()

    assert not any(leaks(OWN_OPAQUE, text) for text in exported)


def test_what_a_thread_logs_after_the_request_is_masked():
    """A server writes its access log after the context and the trace have ended."""
    pipeline = Pipeline()
    install(Settings())
    try:
        with use_token(OWN_OPAQUE):
            pass
        pipeline.logger.emit(LogRecord(timestamp=1, body=f'"GET /reset/{OWN_OPAQUE} HTTP/1.1" 404'))
        exported = pipeline.exported()
    finally:
        pipeline.close()

    assert not any(leaks(OWN_OPAQUE, text) for text in exported)


def test_concurrent_threads_with_many_tokens_leak_none():
    """Each trace is cleaned with its own token while other requests start and end."""
    pipeline = Pipeline()
    install(Settings())
    tokens = [f"{OWN_OPAQUE[:-4]}{number:04}" for number in range(40)]
    barrier = threading.Barrier(4)

    def work(worker: int) -> None:
        barrier.wait(10)
        for token in tokens[worker::4]:
            with use_token(token), pipeline.tracer.start_as_current_span("x") as span:
                span.set_attribute("a", f"x {token}")
                pipeline.logger.emit(LogRecord(timestamp=1, body=token))
                pipeline.meter.create_counter("c").add(1, {"a": token})

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        exported = pipeline.exported()
    finally:
        pipeline.close()

    assert not any(leaks(token, text) for token in tokens for text in exported)


def test_a_concurrent_multi_processor_gets_clean_spans():
    """Processors that run in their own threads do not have the request's context."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(active_span_processor=ConcurrentMultiSpanProcessor(2), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    install(Settings())
    try:
        with use_token(OWN_OPAQUE), provider.get_tracer("t").start_as_current_span("x") as span:
            span.set_attribute("a", OWN_OPAQUE)
        finished = exporter.get_finished_spans()
    finally:
        provider.shutdown()

    assert [dict(span.attributes) for span in finished] == [{"a": MASK}]


def test_if_cleaning_fails_the_record_is_wiped(monkeypatch):
    """No unmasked value is exported, and the application sees no exception."""
    pipeline = Pipeline()
    install(Settings())

    def fail(*args: object) -> bool:
        raise RuntimeError("broken")

    monkeypatch.setattr(Scrubber, "is_suspect", fail)
    try:
        with use_token(OWN_OPAQUE):
            with pipeline.tracer.start_as_current_span(OWN_OPAQUE, attributes={"a": OWN_OPAQUE}) as span:
                span.add_event(OWN_OPAQUE)
            pipeline.logger.emit(LogRecord(timestamp=1, body=OWN_OPAQUE, attributes={"a": OWN_OPAQUE}))
            pipeline.meter.create_counter("c").add(1, {"a": OWN_OPAQUE})
        exported = pipeline.exported()
        finished = pipeline.spans[0].get_finished_spans()
        logged = pipeline.logs[0].get_finished_logs()
    finally:
        pipeline.close()

    assert not any(leaks(OWN_OPAQUE, text) for text in exported)
    assert [s.name for s in finished] == [FAILED]
    assert finished[0].to_json()
    assert finished[0].get_span_context() == span.get_span_context()
    assert [log.log_record.body for log in logged] == [FAILED]


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError(OWN_OPAQUE)

    __repr__ = __str__


def test_a_log_body_that_cannot_be_read_is_replaced():
    """Its text cannot be checked, so none of it is exported, and the logging call returns."""
    pipeline = Pipeline()
    install(Settings())
    try:
        pipeline.logger.emit(LogRecord(timestamp=1, body=Unprintable()))  # type: ignore[arg-type]
        bodies = [log.log_record.body for log in pipeline.logs[0].get_finished_logs()]
    finally:
        pipeline.close()

    assert bodies == [FAILED]


def test_redact_keys_masks_configured_keys_in_every_signal():
    """`…_REDACT_KEYS` applies to spans, log records and metrics."""
    pipeline = Pipeline()
    install(Settings(redact_keys=("x-api-key",)))
    try:
        pipeline.tracer.start_span("x", attributes={"http.request.header.x_api_key": ("k",), "n": 1}).end()
        pipeline.logger.emit(LogRecord(timestamp=1, body={"X-Api-Key": "k"}, attributes={"x-api-key": "k"}))
        pipeline.meter.create_counter("c").add(1, {"x-api-key": "k"})
        span = pipeline.spans[0].get_finished_spans()[0]
        record = pipeline.logs[0].get_finished_logs()[0].log_record
        point = pipeline.reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics[0].data.data_points[0]
    finally:
        pipeline.close()

    assert dict(span.attributes) == {"http.request.header.x_api_key": (MASK,), "n": 1}
    assert (record.body, dict(record.attributes)) == ({"X-Api-Key": MASK}, {"x-api-key": MASK})
    assert dict(point.attributes) == {"x-api-key": MASK}


def test_uninstall_removes_redaction():
    """The SDK's own functions are restored, and no token is remembered."""
    from opentelemetry.sdk.trace import Span

    uninstall()
    while known_tokens._listeners:  # processors and filters that other tests have created listen until the process ends
        known_tokens.stop_listening()
    own = vars(Span)["_readable_span"], vars(Span)["start"]
    install(Settings())
    patched = vars(Span)["_readable_span"]
    install(Settings())
    uninstall()

    assert patched is not own[0]
    assert (vars(Span)["_readable_span"], vars(Span)["start"]) == own
    assert not known_tokens.REMEMBERED.recent_traces
    assert installation.states() == dict.fromkeys(("spans", "logs", "metrics"), "not redacted")


@pytest.mark.parametrize("order", ["sdk-first", "sdk-later"])
@pytest.mark.parametrize("start", ["install", "propagator", "pre_instrument"])
def test_redaction_starts_in_any_order(order, start):
    """Any of the three entry points starts it, whether the SDK is imported before or after."""
    starts = {
        "install": "import otel_token_relay; otel_token_relay.install()",
        "propagator": "from otel_token_relay.installation import propagator_from_env; propagator_from_env()",
        "pre_instrument": "from otel_token_relay.installation import pre_instrument; pre_instrument()",
    }
    sdk = "import opentelemetry.sdk.trace, opentelemetry.sdk._logs, opentelemetry.sdk.metrics"
    program = [sdk, starts[start]] if order == "sdk-first" else [starts[start], LOADED, sdk]
    program.append("from otel_token_relay.redaction.installation import states; print(states())")

    out = subprocess.run(
        [sys.executable, "-c", "\n".join(program)], capture_output=True, text=True, timeout=60, check=True
    )

    assert out.stdout.strip().splitlines()[-1] == repr(dict.fromkeys(("spans", "logs", "metrics"), installation.HOOKED))


LOADED = "import sys; assert not [m for m in sys.modules if m.startswith('opentelemetry.sdk')]"

FALLBACK = """
import sys, logging
import opentelemetry.sdk.trace as t, opentelemetry.sdk._logs._internal as l
import opentelemetry.sdk.metrics._internal.metric_reader_storage as m
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader, MetricExporter
{break_it}
import otel_token_relay
from otel_token_relay.redaction.installation import states
otel_token_relay.install()
print(states())
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry._logs import LogRecord
spans, logs, points = InMemorySpanExporter(), InMemoryLogRecordExporter(), []
class Keep(MetricExporter):
    def export(self, data, **kwargs):
        points.append(data.to_json())
    def force_flush(self, timeout_millis=0): return True
    def shutdown(self, timeout_millis=0, **kwargs): pass
tracers, loggers = t.TracerProvider(), l.LoggerProvider()
tracers.add_span_processor(SimpleSpanProcessor(spans))
loggers.add_log_record_processor(SimpleLogRecordProcessor(logs))
from opentelemetry.sdk.metrics import MeterProvider
meters = MeterProvider([PeriodicExportingMetricReader(Keep(), 600000)])
token = {token!r}
with otel_token_relay.use_token(token), tracers.get_tracer("x").start_as_current_span("n " + token):
    loggers.get_logger("x").emit(LogRecord(timestamp=1, body=token))
    meters.get_meter("x").create_counter("c").add(1, {{"a": token}})
meters.force_flush()
text = spans.get_finished_spans()[0].to_json() + logs.get_finished_logs()[0].to_json() + repr(points)
print("LEAKED" if token in text else "CLEAN", text.count("[REDACTED]"))
"""
BREAKS = {
    "spans": "del t.Span._readable_span; t.Span._readable_span_2 = None\n"
    "t.Span.end = lambda self, end_time=None: self._span_processor.on_end(t.ReadableSpan("
    "self._name, self._context, resource=self._resource))",
    "logs": "l.ReadableLogRecord.__init__ = property(lambda self: None)\nl.ReadableLogRecord = type('R', (), "
    "{'__new__': lambda cls, **kw: type('S', (l.ReadWriteLogRecord,), {'to_json': lambda s: repr(s.log_record.body)})"
    "(kw['log_record'])})\nimport opentelemetry.sdk._logs._internal.export as e\n"
    "e.ReadableLogRecord = l.ReadableLogRecord",
    "metrics": "m.MetricReaderStorage.consume = m.MetricReaderStorage.consume_measurement\n"
    "del m.MetricReaderStorage.consume_measurement\n"
    "m.MetricReaderStorage.__getattr__ = lambda self, name: self.consume",
}


@pytest.mark.parametrize("signal", BREAKS)
def test_an_sdk_without_the_conversion_point_is_redacted_by_wrapped_processors(signal):
    """If a signal's private function is missing, its processors are wrapped, and the state reports it."""
    program = FALLBACK.format(break_it=BREAKS[signal], token=OWN_OPAQUE)

    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    states, result = out.stdout.strip().splitlines()[-2:]
    assert f"'{signal}': 'redacted by wrapped" in states
    assert states.count("conversion point") == 2
    assert result.startswith("CLEAN")
    assert int(result.split()[1]) >= 3


def test_the_self_test_detects_a_hook_that_does_nothing(monkeypatch):
    """A conversion point that exists but is not used counts as missing."""
    monkeypatch.setattr(spans, "redact", lambda *args: None)

    installation.start(Settings())

    assert "self-test failed: the test token was not redacted" in installation.states()["spans"]


def test_the_self_test_reaches_no_exporter_of_the_application():
    """The self-test of redaction does not produce telemetry."""
    pipeline = Pipeline()
    install(Settings())
    try:
        pipeline.exported()
        finished = [s.name for e in pipeline.spans for s in e.get_finished_spans()]
    finally:
        pipeline.close()

    assert finished == []


def by_hand(wrap: Callable[[InMemorySpanExporter], Any]) -> tuple[Any, bytes]:
    raw, exporter = InMemorySpanExporter(), InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(wrap(exporter))
    provider.add_span_processor(SimpleSpanProcessor(raw))
    with use_token(OWN_OPAQUE), provider.get_tracer("t").start_as_current_span("x") as span:
        span.set_attribute("a", OWN_OPAQUE)
        span.add_event(OWN_OPAQUE)
    provider.shutdown()
    assert leaks(OWN_OPAQUE, repr(shown(raw.get_finished_spans()[0])).encode())
    finished = exporter.get_finished_spans()[0]
    return finished, repr(shown(finished)).encode()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda e: RedactingSpanProcessor(SimpleSpanProcessor(e), Settings()),
        lambda e: RedactingSpanProcessor(BatchSpanProcessor(e), Settings()),
        lambda e: SimpleSpanProcessor(RedactingSpanExporter(e, Settings())),
        lambda e: BatchSpanProcessor(RedactingSpanExporter(e, Settings())),
    ],
    ids=["simple-processor", "batch-processor", "exporter-simple", "exporter-batch"],
)
def test_without_the_hooks_only_a_wrapped_pipeline_is_masked(wrap):
    """The wrapped pipeline receives a clean copy, and other pipelines receive the original."""
    span, text = by_hand(wrap)

    assert not leaks(OWN_OPAQUE, text)
    assert dict(span.attributes) == {"a": MASK}
    known_tokens.stop_listening()


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.lines.append(self.format(record))


@pytest.fixture
def lines() -> Iterator[tuple[logging.Logger, Lines]]:
    handler = Lines()
    handler.addFilter(RedactingFilter(Settings()))
    logger = logging.Logger("test.filter")  # noqa: LOG001  # not shared with other loggers
    logger.addHandler(handler)
    yield logger, handler
    known_tokens.stop_listening()


def test_the_filter_keeps_the_number_and_types_of_arguments(lines):
    """uvicorn's access formatter unpacks five arguments and compares the last with numbers."""
    logger, handler = lines
    arguments = ("10.0.0.1:99", "GET", f"/me?access_token={OWN_OPAQUE}", "1.1", 200)

    logger.info('%s - "%s %s HTTP/%s" %d', *arguments)

    masked = handler.records[0].args
    assert masked == ("10.0.0.1:99", "GET", f"/me?access_token={MASK}", "1.1", 200)
    assert [type(arg) for arg in masked] == [str, str, str, str, int]
    assert handler.lines == [f'10.0.0.1:99 - "GET /me?access_token={MASK} HTTP/1.1" 200']


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        (f"got {OWN_OPAQUE}", ()),
        ("got %s", (OWN_OPAQUE,)),
        ("got %s", (ValueError(OWN_OPAQUE),)),
        ("got %(a)s", ({"a": OWN_OPAQUE},)),
        ("Bearer %s for %d", ("2YotnFZFEjr1zCsicMWpAA", 3)),
        ("%s%s", (OWN_OPAQUE[:20], OWN_OPAQUE[20:])),
        ("got %r", ([OWN_OPAQUE, {"x": OWN_OPAQUE}],)),
    ],
    ids=["message", "argument", "object", "mapping", "only-together", "halves", "nested"],
)
def test_the_filter_masks_messages_and_arguments(lines, message, arguments):
    """The formatted line contains no token, regardless of its position in the record."""
    logger, handler = lines

    with use_token(OWN_OPAQUE):
        logger.warning(message, *arguments)

    assert len(handler.lines) == 1
    assert not leaks(OWN_OPAQUE, handler.lines[0].encode())
    assert "2YotnFZ" not in handler.lines[0]
    assert MASK in handler.lines[0]


def test_the_filter_masks_tracebacks_and_extras(lines):
    """The exception's text and the extra fields are part of the record."""
    logger, handler = lines

    with use_token(OWN_OPAQUE):
        try:
            raise ValueError(f"bad {OWN_OPAQUE}")
        except ValueError:
            logger.exception("failed", extra={"user_header": f"Bearer {OWN_OPAQUE}", "n": 3})

    record = handler.records[0]
    assert not leaks(OWN_OPAQUE, handler.lines[0].encode())
    assert "Traceback" in handler.lines[0]
    assert not leaks(OWN_OPAQUE, repr(record.__dict__).encode())
    assert record.n == 3


@pytest.mark.parametrize("name", ["threadName", "taskName", "processName", "funcName", "name"])
def test_the_filter_masks_names(name):
    """A thread, a task or a logger may be named after the token."""
    record = logging.makeLogRecord({"msg": "x", name: f"for {OWN_OPAQUE}"})

    with use_token(OWN_OPAQUE):
        masked = RedactingFilter(Settings()).filter(record)

    assert getattr(record if masked is True else masked, name) == f"for {MASK}"


def test_the_filter_does_not_change_a_clean_record(lines):
    """The record and its arguments are the same objects."""
    logger, handler = lines
    arguments = ("a", 1, ["x"])

    logger.info("%s %d %s", *arguments)

    assert handler.records[0].args is not None
    assert all(new is old for new, old in zip(handler.records[0].args, arguments, strict=True))
    assert handler.lines == ["a 1 ['x']"]


@pytest.mark.parametrize(("text", "expected"), [("false", False), ("true", True), ("maybe", True), ("", True)])
def test_redaction_is_on_unless_it_is_disabled_explicitly(text, expected):
    """An unreadable value leaves redaction on and is reported as a problem."""
    settings = Settings.from_env({"OTEL_PYTHON_TOKEN_RELAY_REDACTION": text})

    assert settings.redaction is expected
    assert bool(settings.problems) == (text == "maybe")


def test_redact_keys_are_read_from_the_environment():
    """The value is a comma-separated list. The keys are converted to lower case."""
    settings = Settings.from_env({"OTEL_PYTHON_TOKEN_RELAY_REDACT_KEYS": " X-Api-Key, tenant.id ,"})

    assert settings.redact_keys == ("x-api-key", "tenant.id")


def test_check_prints_how_each_signal_is_redacted(capsys):
    """`otel-token-relay check` lists the three signals."""
    from otel_token_relay.cli import main

    main(["check"])

    text = capsys.readouterr().out
    assert (
        textwrap.dedent(
            f"""\
        Redaction
          spans: {installation.HOOKED}
          logs: {installation.HOOKED}
          metrics: {installation.HOOKED}
        """
        )
        in text
    )


def test_the_context_of_the_application_is_not_changed():
    """Redaction attaches no context."""
    before = otel_context.get_current()
    install(Settings())

    assert otel_context.get_current() is before
