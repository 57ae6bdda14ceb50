"""A decision is recorded on the CLIENT span, in the counter, and in the log without raising an error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.metrics._internal import _ProxyMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind

from otel_token_relay import operator_log
from otel_token_relay.decisions import COUNTER_NAME, Decision, DecisionRecorder
from otel_token_relay.destinations import Destination
from otel_token_relay.reasons import Reason

GLOBAL = "opentelemetry.metrics._internal._METER_PROVIDER"
TRACER = TracerProvider(shutdown_on_exit=False).get_tracer("test")


@pytest.fixture
def without_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a process without a metrics SDK."""
    monkeypatch.setattr(GLOBAL, _ProxyMeterProvider())


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    """A meter provider that replaces the global provider, which can be set only once."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(GLOBAL, provider)
    yield reader
    provider.shutdown()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The package's log at debug level and above."""
    caplog.set_level(logging.DEBUG, "otel_token_relay")
    return caplog


def counted(reader: InMemoryMetricReader) -> list[tuple[Any, dict[str, Any]]]:
    """Return the value and the attributes of each series."""
    data = reader.get_metrics_data()
    return [
        (point.value, dict(point.attributes or {}))  # type: ignore[union-attr]
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == COUNTER_NAME
        for point in metric.data.data_points
    ]


def context_with(kind: SpanKind) -> tuple[Any, Context]:
    """Return a recording span and a context that contains the span."""
    span = TRACER.start_span("call", kind=kind)
    return span, trace.set_span_in_context(span, Context())


@pytest.mark.parametrize("reason", Reason, ids=str)
def test_each_reason_has_one_outcome(reason: Reason) -> None:
    """Each reason has one outcome, and only three reasons mean that a token was sent."""
    expected = reason.value if reason in (Reason.RELAYED, Reason.EXCHANGED, Reason.OWN) else "withheld"

    assert Decision(reason).outcome == expected


LISTED = Destination.parse("https://profile-service;required")
TARGET = ("https", "Profile-Service", None)


@pytest.mark.parametrize(
    ("reason", "destination", "target", "in_counter", "on_span", "line"),
    [
        pytest.param(
            Reason.RELAYED,
            LISTED,
            TARGET,
            {"token_relay.entry": "https://profile-service;required", "server.address": "profile-service"},
            {"token_relay.entry": "https://profile-service;required"},
            "relayed: relayed, entry https://profile-service;required",
            id="listed",
        ),
        pytest.param(
            Reason.EXPIRED,
            Destination.parse("https://*.internal:*"),
            TARGET,
            {"token_relay.entry": "https://*.internal:*"},
            {"token_relay.entry": "https://*.internal:*"},
            "withheld: expired, entry https://*.internal:*",
            id="wildcard",
        ),
        pytest.param(
            Reason.DESTINATION_NOT_LISTED,
            None,
            TARGET,
            {},
            {"token_relay.origin": "https://profile-service"},
            "withheld: destination_not_listed, origin https://profile-service",
            id="not listed",
        ),
        pytest.param(
            Reason.DESTINATION_UNKNOWN,
            None,
            None,
            {},
            {},
            "withheld: destination_unknown, origin unknown",
            id="unknown",
        ),
        pytest.param(
            Reason.DESTINATION_NOT_LISTED,
            None,
            ("ftp", "a b", None),
            {},
            {},
            "withheld: destination_not_listed, origin unknown",
            id="no origin",
        ),
    ],
)
def test_a_decision_is_recorded_in_three_places(
    reason: Reason,
    destination: Destination | None,
    target: tuple[str, str, int | None] | None,
    in_counter: dict[str, str],
    on_span: dict[str, str],
    line: str,
    meter: InMemoryMetricReader,
    log: pytest.LogCaptureFixture,
) -> None:
    """A decision is recorded in three places, repeated decisions share one series, and the span gets no additional
    address.
    """
    recorder = DecisionRecorder()
    span, context = context_with(SpanKind.CLIENT)
    both = {"token_relay.decision": Decision(reason).outcome, "token_relay.reason": reason.value}

    for _ in range(2):
        recorder.record(reason, context, destination, target)

    assert counted(meter) == [(2, both | in_counter)]
    assert dict(span.attributes) == both | on_span
    assert log.messages == [line] * 2


