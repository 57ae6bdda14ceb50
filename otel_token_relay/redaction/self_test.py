"""Test each hook once by passing a test token through the hook and checking that the token is redacted.

The application's providers, processors, and exporters do not receive the test data.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from otel_token_relay.context import TOKEN_KEY
from otel_token_relay.redaction.known_tokens import REMEMBERED
from otel_token_relay.token import BearerToken

_JWT: Final = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJzZWxmLXRlc3QifQ.c2VsZi10ZXN0"


def is_caught_in_spans() -> bool:
    """Return whether a span processor receives the test span without the test tokens."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, _Span

    received: list[Any] = []

    class Recorder(SpanProcessor):
        def on_end(self, span: Any) -> None:
            received.append(span)

    token, context = _remember_test_token()
    span = _Span(token, context, resource=Resource({}), span_processor=Recorder())
    span.start(parent_context=Context())
    span.set_attribute("self_test", _JWT)
    span.add_event("self_test", {"self_test": (token, _JWT)})
    span.end()
    return len(received) == 1 and _is_clean(token, received[0].to_json())


def is_caught_in_logs() -> bool:
    """Return whether the test record's tokens are masked in the readable log record."""
    from opentelemetry._logs import LogRecord
    from opentelemetry.sdk._logs._internal import ReadableLogRecord
    from opentelemetry.sdk.resources import Resource

    token, context = _remember_test_token()
    record = LogRecord(
        timestamp=time.time_ns(),
        context=set_span_in_context(NonRecordingSpan(context), Context()),
        body=f"self-test {token}",
        attributes={"self_test": _JWT},
    )
    readable = ReadableLogRecord(record, Resource({}))
    return _is_clean(token, repr((readable.log_record.body, dict(readable.log_record.attributes or {}))))


def is_caught_in_metrics() -> bool:
    """Return whether aggregation receives the test measurement without the test tokens."""
    from opentelemetry.sdk.metrics._internal.measurement import Measurement
    from opentelemetry.sdk.metrics._internal.metric_reader_storage import MetricReaderStorage

    received: list[Any] = []

    class Recorder:
        def consume_measurement(self, measurement: Any, *args: Any) -> None:
            received.append(measurement)

    class Storage(MetricReaderStorage):
        def __init__(self) -> None:
            """Skip the original constructor, which requires a configuration."""

        def _get_or_init_view_instrument_match(self, instrument: Any) -> Any:
            return [Recorder()]

    token, context = _remember_test_token()
    Storage().consume_measurement(
        Measurement(
            1,
            time.time_ns(),
            None,  # type: ignore[arg-type]  # the instrument is not used
            set_span_in_context(NonRecordingSpan(context), Context()),
            {"self_test": token, "other": _JWT},
        )
    )
    return len(received) == 1 and _is_clean(token, repr(received[0].attributes))


def is_caught_in_resources() -> bool:
    """Return whether creating a resource masks the bound test token."""
    from opentelemetry.sdk.resources import Resource

    return _is_caught_while_bound(lambda token: Resource({"self_test": token}, token).to_json())


def is_caught_in_scopes() -> bool:
    """Return whether creating an instrumentation scope masks the bound test token."""
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    return _is_caught_while_bound(
        lambda token: InstrumentationScope(token, token, token, {"self_test": token}).to_json()
    )


def is_caught_in_tracers() -> bool:
    """Return whether creating a tracer masks the bound test token in the tracer's deprecated scope."""
    from opentelemetry.metrics import NoOpMeterProvider
    from opentelemetry.sdk.trace import Tracer

    def build(token: str) -> str:
        info: Any = SimpleNamespace(name=token, version=token, schema_url=token)
        nothing: Any = None  # not required, because no spans are started
        tracer = Tracer(nothing, nothing, nothing, nothing, info, nothing, nothing, meter_provider=NoOpMeterProvider())
        return repr(tracer.instrumentation_info)

    return _is_caught_while_bound(build)


def is_caught_in_instruments() -> bool:
    """Return whether creating instruments masks the bound test token."""
    from opentelemetry.sdk.metrics._internal import instrument

    def build(token: str) -> str:
        sdk: Any = instrument
        # A scope and a consumer are not required, because nothing is measured.
        made = sdk._Counter(token, None, None, "", token), sdk._ObservableCounter(token, None, None, (), "", token)
        return repr([(each.name, each.description) for each in made])

    return _is_caught_while_bound(build)


def _is_caught_while_bound(build: Callable[[str], str]) -> bool:
    """Return whether *build* masks the test token while it is bound but not remembered."""
    token = f"self-test-{secrets.token_hex(24)}"
    attached = otel_context.attach(Context({TOKEN_KEY: BearerToken(token)}))
    try:
        return _is_clean(token, build(token))
    finally:
        otel_context.detach(attached)


def _remember_test_token() -> tuple[str, SpanContext]:
    token = f"self-test-{secrets.token_hex(24)}"
    context = SpanContext(secrets.randbits(127) + 1, secrets.randbits(63) + 1, False, TraceFlags(1))
    REMEMBERED.remember(context.trace_id, token)
    return token, context


def _is_clean(token: str, text: str) -> bool:
    return token not in text and _JWT not in text
