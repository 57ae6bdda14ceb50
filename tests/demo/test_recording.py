"""The demo's recording contains only the required data from the services' spans."""

from __future__ import annotations

import json

from otel_token_relay.demo.hops import Call
from otel_token_relay.demo.recorder import Note
from otel_token_relay.demo.recording import write_recording
from otel_token_relay.pictures.spans import Span, read_recording

ALICE = Call(trace_id="a" * 32, user="alice", token="digest")
ANONYMOUS = Call(trace_id="b" * 32, user=None, token=None)


def span_of(call: Call, span_id: str, kind: str = "CLIENT", parent: str | None = None, **attributes) -> dict:
    """Return a span in the format of the console exporter."""
    return {
        "name": "GET",
        "context": {"trace_id": f"0x{call.trace_id}", "span_id": f"0x{span_id}", "trace_state": "[]"},
        "kind": f"SpanKind.{kind}",
        "parent_id": parent and f"0x{parent}",
        "start_time": "2026-11-27T06:45:36.123456Z",
        "end_time": "2026-11-27T06:45:36.123956Z",
        "attributes": attributes,
        "resource": {"attributes": {"service.name": "user-service", "process.command_args": ["secret"]}},
    }


def note_of(call: Call, span_id: str, receiver: str) -> Note:
    return Note(receiver=receiver, trace_id=call.trace_id, span_id=span_id, client="x", credentials=0, tokens=())


def test_spans_are_written_as_otlp() -> None:
    """A client span contains its receiver's name, and a trace's first span contains the user."""
    spans = [
        span_of(ALICE, "1" * 16, "SERVER"),
        span_of(ALICE, "2" * 16, parent="1" * 16, **{"http.status_code": 200, "token_relay.decision": "relayed"}),
        span_of(ANONYMOUS, "3" * 16, "SERVER"),
    ]

    text = write_recording([ALICE, ANONYMOUS], spans, [note_of(ALICE, "2" * 16, "third-party")])

    server, client, anonymous = read_recording(text).spans
    assert client == Span(
        trace_id="a" * 32,
        span_id="2" * 16,
        parent_id="1" * 16,
        service="user-service",
        name="GET",
        kind="CLIENT",
        start=1_795_761_936_123_456_000,
        end=1_795_761_936_123_956_000,
        attributes={"http.status_code": "200", "token_relay.decision": "relayed", "service.peer.name": "third-party"},
    )
    assert server.attributes == {"demo.user": "alice"}
    assert anonymous.attributes == {"demo.user": "an anonymous caller"}


def test_other_traces_and_the_machine_are_left_out() -> None:
    """The recording contains only the demo's calls and, of the resource, only the service's name."""
    text = write_recording([ALICE], [span_of(ALICE, "1" * 16), span_of(ANONYMOUS, "2" * 16)], [])

    assert len(text.splitlines()) == 1
    assert len(read_recording(text).spans) == 1
    assert "secret" not in text
    assert json.loads(text)["resourceSpans"][0]["resource"]["attributes"][0]["key"] == "service.name"
