"""An application can wrap its processors and exporters itself, without the hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_token_relay import Settings, use_token
from otel_token_relay.redaction import RedactingSpanExporter, RedactingSpanProcessor, known_tokens
from otel_token_relay.redaction.scrubber import MASK
from tests.redaction.corpus import OWN_OPAQUE
from tests.redaction.pipeline import leaks, shown


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
    known_tokens.stop_listening()
