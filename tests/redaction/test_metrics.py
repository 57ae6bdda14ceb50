"""Redaction masks metric attributes before the aggregation, and also names and descriptions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock

import pytest
from opentelemetry import trace
from opentelemetry._logs import LogRecord
from opentelemetry.context import Context
from opentelemetry.metrics import Observation
from opentelemetry.sdk.resources import Resource

from otel_token_relay import Settings, install, use_token
from otel_token_relay.redaction import known_tokens
from otel_token_relay.redaction.metrics import clean_collected
from otel_token_relay.redaction.scrubber import FAILED, MASK, Scrubber
from otel_token_relay.redaction.token_search import _index_of
from tests.redaction.corpus import FOREIGN_JWT, OWN_JWT, OWN_OPAQUE
from tests.redaction.pipeline import Pipeline, leaks


def test_tokens_do_not_create_time_series():
    """Tokens are masked before the aggregation, so the number of series does not grow with the number of users."""
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


def test_a_collection_is_compared_with_no_token():
    """Collecting metrics does not search their metadata again, because it was searched when the metric was created."""
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
    """Values from an observable instrument's callback, which runs without a request, are searched for recent tokens."""
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
    """If a metric's metadata cannot be cleaned, redaction wipes it and keeps the clean values and attributes."""
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


def test_only_the_secrets_are_removed_from_collected_metrics():
    """Unknown tokens in a resource, a scope, and a metric's texts are masked, and the rest is kept."""
    pipeline = Pipeline(Resource({"service.name": "billing", "launched.with": FOREIGN_JWT}))
    install(Settings())
    try:
        pipeline.meter.create_counter("reads", unit="1", description=f"as {FOREIGN_JWT}").add(3, {"a": "b"})
        pipeline.meter.create_counter("writes", unit="1", description="Rows").add(4)
        scope = {"name": f"of {FOREIGN_JWT}", "version": "2", "schema_url": "https://schema.example/1"}
        pipeline.meters.get_meter(**scope).create_counter("deletes").add(5)
        data = pipeline.reader.get_metrics_data()
    finally:
        pipeline.close()

    (part,) = data.resource_metrics
    assert dict(part.resource.attributes) == {"service.name": "billing", "launched.with": MASK}
    found = [
        (scoped.scope.name, scoped.schema_url or "", metric.name, metric.description, metric.unit, point.value)
        for scoped in part.scope_metrics
        for metric in scoped.metrics
        for point in metric.data.data_points
    ]
    assert found == [
        ("test", "", "reads", f"as {MASK}", "1", 3),
        ("test", "", "writes", "Rows", "1", 4),
        (f"of {MASK}", "https://schema.example/1", "deletes", "", "", 5),
    ]


def test_clean_metrics_are_collected_without_a_copy():
    """Collected metrics without secrets are the SDK's own objects."""
    pipeline = Pipeline()
    install(Settings())
    try:
        pipeline.meter.create_counter("reads", unit="1", description="Rows").add(3, {"a": "b"})
        data = pipeline.reader.get_metrics_data()
    finally:
        pipeline.close()

    assert clean_collected(data, Scrubber()) is data
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    assert (metric.name, metric.description, metric.unit) == ("reads", "Rows", "1")


def _fail() -> Any:
    raise RuntimeError("no context")


@pytest.mark.parametrize(
    "span",
    [
        Mock(),
        Mock(spec=trace.Span),
        object(),
        Mock(get_span_context=_fail),
        Mock(get_span_context=lambda: None),
        Mock(get_span_context=lambda: Mock(trace_id=[1])),
    ],
    ids=["mock", "spec", "object", "raises", "none", "unhashable id"],
)
def test_records_of_a_span_that_is_not_a_real_one_lose_nothing(span: Any) -> None:
    """A measurement and a log record whose context contains a mocked span are masked and lose no other data."""
    pipeline = Pipeline()
    install(Settings())
    try:
        context = trace.set_span_in_context(span, Context())
        with use_token(OWN_OPAQUE):
            pipeline.logger.emit(LogRecord(body="read", attributes={"a": "kept"}, context=context))
            pipeline.meter.create_counter("reads").add(1, {"a": "kept"}, context)
        data = pipeline.reader.get_metrics_data()
        (record,) = pipeline.logs[0].get_finished_logs()
    finally:
        pipeline.close()

    points = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
    assert [dict(point.attributes) for point in points] == [{"a": "kept"}]
    assert (record.log_record.body, dict(record.log_record.attributes)) == ("read", {"a": "kept"})
