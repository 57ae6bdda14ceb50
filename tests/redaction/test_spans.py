"""Each span is searched for the relevant tokens, and nothing else in it changes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from unittest.mock import MagicMock, Mock

import pytest
from opentelemetry import trace
from opentelemetry._logs import LogRecord
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import (
    ConcurrentMultiSpanProcessor,
    ReadableSpan,
    SpanLimits,
    SpanProcessor,
    TracerProvider,
    _Span,
)
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, TraceFlags, TraceState

from otel_token_relay import Settings, install, use_token
from otel_token_relay.redaction import spans
from otel_token_relay.redaction.known_tokens import REMEMBERED
from otel_token_relay.redaction.scrubber import FAILED, MASK, Scrubber
from otel_token_relay.redaction.spans import redacted
from otel_token_relay.redaction.token_search import known_from_one
from tests.redaction.corpus import OWN_OPAQUE
from tests.redaction.pipeline import Pipeline, leaks


def test_only_the_token_is_removed_from_a_record():
    """Masking one value does not change counts, limits, times, IDs, or the rest of the record."""
    pipeline = Pipeline()
    pipeline.tracers._span_limits = SpanLimits(max_span_attributes=2, max_events=1)
    install(Settings())
    link = Link(SpanContext(5, 6, True, TraceFlags(1), TraceState([("v", OWN_OPAQUE)])), {"a": OWN_OPAQUE})
    try:
        with use_token(OWN_OPAQUE):
            span = pipeline.tracers.get_tracer("t").start_span(
                "x", links=[link], attributes={"a": 1, "b": 2, "c": OWN_OPAQUE}
            )
            span.add_event("one")
            span.add_event("two", {"a": OWN_OPAQUE, "n": 7}, timestamp=77)
            span.end()
            live = dict(span.attributes)
        exported = pipeline.spans[0].get_finished_spans()[0]
    finally:
        pipeline.close()

    assert dict(exported.attributes) == {"b": 2, "c": MASK}
    assert (exported.dropped_attributes, exported.dropped_events) == (1, 1)
    assert (exported.events[0].timestamp, dict(exported.events[0].attributes)) == (77, {"a": MASK, "n": 7})
    assert exported.get_span_context() == span.get_span_context()
    assert exported.start_time == span.start_time
    assert dict(exported.links[0].context.trace_state) == {"v": MASK}
    # Redaction does not modify the application's objects or the trace state that is sent on the wire.
    assert live == {"b": 2, "c": OWN_OPAQUE}
    assert dict(link.attributes) == {"a": OWN_OPAQUE}
    assert dict(link.context.trace_state) == {"v": OWN_OPAQUE}


def test_a_span_that_ends_after_the_request_is_masked():
    """A span that ends after the request is masked for the trace's token, in every thread."""
    pipeline = Pipeline()
    install(Settings())
    try:
        with use_token(OWN_OPAQUE):
            span = pipeline.tracer.start_span("x")
            child = pipeline.tracer.start_span("y", context=trace.set_span_in_context(span))
        span.set_attribute("a", OWN_OPAQUE)
        child.update_name(f"late {OWN_OPAQUE}")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(child.end).result()
            pool.submit(span.end).result()
        exported = pipeline.exported()
    finally:
        pipeline.close()

    assert not any(leaks(OWN_OPAQUE, text) for text in exported)


def test_a_span_that_ends_under_another_token_contains_neither():
    """A span that starts for one user and ends in a different user's context is masked for both tokens."""
    pipeline = Pipeline()
    other = "kZ8fWq2Lr0TnVb5YxHj3MdPs7c"
    install(Settings())
    try:
        with use_token(OWN_OPAQUE):
            span = pipeline.tracer.start_span("x")
        span.set_attributes({"a": f"of {OWN_OPAQUE}", "b": f"of {other}"})
        with use_token(other):
            span.end()
        exported = pipeline.exported()
    finally:
        pipeline.close()

    assert not any(leaks(token, text) for token in (OWN_OPAQUE, other) for text in exported)


def test_a_span_without_a_request_knows_the_recent_tokens_of_its_thread():
    """A span without a request is searched for the recent tokens of its thread, which it can have as attributes."""
    pipeline = Pipeline()
    install(Settings())
    try:
        span = pipeline.tracer.start_span("x", context=Context())
        with use_token(OWN_OPAQUE):
            span.set_attribute("a", f"of {OWN_OPAQUE}")
        span.end()
        exported = pipeline.exported()
    finally:
        pipeline.close()

    assert not any(leaks(OWN_OPAQUE, text) for text in exported)


