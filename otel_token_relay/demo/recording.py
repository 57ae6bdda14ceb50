"""Convert the demo services' spans to OTLP JSON for ``demo --record``.

The third party and billing-service have no telemetry, so this module adds the receiver's name from the recorders' notes
to each CLIENT span. This module performs no I/O.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from otel_token_relay.demo.hops import Call
from otel_token_relay.demo.recorder import Note

USER_ATTRIBUTE: Final = "demo.user"
RECEIVER_ATTRIBUTE: Final = "service.peer.name"
_KINDS: Final = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# A picture needs only this resource attribute. The other resource attributes describe the machine.
_RESOURCE: Final = "service.name"


def write_recording(calls: Iterable[Call], spans: Iterable[Mapping[str, Any]], notes: Iterable[Note]) -> str:
    """Return the spans of *calls* as lines of OTLP JSON. Each line is an ExportTraceServiceRequest for one service.

    Args:
        spans: The spans from the output of OpenTelemetry's console exporter.
    """
    users = {call.trace_id: call.user or "an anonymous caller" for call in calls}
    receivers = {(note.trace_id, note.span_id): note.receiver for note in notes if note.span_id}
    services: dict[str, list[dict[str, Any]]] = {}
    for span in spans:
        trace_id = _hex(span["context"]["trace_id"])
        if trace_id in users:
            service = str(span["resource"]["attributes"][_RESOURCE])
            services.setdefault(service, []).append(_to_otlp(span, trace_id, users[trace_id], receivers))
    return "".join(f"{json.dumps(_request(service, found))}\n" for service, found in sorted(services.items()))


def _request(service: str, spans: list[dict[str, Any]]) -> dict[str, Any]:
    spans.sort(key=lambda span: int(span["startTimeUnixNano"]))
    resource = {"attributes": [_attribute(_RESOURCE, service)]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": spans}]}]}


def _to_otlp(
    span: Mapping[str, Any], trace_id: str, user: str, receivers: Mapping[tuple[str, str], str]
) -> dict[str, Any]:
    span_id = _hex(span["context"]["span_id"])
    kind = _KINDS.index(span["kind"].removeprefix("SpanKind."))
    attributes = dict(span["attributes"])
    if kind == _KINDS.index("SERVER"):
        attributes[USER_ATTRIBUTE] = user
    elif (trace_id, span_id) in receivers:
        attributes[RECEIVER_ATTRIBUTE] = receivers[trace_id, span_id]
    return {
        "traceId": trace_id,
        "spanId": span_id,
        "parentSpanId": _hex(span["parent_id"] or ""),
        "name": span["name"],
        "kind": kind,
        "startTimeUnixNano": _nanoseconds(span["start_time"]),
        "endTimeUnixNano": _nanoseconds(span["end_time"]),
        "attributes": [_attribute(key, value) for key, value in attributes.items()],
    }


def _attribute(key: str, value: object) -> dict[str, Any]:
    # OTLP JSON represents integers, such as ports and status codes, as strings.
    if type(value) is int:
        return {"key": key, "value": {"intValue": str(value)}}
    return {"key": key, "value": {"stringValue": value if isinstance(value, str) else json.dumps(value)}}


def _nanoseconds(written: str) -> str:
    return str((datetime.fromisoformat(written) - _EPOCH) // timedelta(microseconds=1) * 1000)


def _hex(number: str) -> str:
    return number.removeprefix("0x")
