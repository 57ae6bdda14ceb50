"""Read spans from OTLP JSON files that the OpenTelemetry Collector's file exporter or ``demo --record`` writes.

A file contains one or more ExportTraceServiceRequest messages, one per line. Messages with logs or metrics are ignored.

Source: OpenTelemetry Protocol 1.10, section "JSON Protobuf Encoding".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

_KINDS: Final = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
_UNKNOWN_SERVICE: Final = "unknown_service"
# A nonempty request contains at least one of these keys. A reader must accept both camelCase keys and snake_case keys.
_SPANS: Final = ("resourceSpans", "resource_spans")
_OTHER_SIGNALS: Final = ("resourceLogs", "resource_logs", "resourceMetrics", "resource_metrics", "resourceProfiles")


class NotARecording(Exception):
    """An error raised if a file is not a recording. The message does not quote the file's contents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The properties of a span that a picture needs. The strings come from the file and are not sanitized.

    Attributes:
        trace_id: The trace ID, which is never empty.
        span_id: The span ID, which is never empty.
        parent_id: The ID of the parent span, or an empty string for a root span.
        service: The name of the service that recorded the span.
        kind: ``CLIENT``, ``SERVER``, or another OpenTelemetry span kind.
        start: The start time in nanoseconds since the epoch, according to the service's clock; 0 if unknown.
        end: The end time in nanoseconds since the epoch; 0 if unknown.
        attributes: The string and integer attributes, with all values converted to strings.
    """

    trace_id: str
    span_id: str
    parent_id: str
    service: str
    name: str
    kind: str
    start: int
    end: int
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The spans in a file.

    Attributes:
        spans: The spans in file order, without duplicates.
        skipped: The number of spans that were skipped because they have no identifiers or are duplicates.
        is_cut: Whether the file is truncated, which can occur while an exporter is writing it.
    """

    spans: tuple[Span, ...]
    skipped: int
    is_cut: bool


def read_recording(text: str) -> Recording:
    """Parse the contents of a file, and return the spans.

    Raises:
        NotARecording: The file does not contain any spans in OTLP JSON.
    """
    documents, is_cut = _read_documents(text)
    spans: dict[tuple[str, str], Span] = {}
    skipped = 0
    for document in documents:
        for span in _spans_in(document):
            if span is None or (span.trace_id, span.span_id) in spans:
                skipped += 1
            else:
                spans[span.trace_id, span.span_id] = span
    if not spans:
        raise NotARecording("the file contains OTLP JSON, but no spans")
    return Recording(spans=tuple(spans.values()), skipped=skipped, is_cut=is_cut)


def _read_documents(text: str) -> tuple[list[Mapping[str, Any]], bool]:
    decoder = json.JSONDecoder()
    documents: list[Mapping[str, Any]] = []
    position = 0
    text = text.strip("\ufeff \t\r\n")
    while position < len(text):
        try:
            document, position = decoder.raw_decode(text, position)
        # Deep nesting and numbers with thousands of digits also cause these errors.
        except (ValueError, RecursionError):
            if documents:
                return documents, True
            raise NotARecording(
                "the file is not JSON; expected a recording of `otel-token-relay demo --record` or spans in OTLP JSON"
            ) from None
        if not _is_request(document):
            raise NotARecording(
                "the file is JSON, but not OTLP; expected `resourceSpans` in each document, as the OpenTelemetry"
                " Collector's file exporter writes them"
            )
        documents.append(document)
        while position < len(text) and text[position] in " \t\r\n":
            position += 1
    if not documents:
        raise NotARecording("the file is empty")
    return documents, False


def _is_request(document: object) -> bool:
    # An export without data is an empty JSON object.
    return isinstance(document, dict) and (not document or any(key in document for key in (*_SPANS, *_OTHER_SIGNALS)))


def _spans_in(document: Mapping[str, Any]) -> Iterator[Span | None]:
    """Yield each span in a request, or ``None`` for a span without identifiers."""
    for resource_spans in _objects(document, *_SPANS):
        resource = _member(resource_spans, "resource")
        attributes = _read_attributes(resource if isinstance(resource, dict) else {})
        service = attributes.get("service.name") or _UNKNOWN_SERVICE
        for scope_spans in _objects(resource_spans, "scopeSpans", "scope_spans"):
            for span in _objects(scope_spans, "spans"):
                yield _read_span(span, service)


def _read_span(span: Mapping[str, Any], service: str) -> Span | None:
    trace_id = _text(_member(span, "traceId", "trace_id"))
    span_id = _text(_member(span, "spanId", "span_id"))
    if not trace_id or not span_id:
        return None
    return Span(
        trace_id=trace_id,
        span_id=span_id,
        parent_id=_text(_member(span, "parentSpanId", "parent_span_id")),
        service=service,
        name=_text(_member(span, "name")),
        kind=_read_kind(_member(span, "kind")),
        start=_read_time(_member(span, "startTimeUnixNano", "start_time_unix_nano")),
        end=_read_time(_member(span, "endTimeUnixNano", "end_time_unix_nano")),
        attributes=_read_attributes(span),
    )


def _read_attributes(owner: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for attribute in _objects(owner, "attributes"):
        key, value = _member(attribute, "key"), _member(attribute, "value")
        if isinstance(key, str) and isinstance(value, dict):
            text = _text(_member(value, "stringValue", "string_value", "intValue", "int_value"))
            if text:
                found.setdefault(key, text)
    return found


def _read_kind(value: object) -> str:
    if isinstance(value, str):
        return value.removeprefix("SPAN_KIND_")
    return _KINDS[value] if type(value) is int and 0 <= value < len(_KINDS) else _KINDS[0]


def _read_time(value: object) -> int:
    """Parse a 64-bit timestamp, which OTLP JSON represents as a string or a number."""
    text = _text(value)
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 19 else 0


def _text(value: object) -> str:
    if type(value) is int:
        return str(value) if abs(value) < 1 << 64 else ""
    return value if isinstance(value, str) else ""


def _member(owner: Mapping[str, Any], *names: str) -> object:
    return next((owner[name] for name in names if owner.get(name) is not None), None)


def _objects(owner: Mapping[str, Any], *names: str) -> list[dict[str, Any]]:
    """Return the JSON objects in a list, and ignore all other items."""
    value = _member(owner, *names)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
