"""By hand: a processor and an exporter that clean what they pass on.

Where redaction is switched on they have nothing left to do. They are for pipelines whose owner
does not want the SDK patched, and for spans that reach an exporter by a way of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_token_relay.redaction.known_tokens import REMEMBERED, listen, note_start
from otel_token_relay.redaction.records import ScrubberInForce
from otel_token_relay.redaction.scrubber import Scrubber
from otel_token_relay.redaction.spans import redacted
from otel_token_relay.settings import Settings


class RedactingSpanProcessor(SpanProcessor):
    """Pass spans on to another processor without the tokens in them.

    The processor that is wrapped gets a copy where there was anything to mask; others get the
    span as it was. Safe to share between threads if the processor is.

    Args:
        processor: Where the spans go: a ``BatchSpanProcessor``, for example.
        settings: ``None`` for the installed settings, else those of the environment. Here ``redaction`` is
            not asked.
    """

    def __init__(
        self, processor: SpanProcessor, settings: Settings | None = None, *, scrubber: Scrubber | None = None
    ) -> None:
        self._processor = processor
        self._scrubber: Callable[[], Scrubber] = ScrubberInForce(settings) if scrubber is None else lambda: scrubber
        listen()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Remember the token under which the span starts."""
        note_start(span, parent_context)
        self._processor.on_start(span, parent_context)

    def _on_ending(self, span: Span) -> None:
        on_ending = getattr(self._processor, "_on_ending", None)
        if on_ending is not None:
            on_ending(span)

    def on_end(self, span: ReadableSpan) -> None:
        """Pass a clean span on."""
        self._processor.on_end(redacted(span, self._scrubber()))

    def shutdown(self) -> None:
        """Shut the processor down."""
        self._processor.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Let the processor export what it holds."""
        return self._processor.force_flush(timeout_millis)


class RedactingSpanExporter(SpanExporter):
    """Export spans without the tokens in them.

    Exporters run in a thread that has no request, so they know an opaque token by the trace: it is
    found if it was bound (`use_token`, a server boundary, ``extract``) while a span of that trace
    was current, or else if it is one of the last ones that were bound where there was no span.
    `RedactingSpanProcessor` sees the start of the span and needs no such luck.

    Args:
        exporter: What sends them.
        settings: ``None`` for the installed settings, else those of the environment. Here ``redaction`` is
            not asked.
    """

    def __init__(self, exporter: SpanExporter, settings: Settings | None = None) -> None:
        self._exporter = exporter
        self._scrubber = ScrubberInForce(settings)
        listen()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export clean spans."""
        scrubber = self._scrubber()
        return self._exporter.export([redacted(span, scrubber, REMEMBERED.without_trace()) for span in spans])

    def shutdown(self) -> None:
        """Shut the exporter down."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Let the exporter send what it holds."""
        return self._exporter.force_flush(timeout_millis)


def wrapped(processor: Any, scrubber: Scrubber) -> Any:
    """Give a processor that cleans for *processor*; itself if it does so already."""
    if isinstance(processor, RedactingSpanProcessor):
        return processor
    return RedactingSpanProcessor(processor, scrubber=scrubber)
