"""Providers with in-memory exporters that replace the global providers, which can be set only once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Sampler
from opentelemetry.trace import SpanKind

from otel_token_relay import refusals


class Telemetry:
    """The data that the process exported."""

    def __init__(self, sampler: Sampler = DEFAULT_ON) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider(sampler=sampler)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self._reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self._reader])

    @property
    def server_spans(self) -> list[ReadableSpan]:
        """The exported SERVER spans."""
        return [span for span in self.exporter.get_finished_spans() if span.kind is SpanKind.SERVER]

    def points(self, name: str) -> dict[tuple[tuple[str, Any], ...], Any]:
        """Return the sorted attributes and the value or count of each series of a metric, in all scopes."""
        found: dict[tuple[tuple[str, Any], ...], Any] = {}
        for metric in self._metrics():
            for point in metric.data.data_points if metric.name == name else ():
                labels = tuple(sorted((point.attributes or {}).items()))
                found[labels] = found.get(labels, 0) + getattr(point, "count", getattr(point, "value", 0))
        return found

    def count(self, name: str) -> int:
        """Return the number of values in a histogram, in all scopes."""
        return sum(self.points(name).values())

    def sums(self, name: str) -> list[float]:
        """Return the sum of each series in a histogram."""
        return [point.sum for metric in self._metrics() if metric.name == name for point in metric.data.data_points]

    @property
    def text(self) -> str:
        """Return all exported data as text."""
        spans = [span.to_json() for span in self.exporter.get_finished_spans()]
        data = self._collect()
        return "\n".join([*spans, "" if data is None else data.to_json()])

    def _collect(self) -> Any:
        return self._reader.get_metrics_data()

    def _metrics(self) -> list[Any]:
        data = self._collect()
        resources = data.resource_metrics if data else ()
        return [metric for resource in resources for scope in resource.scope_metrics for metric in scope.metrics]

    def shutdown(self) -> None:
        self.tracer_provider.shutdown()
        self.meter_provider.shutdown()


@contextmanager
def recording(monkeypatch: pytest.MonkeyPatch, sampler: Sampler = DEFAULT_ON) -> Iterator[Telemetry]:
    """Use new global providers until the test ends, and start without recorded rejected requests."""
    telemetry = Telemetry(sampler)
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: telemetry.tracer_provider)
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", telemetry.meter_provider)
    monkeypatch.setattr(refusals, "_recorder", refusals.RefusalRecorder())
    yield telemetry
    telemetry.shutdown()
