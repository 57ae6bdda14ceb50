"""A redacting span processor and exporter for pipelines that the application builds itself.

Use these classes if the SDK must not be patched or if some spans bypass the conversion point. If redaction is
installed, spans are already clean when these classes receive them.
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
    """A span processor that passes redacted spans to another processor.

    The wrapped processor receives a redacted copy of each span. Other processors receive the original span. An instance
    is thread-safe if the wrapped processor is thread-safe.

    Args:
        processor: The processor that receives the redacted spans, such as a ``BatchSpanProcessor``.
        settings: The settings to use. By default, the processor uses the installed settings, or the settings from the
            environment if none are installed. The ``redaction`` setting is ignored.
    """

    def __init__(
        self, processor: SpanProcessor, settings: Settings | None = None, *, scrubber: Scrubber | None = None
    ) -> None:
        self._processor = processor
        self._scrubber: Callable[[], Scrubber] = ScrubberInForce(settings) if scrubber is None else lambda: scrubber
        listen()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Remember the token that is bound when the span starts."""
        note_start(span, parent_context)
        self._processor.on_start(span, parent_context)

    def _on_ending(self, span: Span) -> None:
        on_ending = getattr(self._processor, "_on_ending", None)
        if on_ending is not None:
            on_ending(span)

    def on_end(self, span: ReadableSpan) -> None:
        """Pass a redacted copy of the span to the wrapped processor."""
        self._processor.on_end(redacted(span, self._scrubber()))

    def shutdown(self) -> None:
        """Shut down the wrapped processor."""
        self._processor.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Flush the wrapped processor's pending spans."""
        return self._processor.force_flush(timeout_millis)


class RedactingSpanExporter(SpanExporter):
    """A span exporter that passes redacted spans to another exporter.

    An exporter does not run in the request's context, so it looks up opaque tokens by trace. An opaque token is found
    only if it was bound (by `use_token`, a server boundary, or ``extract``) while one of the trace's spans was current
    or if it is among the most recent tokens bound without a span. `RedactingSpanProcessor` does not have this
    limitation, because it also runs when a span starts.

    Args:
        exporter: The exporter that sends the spans.
        settings: The settings to use. By default, the exporter uses the installed settings, or the settings from the
            environment if none are installed. The ``redaction`` setting is ignored.
    """

    def __init__(self, exporter: SpanExporter, settings: Settings | None = None) -> None:
        self._exporter = exporter
        self._scrubber = ScrubberInForce(settings)
        listen()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export redacted copies of the spans."""
        scrubber = self._scrubber()
        return self._exporter.export([redacted(span, scrubber, REMEMBERED.without_trace()) for span in spans])

    def shutdown(self) -> None:
        """Shut down the wrapped exporter."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Flush the wrapped exporter's pending spans."""
        return self._exporter.force_flush(timeout_millis)


def wrapped(processor: Any, scrubber: Scrubber) -> Any:
    """Return a redacting processor that wraps *processor*, or *processor* itself if it already redacts spans."""
    if isinstance(processor, RedactingSpanProcessor):
        return processor
    return RedactingSpanProcessor(processor, scrubber=scrubber)