def test_the_decision_log_names_origin_entry_and_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The decision log contains one line for each decision on standard error, regardless of the logging
    configuration.
    """
    monkeypatch.setattr(operator_log, "decisions", operator_log.DecisionLog())
    span, context = context_with(SpanKind.CLIENT)
    recorder = DecisionRecorder(lambda *target: f"near {target[1]}")
    recorder.record(Reason.RELAYED, context, LISTED, TARGET)
    recorder.record(Reason.DESTINATION_NOT_LISTED, context, None, TARGET)
    recorder.record(Reason.DESTINATION_UNKNOWN, Context())

    trace_id = trace.format_trace_id(span.get_span_context().trace_id)
    assert [line.partition(" otel-token-relay ")[2] for line in capsys.readouterr().err.splitlines()] == [
        f"decision=relayed reason=relayed origin=https://profile-service entry=https://profile-service;required"
        f" trace_id={trace_id}",
        "decision=withheld reason=destination_not_listed origin=https://profile-service"
        f' trace_id={trace_id} closest_entry="near Profile-Service"',
        "decision=withheld reason=destination_unknown origin=unknown",
    ]


@pytest.mark.parametrize("kind", [kind for kind in SpanKind if kind is not SpanKind.CLIENT], ids=lambda kind: kind.name)
def test_a_span_of_another_kind_is_not_described(kind: SpanKind, meter: InMemoryMetricReader) -> None:
    """A decision is counted but not recorded on a span of a different kind, which describes the whole request."""
    span, context = context_with(kind)

    DecisionRecorder().record(Reason.RELAYED, context)

    assert not span.attributes
    assert len(counted(meter)) == 1


@pytest.mark.usefixtures("without_sdk")
def test_without_telemetry_a_decision_is_not_watched(caplog: pytest.LogCaptureFixture) -> None:
    """Without telemetry, no decision is watched, even with a higher log level, a different kind of span, or a
    non-recording span.
    """
    caplog.set_level(logging.INFO, "otel_token_relay")
    recorder = DecisionRecorder()
    ended, with_ended = context_with(SpanKind.CLIENT)
    ended.end()

    for context in (Context(), context_with(SpanKind.SERVER)[1], with_ended):
        assert not recorder.is_watched(context)
        recorder.record(Reason.RELAYED, context)
    assert caplog.messages == []


@pytest.mark.usefixtures("without_sdk")
def test_a_client_span_or_the_debug_level_watches(caplog: pytest.LogCaptureFixture) -> None:
    """Without a metrics SDK, a CLIENT span or the debug level is enough for a decision to be watched."""
    caplog.set_level(logging.INFO, "otel_token_relay")
    recorder = DecisionRecorder()

    assert recorder.is_watched(context_with(SpanKind.CLIENT)[1])
    caplog.set_level(logging.DEBUG, "otel_token_relay")
    assert recorder.is_watched(Context())


def test_a_metrics_sdk_watches_from_the_moment_it_is_set(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A metrics SDK watches decisions from the moment that it is set, with the counter that `prepare` created."""
    caplog.set_level(logging.INFO, "otel_token_relay")
    proxy, reader = _ProxyMeterProvider(), InMemoryMetricReader()
    monkeypatch.setattr(GLOBAL, proxy)
    recorder = DecisionRecorder()
    recorder.prepare()
    prepared = recorder._counter.created
    assert not recorder.is_watched(Context())

    provider = MeterProvider([reader])
    proxy.on_set_meter_provider(provider)
    recorder.record(Reason.NO_TOKEN, Context())

    assert recorder.is_watched(Context())
    assert recorder._counter.created is prepared is not None
    assert [value for value, _ in counted(reader)] == [1]
    provider.shutdown()


def test_a_suppressed_context_creates_no_counter(meter: InMemoryMetricReader, caplog: pytest.LogCaptureFixture) -> None:
    """A suppressed context creates no counter, because the meter provider might hold its lock during an export."""
    caplog.set_level(logging.INFO, "otel_token_relay")
    recorder = DecisionRecorder()

    with suppress_instrumentation():
        assert not recorder.is_watched(Context())
        recorder.record(Reason.RELAYED, Context())

    assert recorder._counter.created is None
    assert counted(meter) == []


class HostileSpan(trace.NonRecordingSpan):
    """An application's span, which raises an error on every use."""

    def __init__(self) -> None:
        super().__init__(trace.INVALID_SPAN_CONTEXT)

    def is_recording(self) -> bool:
        raise RuntimeError("no")


@pytest.mark.usefixtures("without_sdk")
def test_a_span_that_raises_does_not_stop_the_request(log: pytest.LogCaptureFixture) -> None:
    """A span that raises an error does not stop the request, and the error is logged."""
    recorder = DecisionRecorder()
    context = trace.set_span_in_context(HostileSpan(), Context())
    log.set_level(logging.INFO, "otel_token_relay")

    assert recorder.is_watched(context)
    log.set_level(logging.DEBUG, "otel_token_relay")
    recorder.record(Reason.RELAYED, context)

    assert log.messages == ["cannot record a decision"]
