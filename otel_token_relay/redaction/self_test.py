"""One made-up token sent through each hook, to see with our own eyes that it is caught.

Nothing of it reaches a provider, a processor or an exporter of the application.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from otel_token_relay.context import TOKEN_KEY
from otel_token_relay.redaction.known_tokens import REMEMBERED
from otel_token_relay.token import BearerToken

_JWT: Final = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJjYW5hcnkifQ.Y2FuYXJ5"


def is_caught_in_spans() -> bool:
    """Whether a span comes clean out of ``opentelemetry.sdk.trace``."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, _Span

    caught: list[Any] = []

    class Catcher(SpanProcessor):
        def on_end(self, span: Any) -> None:
            caught.append(span)

    token, context = _release()
    span = _Span(token, context, resource=Resource({}), span_processor=Catcher())
    span.start(parent_context=Context())
    span.set_attribute("canary", _JWT)
    span.add_event("canary", {"canary": (token, _JWT)})
    span.end()
    return len(caught) == 1 and _is_clean(token, caught[0].to_json())


def is_caught_in_logs() -> bool:
    """Whether a log record comes clean out of ``opentelemetry.sdk._logs``."""
    from opentelemetry._logs import LogRecord
    from opentelemetry.sdk._logs._internal import ReadableLogRecord
    from opentelemetry.sdk.resources import Resource

    token, context = _release()
    record = LogRecord(
        timestamp=time.time_ns(),
        context=set_span_in_context(NonRecordingSpan(context), Context()),
        body=f"canary {token}",
        attributes={"canary": _JWT},
    )
    readable = ReadableLogRecord(record, Resource({}))
    return _is_clean(token, repr((readable.log_record.body, dict(readable.log_record.attributes or {}))))


def is_caught_in_metrics() -> bool:
    """Whether a measurement comes clean to the aggregation."""
    from opentelemetry.sdk.metrics._internal.measurement import Measurement
    from opentelemetry.sdk.metrics._internal.metric_reader_storage import MetricReaderStorage

    caught: list[Any] = []

    class Catcher:
        def consume_measurement(self, measurement: Any, *args: Any) -> None:
            caught.append(measurement)

    class Storage(MetricReaderStorage):
        def __init__(self) -> None:
            """Need no configuration."""

        def _get_or_init_view_instrument_match(self, instrument: Any) -> Any:
            return [Catcher()]

    token, context = _release()
    Storage().consume_measurement(
        Measurement(
            1,
            time.time_ns(),
            None,  # type: ignore[arg-type]  # nobody asks for the instrument
            set_span_in_context(NonRecordingSpan(context), Context()),
            {"canary": token, "other": _JWT},
        )
    )
    return len(caught) == 1 and _is_clean(token, repr(caught[0].attributes))


def is_caught_in_resources() -> bool:
    """Return whether a resource that is made while the token is bound is clean."""
    from opentelemetry.sdk.resources import Resource

    with _bound() as token:
        resource = Resource({"canary": token}, token)
    return _is_clean(token, resource.to_json())


def is_caught_in_scopes() -> bool:
    """Return whether an instrumentation scope that is made while the token is bound is clean."""
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    with _bound() as token:
        scope = InstrumentationScope(token, token, token, {"canary": token})
    return _is_clean(token, scope.to_json())


def is_caught_in_tracers() -> bool:
    """Return whether the deprecated scope of a tracer that is made while the token is bound is clean."""
    from opentelemetry.metrics import NoOpMeterProvider
    from opentelemetry.sdk.trace import Tracer

    with _bound() as token:
        info: Any = SimpleNamespace(name=token, version=token, schema_url=token)
        nothing: Any = None  # no span is started
        tracer = Tracer(nothing, nothing, nothing, nothing, info, nothing, nothing, meter_provider=NoOpMeterProvider())
    return _is_clean(token, repr(tracer.instrumentation_info))


def is_caught_in_instruments() -> bool:
    """Return whether instruments that are made while the token is bound are clean."""
    from opentelemetry.sdk.metrics._internal import instrument

    sdk: Any = instrument
    with _bound() as token:
        # Without a scope and a consumer: nothing is measured.
        made = sdk._Counter(token, None, None, "", token), sdk._ObservableCounter(token, None, None, (), "", token)
    return _is_clean(token, repr([(each.name, each.description) for each in made]))


@contextmanager
def _bound() -> Iterator[str]:
    """Bind a made-up token that the memory is not told of."""
    token = f"canary-{secrets.token_hex(24)}"
    attached = otel_context.attach(Context({TOKEN_KEY: BearerToken(token)}))
    try:
        yield token
    finally:
        otel_context.detach(attached)


def _release() -> tuple[str, SpanContext]:
    token = f"canary-{secrets.token_hex(24)}"
    context = SpanContext(secrets.randbits(127) + 1, secrets.randbits(63) + 1, False, TraceFlags(1))
    REMEMBERED.remember(context.trace_id, token)
    return token, context


def _is_clean(token: str, text: str) -> bool:
    return token not in text and _JWT not in text
