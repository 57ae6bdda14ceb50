"""OpenTelemetry's private names behave as the package's core assumes."""

from __future__ import annotations

import contextvars
import subprocess
import sys

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
    set_strings,
)


def test_a_context_keeps_its_span_under_the_key() -> None:
    """A context keeps its span under the private key, as the same object that the public function returns."""
    span = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False))
    context = trace.set_span_in_context(span, Context())

    assert context[SPAN_KEY] is trace.get_current_span(context) is span
    assert SPAN_KEY not in Context()


def test_telemetrys_own_work_is_suppressed() -> None:
    """OpenTelemetry's own work, such as an export, is recognized by the mark that instrumentation also reads."""
    assert not is_suppressed(otel_context.get_current())
    with suppress_instrumentation():
        assert is_suppressed(otel_context.get_current())
        assert not is_instrumentation_enabled()
    assert not is_suppressed(otel_context.get_current())


def test_a_call_of_the_application_in_an_instrumented_client_is_not_suppressed() -> None:
    """A call through an instrumented requests client is not suppressed, because only urllib3's instrumentation is
    suppressed.
    """
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
    """Either suppression key is recognized, because older exporters set a different key."""
    assert is_suppressed(Context(values)) is expected


def test_the_parts_of_a_composite_are_listed_in_order() -> None:
    """The parts of a composite are listed in order in a copy, and a propagator without parts is its own only part."""
    first, second = TraceContextTextMapPropagator(), W3CBaggagePropagator()
    composite = CompositePropagator([first, second])

    parts = parts_of(composite)
    parts.clear()

    assert parts_of(composite) == [first, second]
    assert parts_of(first) == [first]
    assert parts_of(CompositePropagator([])) == []


def test_either_scope_suppresses_a_server() -> None:
    """Either kind of suppression applies to a server, as it does in server instrumentation."""
    assert not is_server_suppressed(otel_context.get_current())
    for suppress in (suppress_instrumentation, suppress_http_instrumentation):
        with suppress():
            assert is_server_suppressed(otel_context.get_current())


def test_the_current_context_is_opentelemetrys() -> None:
    """The direct access to the current context uses the same variable as OpenTelemetry."""
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
    """A context that cannot be detached is logged, because an event loop can close a coroutine in a different task."""
    caplog.set_level("DEBUG", "otel_token_relay")
    foreign = contextvars.copy_context().run(attach, Context({"other": 1}))
    before = get_current()
    detach(foreign)

    assert get_current() is before
    assert "could not be detached" in caplog.text


def test_the_default_context_keeps_unknown_keys() -> None:
    """The default context keeps unknown keys, which `test_r15_lossy_context` tests with a different runtime context."""
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
    """Text attributes are set as the SDK sets them, within the span's limits and in place of existing values."""
    tracer = TracerProvider(span_limits=limits).get_tracer("t")
    ours, theirs = (tracer.start_span("s", attributes={"zero": "z", "one": "old"}) for _ in range(2))
    assert isinstance(ours, Span)
    assert isinstance(theirs, Span)

    set_strings(ours, TEXTS)
    theirs.set_attributes(TEXTS)

    assert dict(ours.attributes or {}) == dict(theirs.attributes or {})
    assert ours.dropped_attributes == theirs.dropped_attributes


def test_texts_are_not_set_on_a_span_that_has_ended() -> None:
    """Text attributes are not set on an ended span, whose record might be waiting for the exporter."""
    span = TracerProvider().get_tracer("t").start_span("s")
    assert isinstance(span, Span)
    span.end()

    set_strings(span, TEXTS)

    assert not span.attributes


@pytest.mark.parametrize("replaced", ["span", "class", "subclass"])
def test_a_setter_that_an_application_has_replaced_is_called(replaced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setter that an application replaced, for one span or for all, is called."""
    seen: list[tuple[str, str]] = []

    def note(key: str, value: str) -> None:
        seen.append((key, value))

    span = TracerProvider().get_tracer("t").start_span("s")
    set_strings(span, TEXTS)
    if replaced == "span":
        monkeypatch.setattr(span, "set_attribute", note)
    elif replaced == "class":
        monkeypatch.setattr(Span, "set_attribute", lambda self, key, value: note(key, value))
    else:
        derived = type("Derived", (type(span),), {"set_attribute": lambda self, key, value: note(key, value)})
        object.__setattr__(span, "__class__", derived)

    set_strings(span, TEXTS)

    assert seen == [*TEXTS.items()]


def test_texts_are_set_on_spans_that_are_not_the_sdks() -> None:
    """Attributes are set on a span that is not the SDK's, which can keep attributes elsewhere."""
    seen: list[tuple[str, str]] = []

    class Other(trace.NonRecordingSpan):
        def set_attribute(self, key: str, value: object) -> None:
            seen.append((key, str(value)))

    set_strings(Other(trace.INVALID_SPAN_CONTEXT), TEXTS)

    assert seen == [*TEXTS.items()]


def test_an_instrumentor_does_not_choose_the_semantic_conventions() -> None:
    """The application can still set the variable that OpenTelemetry reads when the first instrumentor runs."""
    program = (
        "import os\n"
        "from opentelemetry.instrumentation._semconv import _OpenTelemetrySemanticConventionStability as choice\n"
        "from opentelemetry.instrumentation.threading import ThreadingInstrumentor\n"
        "from otel_token_relay.otel import without_choosing_conventions\n"
        "with without_choosing_conventions():\n"
        "    choice._initialize()\n"
        "    assert choice._initialized\n"
        "assert not choice._initialized\n"
        "choice._initialize()\n"
        "with without_choosing_conventions():\n"
        "    pass\n"
        "assert choice._initialized\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
