"""The private names of OpenTelemetry that the core uses still mean what it assumes."""

from __future__ import annotations

import contextvars

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import (
    is_instrumentation_enabled,
    suppress_http_instrumentation,
    suppress_instrumentation,
)
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.trace import Span, SpanLimits, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_token_relay.otel import (
    OLD_SUPPRESS_KEY,
    SPAN_KEY,
    SUPPRESS_KEY,
    attach,
    detach,
    get_current,
    is_server_suppressed,
    is_suppressed,
    keeps_unknown_keys,
    parts_of,
    set_texts,
)


def test_a_context_keeps_its_span_under_the_key() -> None:
    """It is the same object that the public function returns."""
    span = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False))
    context = trace.set_span_in_context(span, Context())

    assert context[SPAN_KEY] is trace.get_current_span(context) is span
    assert SPAN_KEY not in Context()


def test_telemetrys_own_work_is_suppressed() -> None:
    """Exporters mark their calls in this way, and instrumentation reads the same mark."""
    assert not is_suppressed(otel_context.get_current())
    with suppress_instrumentation():
        assert is_suppressed(otel_context.get_current())
        assert not is_instrumentation_enabled()
    assert not is_suppressed(otel_context.get_current())


def test_a_call_of_the_application_in_an_instrumented_client_is_not_suppressed() -> None:
    """The instrumentation of requests suppresses only that of urllib3 inside it, and the call must be relayed."""
    with suppress_http_instrumentation():
        assert not is_suppressed(otel_context.get_current())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, False),
        ({SUPPRESS_KEY: True}, True),
        ({OLD_SUPPRESS_KEY: True}, True),
        ({SUPPRESS_KEY: False, OLD_SUPPRESS_KEY: True}, True),
        ({SUPPRESS_KEY: False}, False),
        ({"suppress_http_instrumentation": True}, False),
    ],
    ids=["neither", "new", "old", "old, new off", "new off", "HTTP only"],
)
def test_either_key_suppresses(values: dict[str, object], expected: bool) -> None:
    """Older releases of exporters set another key."""
    assert is_suppressed(Context(values)) is expected


def test_the_parts_of_a_composite_are_listed_in_order() -> None:
    """The list is a copy. A propagator without parts is its own only part."""
    first, second = TraceContextTextMapPropagator(), W3CBaggagePropagator()
    composite = CompositePropagator([first, second])

    parts = parts_of(composite)
    parts.clear()

    assert parts_of(composite) == [first, second]
    assert parts_of(first) == [first]
    assert parts_of(CompositePropagator([])) == []


def test_either_scope_suppresses_a_server() -> None:
    """As for instrumentation of servers."""
    assert not is_server_suppressed(otel_context.get_current())
    for suppress in (suppress_instrumentation, suppress_http_instrumentation):
        with suppress():
            assert is_server_suppressed(otel_context.get_current())


def test_the_current_context_is_opentelemetrys() -> None:
    """The shorter way to it reads and writes the same variable."""
    before = get_current()
    assert otel_context.get_current() is before

    ours = attach(Context({"ours": 1}))
    assert otel_context.get_current() == {"ours": 1}
    theirs = otel_context.attach(Context({"theirs": 1}))
    assert get_current() == {"theirs": 1}
    otel_context.detach(theirs)
    detach(ours)
    assert get_current() is before


def test_a_context_that_cannot_be_detached_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The event loop may close a coroutine in another task than the one that ran it."""
    caplog.set_level("DEBUG", "otel_token_relay")
    foreign = contextvars.copy_context().run(attach, Context({"other": 1}))
    before = get_current()
    detach(foreign)

    assert get_current() is before
    assert "could not be detached" in caplog.text


def test_the_default_context_keeps_unknown_keys() -> None:
    """Another runtime context may not, which `test_r15_lossy_context` tries."""
    before = otel_context.get_current()
    assert keeps_unknown_keys()
    assert otel_context.get_current() is before


TEXTS = {"one": "first", "two": "second value"}
LIMITS = {
    "none": SpanLimits(max_span_attributes=None),
    "room": SpanLimits(max_span_attributes=8),
    "full": SpanLimits(max_span_attributes=2),
    "no attributes": SpanLimits(max_span_attributes=0),
    "length": SpanLimits(max_span_attribute_length=3),
}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_texts_are_set_as_the_sdk_sets_them(limits: SpanLimits) -> None:
    """The limits of the span apply, and a value that the span has is replaced."""
    tracer = TracerProvider(span_limits=limits).get_tracer("t")
    ours, theirs = (tracer.start_span("s", attributes={"zero": "z", "one": "old"}) for _ in range(2))
    assert isinstance(ours, Span)
    assert isinstance(theirs, Span)

    set_texts(ours, TEXTS)
    theirs.set_attributes(TEXTS)

    assert dict(ours.attributes or {}) == dict(theirs.attributes or {})
    assert ours.dropped_attributes == theirs.dropped_attributes


def test_texts_are_not_set_on_a_span_that_has_ended() -> None:
    """Its record may be waiting for the exporter."""
    span = TracerProvider().get_tracer("t").start_span("s")
    assert isinstance(span, Span)
    span.end()

    set_texts(span, TEXTS)

    assert not span.attributes


@pytest.mark.parametrize("replaced", ["span", "class", "subclass"])
def test_a_setter_that_an_application_has_replaced_is_called(replaced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may do more than the SDK's own, for example for one span or for all."""
    seen: list[tuple[str, str]] = []

    def note(key: str, value: str) -> None:
        seen.append((key, value))

    span = TracerProvider().get_tracer("t").start_span("s")
    set_texts(span, TEXTS)
    if replaced == "span":
        monkeypatch.setattr(span, "set_attribute", note)
    elif replaced == "class":
        monkeypatch.setattr(Span, "set_attribute", lambda self, key, value: note(key, value))
    else:
        derived = type("Derived", (type(span),), {"set_attribute": lambda self, key, value: note(key, value)})
        object.__setattr__(span, "__class__", derived)

    set_texts(span, TEXTS)

    assert seen == [*TEXTS.items()]


def test_texts_are_set_on_spans_that_are_not_the_sdks() -> None:
    """Another implementation of the API, or a later version of the SDK, may keep attributes elsewhere."""
    seen: list[tuple[str, str]] = []

    class Other(trace.NonRecordingSpan):
        def set_attribute(self, key: str, value: object) -> None:
            seen.append((key, str(value)))

    set_texts(Other(trace.INVALID_SPAN_CONTEXT), TEXTS)

    assert seen == [*TEXTS.items()]
