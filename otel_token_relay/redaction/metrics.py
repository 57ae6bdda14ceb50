"""Redact measurements before aggregation, and redact names and descriptions during collection.

If measurements were aggregated first, each token would create a separate time series. Redacting those time series later
would result in multiple time series with the same attributes. ``MetricReaderStorage.consume_measurement`` receives each
measurement, including measurements from callbacks, before the SDK selects a time series and stores an exemplar.
"""

from __future__ import annotations

import contextlib
import dataclasses
from types import ModuleType
from typing import Any, Final

from otel_token_relay.patching import Function, Patches
from otel_token_relay.redaction.known_tokens import REMEMBERED, tokens_in_context
from otel_token_relay.redaction.records import clean_resource, clean_scope, gather_resource, gather_scope
from otel_token_relay.redaction.scrubber import FAILED, Scrubber
from otel_token_relay.redaction.token_search import NOTHING, KnownTokens

# If a measurement has more attributes than this limit, the result of the check is not cached, because such a
# measurement is unlikely to recur.
_MAX_ROW: Final = 20
_MAX_ROWS: Final = 64


def patch(module: ModuleType, scrubber: Scrubber, patches: Patches) -> None:
    """Hook ``opentelemetry.sdk.metrics._internal.metric_reader_storage``.

    Raises:
        AttributeError: The SDK does not have this conversion point.
    """

    def build_consume(original: Function) -> Function:
        def consume_measurement(self: Any, measurement: Any, should_sample_exemplar: bool = True) -> None:
            if attributes := measurement.attributes:
                try:
                    known = tokens_in_context(measurement.context)
                    if known is NOTHING and hasattr(measurement.instrument, "callback"):
                        # A callback runs in the reader's thread, where no token is bound.
                        known = REMEMBERED.without_trace()
                    # Most measurements have the same attributes as an earlier measurement.
                    if not is_known_clean(attributes, scrubber, known):
                        measurement = redacted(measurement, scrubber, known)
                except Exception:  # fail closed, but count the measurement
                    measurement = dataclasses.replace(measurement, attributes={"redaction": FAILED})
            original(self, measurement, should_sample_exemplar)

        return consume_measurement

    def build_collect(original: Function) -> Function:
        def collect(self: Any) -> Any:
            data = original(self)
            try:
                return data if data is None else clean_collected(data, scrubber)
            except Exception:  # fail closed, but keep the data points' values
                return wiped(data)

        return collect

    storage = module.MetricReaderStorage
    patches.wrap(storage, "consume_measurement", build_consume, ("self", "measurement", "should_sample_exemplar"))
    patches.wrap(storage, "collect", build_collect)


def is_known_clean(attributes: Any, scrubber: Scrubber, known: KnownTokens) -> bool:
    """Return whether an earlier check found the same attributes to be clean."""
    try:
        return (scrubber, *attributes, *attributes.values()) in known.clean_rows
    except TypeError:  # an attribute's value (for example, a list) is not hashable
        return False


def redacted(measurement: Any, scrubber: Scrubber, known: KnownTokens) -> Any:
    """Return the measurement with redacted attributes, or the same object if the attributes are already clean."""
    attributes = measurement.attributes
    strings: list[str] = []
    if scrubber.gather(attributes, strings, known) or scrubber.is_suspect("\0".join(strings), known):
        return dataclasses.replace(measurement, attributes=scrubber.clean(dict(attributes), known))
    if len(attributes) <= _MAX_ROW:
        if len(known.clean_rows) >= _MAX_ROWS:
            known.clean_rows.clear()
        with contextlib.suppress(TypeError):
            known.clean_rows.add((scrubber, *attributes, *attributes.values()))
    return measurement


def clean_collected(data: Any, scrubber: Scrubber) -> Any:
    """Redact the resources, scopes, names, descriptions, and units in collected metrics.

    This function searches for patterns but not for known tokens; see `statics`.
    """
    strings: list[str] = []
    suspect = False
    for part in data.resource_metrics:
        suspect = gather_resource(part.resource, scrubber, strings, NOTHING) or suspect
        for scoped in part.scope_metrics:
            suspect = gather_scope(scoped.scope, scrubber, strings, NOTHING) or suspect
            for metric in scoped.metrics:
                strings += (metric.name, metric.description or "", metric.unit or "")
    if not suspect and not scrubber.is_suspect("\0".join(strings), NOTHING):
        return data
    return dataclasses.replace(
        data, resource_metrics=[_clean_resource_metrics(part, scrubber) for part in data.resource_metrics]
    )


def wiped(data: Any) -> Any:
    """Remove the text from collected metrics that cannot be redacted.

    The data points' attributes are kept, because they are already clean.
    """
    return dataclasses.replace(
        data,
        resource_metrics=[
            dataclasses.replace(
                part,
                resource=type(part.resource)({}),
                schema_url="",
                scope_metrics=[
                    dataclasses.replace(
                        scoped,
                        scope=type(scoped.scope)(FAILED),
                        schema_url="",
                        metrics=[
                            dataclasses.replace(metric, name=FAILED, description="", unit="")
                            for metric in scoped.metrics
                        ],
                    )
                    for scoped in part.scope_metrics
                ],
            )
            for part in data.resource_metrics
        ],
    )


def _clean_resource_metrics(part: Any, scrubber: Scrubber) -> Any:
    return dataclasses.replace(
        part,
        resource=clean_resource(part.resource, scrubber),
        schema_url=scrubber.redact(part.schema_url, NOTHING),
        scope_metrics=[
            dataclasses.replace(
                scoped,
                scope=clean_scope(scoped.scope, scrubber),
                schema_url=scrubber.redact(scoped.schema_url, NOTHING),
                metrics=[_clean_metric(metric, scrubber) for metric in scoped.metrics],
            )
            for scoped in part.scope_metrics
        ],
    )


def _clean_metric(metric: Any, scrubber: Scrubber) -> Any:
    fields = {name: getattr(metric, name) for name in ("name", "description", "unit")}
    cleaned = {name: scrubber.redact(text, NOTHING) for name, text in fields.items()}
    return metric if cleaned == fields else dataclasses.replace(metric, **cleaned)
