"""Match the senders' decisions with the received requests, and find faults.

OpenTelemetry's console exporter writes the senders' CLIENT spans, which contain the decisions. The recorders' notes
describe the received requests. Each note contains the span ID from the request, which identifies the sender's span.
This module performs no I/O.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from otel_token_relay.decisions import DECISION_ATTRIBUTE, REASON_ATTRIBUTE
from otel_token_relay.demo.recorder import Note

MISSING = "?"
"""The placeholder for a missing decision or reason. A missing decision indicates that the relay did not run."""
ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request from a client that is not one of the demo's services. Each call starts a trace.

    Attributes:
        user: The user who sends the request, or ``None`` for an anonymous caller.
        token: The digest of the user's token; see `recorder.digest`.
        receiver: The called service.
    """

    trace_id: str
    user: str | None
    token: str | None
    receiver: str = "user-service"

    def traceparent(self) -> str:
        """Return a ``traceparent`` header value that starts the trace."""
        return f"00-{self.trace_id}-{secrets.token_hex(8)}-01"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """A request from one service to another.

    Attributes:
        sender: The service that recorded the span.
        redirected: Whether the sender followed a redirect.
        note: The recorder's note about the received request.
    """

    call: Call
    sender: str
    decision: str
    reason: str
    redirected: bool
    note: Note

    @property
    def seen(self) -> tuple[str, ...]:
        """The subjects of the received tokens, without duplicates."""
        return tuple(dict.fromkeys(token.subject for token in self.note.tokens))


def read_spans(text: str) -> Iterator[dict[str, Any]]:
    """Yield the spans in the console exporter's output, except for an incomplete span at the end."""
    decoder = json.JSONDecoder()
    position = text.find("{")
    while position >= 0:
        try:
            span, end = decoder.raw_decode(text, position)
        except ValueError:
            return
        yield span
        position = text.find("{", end)


def join_hops(calls: Iterable[Call], spans: Iterable[dict[str, Any]], notes: Iterable[Note]) -> list[Hop] | None:
    """Match the CLIENT spans of *calls* with the recorders' notes.

    Returns:
        The hops in chronological order, or ``None`` if a hop's span or note is still missing.
    """
    by_trace = {call.trace_id: call for call in calls}
    sent = {}
    for span in spans:
        if span["kind"] == "SpanKind.CLIENT" and _hex(span["context"]["trace_id"]) in by_trace:
            sent[_hex(span["context"]["span_id"])] = span
    received = {note.span_id: note for note in notes if note.trace_id in by_trace}
    # The first request in a trace has no CLIENT span, because the caller is not instrumented.
    entries = {note.span_id for note in received.values() if note.receiver == by_trace[note.trace_id].receiver}
    if sent.keys() != received.keys() - entries or len(entries) != len(by_trace):
        return None
    hops = []
    status_before: dict[str, int] = {}
    for span_id, span in sorted(sent.items(), key=lambda item: item[1]["start_time"]):
        trace_id = _hex(span["context"]["trace_id"])
        attributes = span["attributes"]
        hops.append(
            Hop(
                call=by_trace[trace_id],
                sender=span["resource"]["attributes"]["service.name"],
                decision=attributes.get(DECISION_ATTRIBUTE, MISSING),
                reason=attributes.get(REASON_ATTRIBUTE, MISSING),
                redirected=300 <= status_before.get(trace_id, 0) < 400,
                note=received[span_id],
            )
        )
        status_before[trace_id] = attributes.get("http.status_code", attributes.get("http.response.status_code", 0))
    return hops


def _hex(number: str) -> str:
    return number.removeprefix("0x")


def find_faults(
    calls: Sequence[Call],
    hops: Sequence[Hop],
    notes: Iterable[Note],
    *,
    listed: frozenset[str],
    exchanged: frozenset[str] = frozenset(),
) -> list[str]:
    """Return a description of each fault, such as a missing token or a token that the wrong service received.

    Args:
        notes: All notes, including notes about requests that are not hops.
        listed: The receivers that may receive the caller's token.
        exchanged: The receivers to which an exchanged token must be sent. The token's subject must be the caller, and
            the receiver must be the token's only audience.
    """
    by_trace = {call.trace_id: call for call in calls}
    faults = [fault for note in notes for fault in _find_misdirected(note, by_trace, listed, exchanged)]
    for hop in hops:
        at = f"{hop.sender} to {hop.note.receiver} for {hop.call.user or ANONYMOUS}"
        is_due = hop.call.token is not None and hop.note.receiver in listed | exchanged
        if is_due and not hop.seen:
            faults.append(f"{at}: the token was not received")
        sends = "exchanged" if hop.note.receiver in exchanged else "relayed"
        if (hop.decision == sends) != bool(hop.seen):
            faults.append(f"{at}: the decision was {hop.decision}, but {len(hop.seen)} token(s) were received")
        if hop.note.credentials > 1:
            faults.append(f"{at}: {hop.note.credentials} Authorization lines were received")
    return faults


def _find_misdirected(
    note: Note, by_trace: Mapping[str, Call], listed: frozenset[str], exchanged: frozenset[str]
) -> Iterator[str]:
    call = by_trace.get(note.trace_id)
    caller = (call.user if call else None) or ANONYMOUS
    is_direct = call is not None and note.receiver == call.receiver
    for token in note.tokens:
        is_own = call is not None and token.digest == call.token
        if not is_direct and note.receiver not in listed | exchanged:
            yield f"{note.receiver} received {token.subject}'s token"
        elif not is_direct and note.receiver in exchanged:
            if is_own:
                yield f"{note.receiver} received the token that {caller} had sent to user-service"
            elif token.subject != caller:
                yield f"{note.receiver} received {token.subject}'s token in a request from {caller}"
            elif token.audience != note.receiver:
                yield f"{note.receiver} received a token for {token.audience}"
        elif not is_own:
            yield f"{note.receiver} received {token.subject}'s token in a request from {caller}"
