"""A caller's choice of token does not change the telemetry of unrelated callers."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry._logs import LogRecord
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import Counter, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_token_relay import Settings, install, use_token
from otel_token_relay.redaction.known_tokens import REMEMBERED

BYSTANDER = "pV6bN1xK8sQ3zL0wR5yT7uC2"

# These values look like credentials, but the process used them before any caller sent a token.
IN_RESOURCE, IN_SCOPE = "gZ4kW9tB2mX7vQ1nR6cJ", "hY5jD0sF8pL3xV7bT2wM"
INSTRUMENT, KEY = "uK7nG2rC9zE4aH1qP6iO", "shop.order.kind"
KNOWN_AT_START = (IN_RESOURCE, IN_SCOPE, INSTRUMENT, KEY, "checkout-service", "http.route")

WORDS = re.findall(
    r"\w+",
    """
able access account action active actor address admin agent alert alias amount anchor apple archive area array
asset atlas audit author backup badge balance banner barrel basket batch beacon bearer bench binary bitter blanket
block board border bottle bottom branch bridge bright broker browser bucket budget buffer build bundle button cabin
cache calendar camera canal candle canvas capital carbon cargo carrier castle catalog center chain change channel
chapter charge checkout cherry circle city claim class client clock cloud cluster coffee collect color column command
comment commit common company compass compute concert condition config connect consumer contact container content
context control copper corner counter country coupon course cover create credit cursor customer cycle daemon daily
data dealer debug decade default delete deliver demand deploy desert design desk detail device dialog digital dinner
direct disk display doctor document domain double dragon driver eagle early earth editor effect electric element empty
energy engine entry error event exact example exchange export fabric factor family farmer feature field figure file
filter finger finish flight flower folder forest format forward frame fresh front future galaxy garden gateway general
gentle ghost giant glass global gold grade grand graph green grid group guard guest guide hammer handler harbor header
health heart helper history holder honey horse hotel house hunter image import index inner input insert inside island
item jacket journal journey jungle junior kernel keeper kitchen ladder lake language large launch layer leader ledger
lemon lesson letter level library light limit line lister little loader local locker login logo lunar machine magnet
mailer manager marble margin market master matrix meadow member memory menu merchant message meter method middle
mirror mobile model module moment monitor morning mother motor mountain music native nature network news night noble
node normal north notice number object ocean office online open option orange orbit order origin output owner package
page panel paper parent parser partner party password patch path payment people pepper period person phone picture
pilot pixel planet player pocket point policy portal powder power premium present price print process producer product
profile project prompt proxy public purple quality query queue quick rabbit radio random range reader record region
release remote render report request reset resource response result review reward ribbon river robot rocket route
runner sample scale schema school scope screen search second secret section select sender series server service
session shadow shape shelf shop signal silver simple single sister socket soft source space spider spring square
stable stack staff stage station storage store stream street string studio style subject summer support surface switch
system table target task team temple tenant theme ticket tiger timer title token topic tower trace track trade train
transfer travel tree trigger trust tunnel type union unit update upload user valley value vector vendor version video
view village vision visit voice volume wallet warning watch water weather weekend wheel window winter wonder worker
writer yellow zebra zone
""",
)


@pytest.fixture(scope="module")
def pipeline() -> Iterator[_Signals]:
    """A pipeline of the real SDK whose resource, scopes, instruments, and attribute names exist before the first
    request.
    """
    signals = _Signals()
    yield signals
    signals.close()


class _Signals:
    def __init__(self) -> None:
        resource = Resource({"service.name": "checkout-service", "deployment.id": IN_RESOURCE})
        self.spans, self.logs = InMemorySpanExporter(), InMemoryLogRecordExporter()
        self.reader = InMemoryMetricReader(preferred_temporality={Counter: AggregationTemporality.DELTA})
        self.tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        self.loggers = LoggerProvider(resource=resource, shutdown_on_exit=False)
        self.loggers.add_log_record_processor(SimpleLogRecordProcessor(self.logs))
        self.meters = MeterProvider([self.reader], resource=resource, shutdown_on_exit=False)
        self.tracer = self.tracers.get_tracer(IN_SCOPE)
        self.logger = self.loggers.get_logger(IN_SCOPE)
        self.counter = self.meters.get_meter(IN_SCOPE).create_counter(INSTRUMENT)

    def close(self) -> None:
        self.tracers.shutdown()
        self.loggers.shutdown()
        self.meters.shutdown()

    def record(self, text: str) -> None:
        """Record a span, a log record, and a measurement that contain the text."""
        attributes = {"http.route": f"/v1/{text}/items", "name": text, "tags": ("a", text), KEY: "1"}
        with self.tracer.start_as_current_span(f"GET {text}", attributes=attributes) as span:
            span.add_event(text, attributes)
            self.log(text)
            self.counter.add(1, {"name": text, KEY: "1"})

    def log(self, text: str) -> None:
        """Record a log record outside a span, as an access log does."""
        body = {"message": f"served {text} to {text}", "nested": [{text: text}]}
        self.logger.emit(LogRecord(body=body, attributes={"name": text, KEY: "1"}))

    def exported(self) -> Exported:
        """Return what was exported since the last call."""
        spans = [
            (
                span.name,
                dict(span.attributes or {}),
                [(event.name, dict(event.attributes or {})) for event in span.events],
                dict(span.resource.attributes),
                span.instrumentation_scope and span.instrumentation_scope.name,
            )
            for span in self.spans.get_finished_spans()
        ]
        logs = [
            (
                log.log_record.body,
                dict(log.log_record.attributes or {}),
                dict(log.resource.attributes),
                log.instrumentation_scope and log.instrumentation_scope.name,
            )
            for log in self.logs.get_finished_logs()
        ]
        data = self.reader.get_metrics_data()
        points = [
            (dict(group.resource.attributes), scope.scope.name, metric.name, dict(point.attributes or {}))
            for group in (data.resource_metrics if data else ())
            for scope in group.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        ]
        self.spans.clear()
        self.logs.clear()
        return Exported(spans, logs, points)


@dataclass
class Exported:
    """The data that the exporter of each signal received."""

    spans: list[Any]
    logs: list[Any]
    points: list[Any]


def _camel(words: list[str]) -> str:
    return words[0] + "".join(word.title() for word in words[1:])


SHORT = st.text(string.ascii_letters + string.digits + "-._~+/", min_size=1, max_size=19)
OF_WORDS = st.builds(
    lambda words, joint: _camel(words) if joint is None else joint.join(words),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=8),
    st.sampled_from(["-", "_", ".", "/", None]),
)


def test_the_words_are_many_and_distinct() -> None:
    """The words are numerous and distinct, so the property test tries many combinations."""
    assert len(WORDS) == len(set(WORDS)) > 300


@pytest.mark.parametrize("in_span", [False, True])
def test_an_ordinary_token_changes_no_record_of_another_caller(pipeline: _Signals, in_span: bool) -> None:
    """An ordinary token changes no other caller's records in the same thread, with or without a token or a trace."""

    @settings(max_examples=60)
    @given(SHORT | OF_WORDS | st.sampled_from(KNOWN_AT_START[3:]))
    @example("ConditionConditionConditionConditionConditionConditionConditionNetwork")
    def changes_nothing(token: str) -> None:
        _compare(pipeline, token, token, in_span=in_span)

    install(Settings())
    changes_nothing()


@pytest.mark.parametrize("in_span", [False, True])
@pytest.mark.parametrize("token", KNOWN_AT_START)
def test_a_token_from_a_resource_a_scope_or_a_name_leaves_them(pipeline: _Signals, token: str, in_span: bool) -> None:
    """A caller's token does not mask a resource, a scope, or a name that existed before the token."""
    install(Settings())

    _compare(pipeline, token, "items", in_span=in_span)


def _compare(pipeline: _Signals, token: str, text: str, *, in_span: bool) -> None:
    """Compare a bystander's records before and after an unrelated caller's request in the same thread."""
    REMEMBERED.forget()  # the process has not seen this token
    pipeline.exported()
    _serve_bystander(pipeline, text)
    before = pipeline.exported()
    with use_token(token):
        if in_span:
            with pipeline.tracer.start_as_current_span("attack", attributes={"a": token}):
                pipeline.record(token)
        else:
            pipeline.log(token)
    pipeline.exported()

    _serve_bystander(pipeline, text)

    assert pipeline.exported() == before


def _serve_bystander(pipeline: _Signals, text: str) -> None:
    with use_token(BYSTANDER):
        pipeline.record(text)
    pipeline.record(text)
    pipeline.log(text)