def test_a_token_that_is_bound_after_the_span_has_started_is_known():
    """A token that is bound after the span starts, for example, during a login, is masked."""
    pipeline = Pipeline()
    install(Settings())
    try:
        with pipeline.tracer.start_as_current_span("server") as server:
            with use_token(OWN_OPAQUE):
                pass
            server.set_attribute("a", OWN_OPAQUE)
            pipeline.logger.emit(LogRecord(timestamp=1, body=OWN_OPAQUE))
        exported = pipeline.exported()
    finally:
        pipeline.close()

    assert not any(leaks(OWN_OPAQUE, text) for text in exported)


def test_a_concurrent_multi_processor_gets_clean_spans():
    """Processors that run in their own threads, without the request's context, get clean spans."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(active_span_processor=ConcurrentMultiSpanProcessor(2), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    install(Settings())
    try:
        with use_token(OWN_OPAQUE), provider.get_tracer("t").start_as_current_span("x") as span:
            span.set_attribute("a", OWN_OPAQUE)
        finished = exporter.get_finished_spans()
    finally:
        provider.shutdown()

    assert [dict(span.attributes) for span in finished] == [{"a": MASK}]


def test_a_redacted_copy_of_a_span_leaves_the_span_as_it_is():
    """A live span and a finished span are copied, and only the copies are masked."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("t")
    with use_token(OWN_OPAQUE):
        span = tracer.start_span(f"GET /{OWN_OPAQUE}", attributes={"a": OWN_OPAQUE, "n": 1})
        span.add_event("read", {"a": OWN_OPAQUE})
        finished = span._readable_span()
        copies = [redacted(one, Scrubber()) for one in (span, finished)]

    for copy, original in zip(copies, (span, finished), strict=True):
        assert type(copy) is ReadableSpan
        assert (copy.name, dict(copy.attributes)) == (f"GET /{MASK}", {"a": MASK, "n": 1})
        assert [(event.name, dict(event.attributes)) for event in copy.events] == [("read", {"a": MASK})]
        assert copy.context == original.context
        assert (original.name, dict(original.attributes)) == (f"GET /{OWN_OPAQUE}", {"a": OWN_OPAQUE, "n": 1})


def test_a_redacted_copy_is_searched_for_other_tokens_if_its_own_are_unknown():
    """A span for which no tokens are known is searched for the tokens that the caller passes."""
    REMEMBERED.forget()  # the thread might remember the token of an earlier test
    span = TracerProvider(shutdown_on_exit=False).get_tracer("t").start_span(f"GET /{OWN_OPAQUE}", Context())

    assert redacted(span, Scrubber()).name == f"GET /{OWN_OPAQUE}"
    assert redacted(span, Scrubber(), known_from_one(OWN_OPAQUE)).name == f"GET /{MASK}"


def test_a_span_that_cannot_be_copied_as_usual_is_wiped():
    """A span whose data cannot be read is copied without its data, and keeps its context."""
    span = TracerProvider(shutdown_on_exit=False).get_tracer("t").start_span(OWN_OPAQUE, attributes={"a": OWN_OPAQUE})
    del span._links

    copy = redacted(span, Scrubber())

    assert (copy.name, dict(copy.attributes)) == (FAILED, {})
    assert copy.context == span.context


class Collector(SpanProcessor):
    """A span processor that keeps all spans, including those that are not sampled."""

    def __init__(self):
        self.ended = []

    def on_end(self, span):
        self.ended.append(span)


class OtherContext(SpanContext):
    """A span context whose constructor has different parameters."""

    def __new__(cls):
        return super().__new__(cls, 5, 6, False, TraceFlags(1), TraceState([("v", OWN_OPAQUE)]))


@pytest.mark.parametrize("context", [OtherContext(), Mock(spec=SpanContext), Mock()], ids=["subclass", "spec", "mock"])
def test_a_span_with_an_odd_context_ends_without_an_error(context):
    """A span with an unusual context is cleaned or wiped without an error."""
    pipeline = Pipeline()
    install(Settings())
    try:
        with use_token(OWN_OPAQUE):
            span = _Span("x", context, resource=Resource({}), span_processor=Collector())
            span.start()
            span.set_attribute("a", f"{OWN_OPAQUE} b")
            span.end()
        (exported,) = span._span_processor.ended
        values = [exported.name, dict(exported.attributes), dict(exported.get_span_context().trace_state)]
        assert not leaks(OWN_OPAQUE, repr(values).encode())
    finally:
        pipeline.close()


