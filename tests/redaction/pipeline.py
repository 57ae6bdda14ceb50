"""An OpenTelemetry pipeline with in-memory exporters, and a search for tokens in the exported data."""

from __future__ import annotations

import base64
from functools import cache
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, SpanKind

from otel_token_relay.redaction.deferred import DEFERRED
from tests.redaction.corpus import fragments


@cache
def readable_runs(token: str, *, coded: bool = True) -> tuple[bytes, ...]:
    """Return every run of 17 characters of the token and of its base64 encoding."""
    runs = fragments(token)
    if coded:
        for before in range(3):
            text = base64.b64encode(b"u" * before + token.encode()).decode()[4:-4]
            runs += fragments(text, 24)
    return tuple(run.lower().encode() for run in runs)


_PIECE = 9  # every run of 17 bytes contains a 9-byte piece whose offset is a multiple of 9


@cache
def _pieces(token: str) -> frozenset[bytes]:
    """Return every piece of a token's runs."""
    return frozenset(run[at : at + _PIECE] for run in readable_runs(token) for at in range(len(run) - _PIECE + 1))


def leaks(token: str, data: bytes) -> int:
    """Count the runs of a token that appear in the data, ignoring case."""
    lowered = data.lower()
    # This check is much faster than the search for a thousand runs, and most data contains none of the pieces.
    if _pieces(token).isdisjoint(lowered[at : at + _PIECE] for at in range(0, len(lowered), _PIECE)):
        return 0
    return sum(run in lowered for run in readable_runs(token))


class Pipeline:
    """A pipeline for all three signals, with simple and batch exporters added before and after the installation."""

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
        # Create this tracer and this logger before the installation.
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
        """Return each exporter's records as text, and the metrics as the last item."""
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
    """Return everything that an exporter can read from a record, including private attributes."""
    if value is None or isinstance(value, (str, bytes, int, float)) or depth > 12:
        return value
    if isinstance(value, Context):
        return None  # contains the token in an object whose repr hides it
    if isinstance(value, dict):
        return {str(k): shown(v, depth + 1) for k, v in value.items()}
    if isinstance(value, (SpanContext, SpanKind)):
        return (repr(value), dict(value.trace_state)) if isinstance(value, SpanContext) else repr(value)
    if isinstance(value, (list, tuple, set)):
        # A token can be split across the elements, so search the joined text too.
        return [shown(item, depth + 1) for item in value], "".join(i for i in value if isinstance(i, str))
    if isinstance(value, (ReadableSpan, ReadableLogRecord)):
        # Read an attribute, as an exporter does, because records are cleaned on first access.
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
