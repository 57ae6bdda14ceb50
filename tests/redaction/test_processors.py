"""An application can wrap its processors and exporters itself, without the hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_token_relay import Settings, use_token
from otel_token_relay.redaction import RedactingSpanExporter, RedactingSpanProcessor, known_tokens
from otel_token_relay.redaction.processors import wrapped
from otel_token_relay.redaction.scrubber import MASK, Scrubber
from tests.redaction.corpus import OWN_OPAQUE
from tests.redaction.pipeline import leaks, shown


@pytest.fixture(autouse=True)
def listeners() -> Iterator[None]:
    """Stop listening for tokens, which each redacting processor and exporter starts."""
    before = known_tokens._listeners
    yield
    while known_tokens._listeners > before:
        known_tokens.stop_listening()


def by_hand(wrap: Callable[[InMemorySpanExporter], Any]) -> tuple[Any, bytes]:
    raw, exporter = InMemorySpanExporter(), InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(wrap(exporter))
    provider.add_span_processor(SimpleSpanProcessor(raw))
    with use_token(OWN_OPAQUE), provider.get_tracer("t").start_as_current_span("x") as span:
        span.set_attribute("a", OWN_OPAQUE)
        span.add_event(OWN_OPAQUE)
    provider.shutdown()
    assert leaks(OWN_OPAQUE, repr(shown(raw.get_finished_spans()[0])).encode())
    finished = exporter.get_finished_spans()[0]
    return finished, repr(shown(finished)).encode()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda e: RedactingSpanProcessor(SimpleSpanProcessor(e), Settings()),
        lambda e: RedactingSpanProcessor(BatchSpanProcessor(e), Settings()),
        lambda e: SimpleSpanProcessor(RedactingSpanExporter(e, Settings())),
        lambda e: BatchSpanProcessor(RedactingSpanExporter(e, Settings())),
    ],
    ids=["simple-processor", "batch-processor", "exporter-simple", "exporter-batch"],
)
def test_without_the_hooks_only_a_wrapped_pipeline_is_masked(wrap):
    """The wrapped pipeline receives a clean copy, and the other pipelines receive the original."""
    span, text = by_hand(wrap)

    assert not leaks(OWN_OPAQUE, text)
    assert dict(span.attributes) == {"a": MASK}


def test_pending_spans_are_flushed_through_the_wrappers():
    """Flushing a provider exports the spans that the wrapped batch processor has queued."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(RedactingSpanProcessor(BatchSpanProcessor(exporter), Settings()))
    try:
        with use_token(OWN_OPAQUE):
            provider.get_tracer("t").start_span(f"GET /{OWN_OPAQUE}").end()
        assert provider.force_flush()
        assert [span.name for span in exporter.get_finished_spans()] == [f"GET /{MASK}"]
    finally:
        provider.shutdown()


class Buffering(InMemorySpanExporter):
    """An exporter that cannot send its pending spans in time."""

    timeout = 0

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        self.timeout = timeout_millis
        return False


def test_the_result_of_a_flush_is_the_one_of_the_wrapped_exporter():
    """Flushing a redacting exporter passes on the timeout, and reports whether the wrapped exporter succeeded."""
    exporter = Buffering()

    assert RedactingSpanExporter(exporter, Settings()).force_flush(2500) is False
    assert exporter.timeout == 2500


def test_a_processor_is_wrapped_only_once():
    """A processor that is wrapped automatically uses the given rules, unless the application has wrapped it itself."""
    exporter = InMemorySpanExporter()
    processor = wrapped(SimpleSpanProcessor(exporter), Scrubber(["tenant"]))
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    provider.get_tracer("t").start_span("x", attributes={"tenant": "acme", "n": 1}).end()

    assert isinstance(processor, RedactingSpanProcessor)
    assert wrapped(processor, Scrubber()) is processor
    assert dict(exporter.get_finished_spans()[0].attributes) == {"tenant": MASK, "n": 1}
