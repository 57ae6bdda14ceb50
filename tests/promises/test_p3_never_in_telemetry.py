"""P3: no exported span, log record, or metric contains a token, whether complete, in parts, or encoded."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from otel_token_relay import Settings, install, uninstall, use_token
from otel_token_relay.redaction.known_tokens import REMEMBERED
from otel_token_relay.redaction.scrubber import FAILED, MASK, Scrubber
from tests.redaction.corpus import BENIGN, FOREIGN_FORMS, FOREIGN_JWT, OWN_FORMS, OWN_JWT, OWN_OPAQUE, Encoding
from tests.redaction.pipeline import Pipeline, leaks, shown
from tests.support.fixed_ids import FixedIds
from tests.support.otlp_receiver import otlp_receiver

# Everything after a foreign JWT's header must be masked; the header is not secret.
FOREIGN_SECRET = FOREIGN_JWT[FOREIGN_JWT.index(".") + 1 :]
TOKENS: dict[str, tuple[str, str, dict[str, Encoding], bool]] = {
    "own-jwt": (OWN_JWT, OWN_JWT, OWN_FORMS, True),
    "own-opaque": (OWN_OPAQUE, OWN_OPAQUE, OWN_FORMS, True),
    "foreign-jwt": (FOREIGN_JWT, FOREIGN_SECRET, FOREIGN_FORMS, False),
}


def _span(p: Pipeline, **kwargs: Any) -> None:
    p.tracer.start_span(kwargs.pop("name", "x"), **kwargs).end()


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
ONLY_PLAIN = {"trace-state", "link-state"}  # a trace state can contain only the plain form


def run(position: str, kind: str, *, redaction: bool) -> tuple[int, int]:
    """Write every form of a token to a position, and return the number of leaked forms and of all forms."""
    token, secret, forms, is_own = TOKENS[kind]
    leaked = total = 0
    install(Settings(redaction=redaction))
    for name, form in forms.items():
        value: Any = form(token)
        if not isinstance(value, str) and position not in TAKES_ANYTHING:
            continue
        if position in ONLY_PLAIN and name not in ("raw", "head-24", "upper"):
            continue
        # Forget the tokens, because installing again for each form would be too slow.
        REMEMBERED.forget()
        pipeline = Pipeline()
        try:
            pipeline.add(2)
            with use_token(token if is_own else None):
                POSITIONS[position](pipeline, value)
                exported = pipeline.exported()
        finally:
            pipeline.close()
        total += 1
        leaked += any(leaks(secret, text) for text in exported)
    uninstall()
    return leaked, total


@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize("position", POSITIONS)
def test_no_position_leaks_any_form(position, kind):
    """No exporter, regardless of its kind and registration time, receives a readable part of the token."""
    leaked, total = run(position, kind, redaction=True)

    assert total
    assert leaked == 0


@pytest.mark.parametrize(("position", "kind"), list(zip(POSITIONS, itertools.cycle(TOKENS), strict=False)))
def test_without_redaction_the_search_finds_the_token(position, kind):
    """Without redaction, the search finds the token in every position."""
    leaked, _ = run(position, kind, redaction=False)

    assert leaked


@pytest.mark.parametrize("redaction", [True, False], ids=["on", "off"])
def test_the_bytes_that_a_receiver_gets_contain_no_token(redaction):
    """The bytes that a real OTLP/HTTP receiver gets contain no token."""
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


def _without_times(text: str) -> str:
    import re

    return re.sub(r"'?_?(start_time|end_time|time_unix_nano|start_time_unix_nano)'?(=|: )\d+", "", text)


def test_benign_telemetry_is_not_changed():
    """Redaction changes no ID, time, number, count, parent, kind, link, or text of telemetry without a token."""
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


def test_concurrent_threads_with_many_tokens_leak_none():
    """Each trace is redacted with its own token while concurrent requests start and end."""
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


def test_if_cleaning_fails_the_record_is_wiped(monkeypatch):
    """If redaction fails, no unmasked value is exported, and the application gets no exception."""
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


def test_redact_keys_masks_configured_keys_in_every_signal():
    """`…_REDACT_KEYS` applies to spans, log records, and metrics."""
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
