"""OTLP JSON recordings in the format of the OpenTelemetry Collector's file exporter."""

from __future__ import annotations

import json
from typing import Any

SECOND = 10**9
START = 1_795_818_672 * SECOND


def attributes_of(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}
        for key, value in values.items()
    ]


def make_span(
    span_id: str,
    parent: str = "",
    kind: int | str = 3,
    *,
    at: float = 0,
    seconds: float = 1,
    name: str = "GET",
    trace: str = "a" * 32,
    **attributes: Any,
) -> dict[str, Any]:
    """Return a span. In the names of *attributes*, two underscores represent a dot."""
    return {
        "traceId": trace,
        "spanId": span_id,
        "parentSpanId": parent,
        "name": name,
        "kind": kind,
        "startTimeUnixNano": str(START + int(at * SECOND)),
        "endTimeUnixNano": str(START + int((at + seconds) * SECOND)),
        "attributes": attributes_of({key.replace("__", "."): value for key, value in attributes.items()}),
    }


def decided(decision: str, reason: str | None = None, **more: Any) -> dict[str, Any]:
    """Return the attributes of a relay decision."""
    return {"token_relay__decision": decision, "token_relay__reason": reason or decision, **more}


def request_of(service: str, *spans: dict[str, Any]) -> dict[str, Any]:
    """Return one ExportTraceServiceRequest."""
    resource = {"attributes": attributes_of({"service.name": service})}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": list(spans)}]}]}


def lines_of(*requests: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(request)}\n" for request in requests)


def every_outcome() -> str:
    """Return a recording with one hop of each kind, and with a call from the receiver to a third service."""
    frontend = request_of(
        "frontend",
        make_span("01", "ff", 2, seconds=9),
        make_span(
            "02", "01", at=1, server__address="orders", **decided("relayed", token_relay__entry="https://orders")
        ),
        make_span(
            "03",
            "01",
            at=3,
            server__address="billing",
            **decided(
                "exchanged", token_relay__entry="https://billing;audience=billing", token_relay__exchange__result="miss"
            ),
        ),
        make_span("04", "01", at=4, server__address="stock", **decided("own")),
        make_span(
            "05",
            "01",
            at=5,
            server__address="weather.example",
            **decided("withheld", "destination_not_listed", token_relay__origin="https://weather.example"),
        ),
        make_span("06", "01", at=6, server__address="old-service", server__port=8080),
    )
    orders = request_of(
        "orders",
        make_span("12", "02", 2, at=1.2, seconds=0.5),
        make_span("13", "12", at=1.3, seconds=0.1, peer__service="database", **decided("withheld", "no_token")),
    )
    return lines_of(frontend, orders)
