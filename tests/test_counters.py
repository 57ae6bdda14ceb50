"""Counters are created at first use, but never while OpenTelemetry does its own work."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.metrics._internal import _ProxyMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from otel_token_relay.counters import LazyCounter, LazyHistogram

GLOBAL = "opentelemetry.metrics._internal._METER_PROVIDER"


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    """A meter provider that replaces the global provider, which can be set only once."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(GLOBAL, provider)
    yield reader
    provider.shutdown()


@pytest.fixture
def counter() -> LazyCounter:
    """A counter whose instrument does not exist yet."""
    return LazyCounter("token_relay.tests", "{test}", "Tests of the counter.")


def counted(reader: InMemoryMetricReader) -> list[tuple[Any, ...]]:
    """Return the scope, name, unit, description, and value of each series."""
    data = reader.get_metrics_data()
    return [
        (scope.scope.name, metric.name, metric.unit, metric.description, point.value)  # type: ignore[union-attr]
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    ]


def test_a_counter_is_created_once(meter: InMemoryMetricReader, counter: LazyCounter) -> None:
    """Constructing a counter requests no meter, and all uses share one instrument."""
    assert counter.created is None

    counter.create().add(1)
    counter.create().add(2)

    assert counter.created is counter.create()
    assert counted(meter) == [("otel_token_relay", "token_relay.tests", "{test}", "Tests of the counter.", 3)]


def test_a_suppressed_context_creates_nothing(meter: InMemoryMetricReader, counter: LazyCounter) -> None:
    """A suppressed context, in which the meter provider might hold its lock, creates no instrument, but the next use
    does.
    """
    with suppress_instrumentation():
        ignored = counter.create()
        ignored.add(1)
        assert type(ignored) is metrics.NoOpCounter
        assert counter.created is None

    counter.create().add(1)
    with suppress_instrumentation():
        assert counter.create() is counter.created
    assert [row[-1] for row in counted(meter)] == [1]


def test_a_prepared_counter_counts_once_the_sdk_is_set(monkeypatch: pytest.MonkeyPatch, counter: LazyCounter) -> None:
    """A prepared counter starts to count when the SDK is set, as every API counter does."""
    proxy, reader = _ProxyMeterProvider(), InMemoryMetricReader()
    monkeypatch.setattr(GLOBAL, proxy)
    counter.prepare()
    prepared = counter.created
    counter.create().add(1)

    provider = MeterProvider([reader])
    proxy.on_set_meter_provider(provider)
    counter.create().add(5)

    assert counter.created is prepared is not None
    assert [row[-1] for row in counted(reader)] == [5]
    provider.shutdown()


class BrokenProvider(MeterProvider):
    """An application's meter provider, which raises an error at first."""

    is_broken = True

    def get_meter(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_broken:
            raise RuntimeError("no meter")
        return super().get_meter(*args, **kwargs)


def test_a_provider_that_fails_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, counter: LazyCounter
) -> None:
    """Preparing a counter never raises an error, and a provider that failed is tried again."""
    reader = InMemoryMetricReader()
    provider = BrokenProvider([reader])
    monkeypatch.setattr(GLOBAL, provider)
    with caplog.at_level(logging.DEBUG, "otel_token_relay"):
        counter.prepare()
    assert counter.created is None
    assert caplog.messages == ["the token_relay.tests counter cannot be created yet"]

    provider.is_broken = False
    counter.prepare()
    counter.create().add(1)

    assert len(counted(reader)) == 1
    provider.shutdown()


def test_a_histogram_is_created_by_the_first_measurement(
    meter: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suppressed measurement creates nothing, and an error of the meter provider is not raised."""
    histogram = LazyHistogram("token_relay.durations", "s", "Durations of the tests.", (0.1, 1.0))
    with suppress_instrumentation():
        histogram.record(5.0, {})
    histogram.record(0.5, {"how": "fast"})
    histogram.record(2.0, {"how": "fast"})

    data = meter.get_metrics_data()
    assert data is not None
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    (point,) = metric.data.data_points
    assert (metric.name, metric.unit, metric.description) == ("token_relay.durations", "s", "Durations of the tests.")
    assert (point.count, point.sum, point.bucket_counts) == (2, 2.5, (0, 1, 1))  # type: ignore[union-attr]
    assert dict(point.attributes or {}) == {"how": "fast"}

    monkeypatch.setattr(GLOBAL, None)
    LazyHistogram("token_relay.other", "s", "", ()).record(1.0, {})