ODD_CONTEXTS = {
    "subclass": OtherContext(),
    "spec": Mock(spec=SpanContext),
    "mock": Mock(),
    "magic mock": MagicMock(),
    "unhashable id": Mock(trace_id=[1]),
    "text": Mock(trace_id=OWN_OPAQUE, span_id=OWN_OPAQUE, trace_state={"v": OWN_OPAQUE}),
    "numbers": Mock(trace_id=5, span_id=6, is_remote=True, trace_flags=TraceFlags(1)),
    "object": object(),
}


@pytest.mark.parametrize("place", ["_context", "_parent", "link"])
@pytest.mark.parametrize("name", ODD_CONTEXTS)
def test_of_a_span_with_an_odd_context_only_the_context_is_wiped(name, place):
    """A span with an unusual context keeps its name, attributes, events, and IDs."""
    context = ODD_CONTEXTS[name]
    pipeline = Pipeline()
    install(Settings())
    try:
        own = context if place == "_context" else SpanContext(5, 6, False, TraceFlags(1))
        parent = context if place == "_parent" else None
        with use_token(OWN_OPAQUE):
            span = _Span("x", own, parent=parent, resource=Resource({"r": "kept"}), span_processor=Collector())
            span.start()
            if place == "link":
                span._links = [Link(context, {"c": "kept"})]
            span.set_attribute("a", f"{OWN_OPAQUE} b")
            span.add_event("e", {"d": "kept"})
            span.end()
        (exported,) = span._span_processor.ended
        assert (exported.name, dict(exported.attributes)) == ("x", {"a": f"{MASK} b"})
        assert [dict(event.attributes) for event in exported.events] == [{"d": "kept"}]
        assert dict(exported.resource.attributes) == {"r": "kept"}
        found = exported.links[0].context if place == "link" else getattr(exported, place)
        if name == "numbers":
            assert (found.trace_id, found.span_id, bool(found.is_remote)) == (5, 6, True)
        if name != "magic mock":  # its repr contains an empty trace state
            assert type(found) is SpanContext
            assert OWN_OPAQUE not in repr(dict(found.trace_state))
    finally:
        pipeline.close()


def test_a_record_that_cannot_even_be_wiped_as_usual_raises_nothing(monkeypatch):
    """A record whose resource and status are not SDK objects is wiped without an error."""

    def fail(*args):
        raise RuntimeError(OWN_OPAQUE)

    install(Settings())
    monkeypatch.setattr(spans, "is_suspect", fail)
    with use_token(OWN_OPAQUE):
        span = _Span(OWN_OPAQUE, SpanContext(5, 6, False, TraceFlags(1)), resource=7, span_processor=Collector())
        span.start()
        span._status = object()
        span.end()
    (exported,) = span._span_processor.ended

    assert exported.name == FAILED
    assert exported.status.description is None
    assert exported.resource is None


@pytest.mark.parametrize("name", [None, 7, object()], ids=["none", "number", "object"])
def test_a_name_that_is_not_text_loses_nothing_else(name):
    """A span or an event whose name is not text keeps all its other data."""
    pipeline = Pipeline()
    install(Settings())
    try:
        with use_token(OWN_OPAQUE):
            span = pipeline.tracer.start_span(name, attributes={"a": "kept", "b": OWN_OPAQUE})
            span.add_event(name, {"c": "kept"})
            span.end()
        (exported,) = pipeline.spans[0].get_finished_spans()
        assert exported.name is name
        assert dict(exported.attributes) == {"a": "kept", "b": MASK}
        assert [(event.name, dict(event.attributes)) for event in exported.events] == [(name, {"c": "kept"})]
    finally:
        pipeline.close()


def test_a_name_with_a_secret_key_is_masked_beside_clean_attributes():
    """A name that contains a secret is masked even if the attributes are clean."""
    pipeline = Pipeline()
    install(Settings())
    try:
        pipeline.tracer.start_span({"client_secret": "plain"}, attributes={"a": "kept"}).end()
        (exported,) = pipeline.spans[0].get_finished_spans()
        assert exported.name == {"client_secret": MASK}
    finally:
        pipeline.close()


def test_a_resource_of_another_class_is_wiped_without_an_error():
    """A resource whose constructor has different parameters is wiped without an error."""

    class OtherResource(Resource):
        def __init__(self):
            super().__init__({"a": OWN_OPAQUE})

    class Broken:
        def __str__(self):
            raise RuntimeError(OWN_OPAQUE)

    pipeline = Pipeline()
    install(Settings())
    try:
        span = _Span(Broken(), Mock(spec=SpanContext), resource=OtherResource(), span_processor=Collector())
        span.start()
        span.end()
        (exported,) = span._span_processor.ended
        assert (exported.name, dict(exported.resource.attributes)) == (FAILED, {})
    finally:
        pipeline.close()
