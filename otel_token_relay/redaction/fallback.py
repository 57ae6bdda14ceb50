"""Wrap processors and exporters through public methods if the SDK's conversion points cannot be used.

The `otel-token-relay check` command reports whether this fallback is used. The fallback has two limitations. Processors
and exporters that were registered earlier are not wrapped. Metrics are redacted only on export, so each token still
creates a separate time series.
"""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

from otel_token_relay.copying import shallow_copy
from otel_token_relay.patching import Function, Patches
from otel_token_relay.redaction import logs, metrics
from otel_token_relay.redaction.known_tokens import REMEMBERED
from otel_token_relay.redaction.scrubber import FAILED, Scrubber


def patch_spans(module: ModuleType, scrubber: Scrubber, patches: Patches) -> None:
    """Wrap each processor that is added to a tracer provider."""

    def build(original: Function) -> Function:
        def add_span_processor(self: Any, span_processor: Any) -> None:
            # The `processors` module requires the SDK, which might be imported later than this module.
            from otel_token_relay.redaction.processors import wrapped

            original(self, wrapped(span_processor, scrubber))

        return add_span_processor

    patches.wrap(module.TracerProvider, "add_span_processor", build)


def patch_logs(module: ModuleType, scrubber: Scrubber, patches: Patches) -> None:
    """Wrap each processor that is added to a logger provider."""

    def build(original: Function) -> Function:
        def add_log_record_processor(self: Any, log_record_processor: Any) -> None:
            original(self, _LogProcessor(log_record_processor, scrubber))

        return add_log_record_processor

    patches.wrap(module.LoggerProvider, "add_log_record_processor", build)


def patch_metrics(module: ModuleType, scrubber: Scrubber, patches: Patches) -> None:
    """Wrap the exporter of each periodic reader."""

    def build(original: Function) -> Function:
        def __init__(self: Any, exporter: Any, *args: Any, **kwargs: Any) -> None:
            original(self, _MetricExporter(exporter, scrubber), *args, **kwargs)

        return __init__

    patches.wrap(module.PeriodicExportingMetricReader, "__init__", build)


class _Wrapper:
    """A wrapper that forwards lookups of undefined attributes to the wrapped object."""

    def __init__(self, wrapped: Any, scrubber: Scrubber) -> None:
        self._wrapped = wrapped
        self._scrubber = scrubber

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


class _LogProcessor(_Wrapper):
    def on_emit(self, log_record: Any) -> None:
        copy = shallow_copy(log_record)
        try:
            record = log_record.log_record
            logs.redact(copy, self._scrubber, logs.tokens_of_record(record))
        except Exception:  # fail closed
            logs.wipe(copy)
        self._wrapped.on_emit(copy)


class _MetricExporter(_Wrapper):
    def export(self, metrics_data: Any, *args: Any, **kwargs: Any) -> Any:
        cleaned = metrics.clean_collected(metrics_data, self._scrubber)
        for resource_metrics in cleaned.resource_metrics:
            for scope_metrics in resource_metrics.scope_metrics:
                scope_metrics.metrics[:] = [self._clean(metric) for metric in scope_metrics.metrics]
        return self._wrapped.export(cleaned, *args, **kwargs)

    def _clean(self, metric: Any) -> Any:
        points = [self._clean_point(point) for point in metric.data.data_points]
        return dataclasses.replace(metric, data=dataclasses.replace(metric.data, data_points=points))

    def _clean_point(self, point: Any) -> Any:
        known = REMEMBERED.all_tokens()
        try:
            attributes = self._scrubber.redact(dict(point.attributes or {}), known)
            exemplars = [
                dataclasses.replace(
                    e, filtered_attributes=self._scrubber.redact(dict(e.filtered_attributes or {}), known)
                )
                for e in point.exemplars
            ]
        except Exception:  # fail closed, but keep the data point's value
            attributes, exemplars = {"redaction": FAILED}, []
        return dataclasses.replace(point, attributes=attributes, exemplars=exemplars)
