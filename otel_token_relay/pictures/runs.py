"""Convert spans to a run, which consists of the services and the hops of each trace.

Hops follow the call hierarchy. Only siblings are ordered by time, because the services' clocks can differ.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from otel_token_relay.decisions import (
    DECISION_ATTRIBUTE,
    ENTRY_ATTRIBUTE,
    EXCHANGE_ATTRIBUTE,
    ORIGIN_ATTRIBUTE,
    REASON_ATTRIBUTE,
)
from otel_token_relay.pictures.spans import Recording, Span
from otel_token_relay.pictures.texts import clean
from otel_token_relay.verifications import OUTCOME_ATTRIBUTE as VERIFICATION_ATTRIBUTE

RELAYED: Final = "relayed"
EXCHANGED: Final = "exchanged"
OWN: Final = "own"
WITHHELD: Final = "withheld"
INCOMING: Final = "incoming"
UNDECIDED: Final = "undecided"
OUTCOMES: Final = (RELAYED, EXCHANGED, OWN, WITHHELD, INCOMING, UNDECIDED)
"""The possible outcomes of a hop: the four decisions, an incoming request, and a call without a decision."""

CALLER: Final = "caller"
"""The lane for clients whose spans are not in the recording."""
UNKNOWN_RECEIVER: Final = "unknown"
RECEIVER_ATTRIBUTES: Final = ("service.peer.name", "peer.service")
"""The current and older attributes for the name of the service that a client calls."""
USER_ATTRIBUTE: Final = "demo.user"
"""The attribute in which the demo records the caller's name."""

# The attributes that contain the server's address and port, from the newest convention to the oldest.
_ADDRESSES: Final = (("server.address", "server.port"), ("net.peer.name", "net.peer.port"))
_HOP_KINDS: Final = ("CLIENT", "PRODUCER")
_SERVED_KINDS: Final = ("SERVER", "CONSUMER")
_DECISIONS: Final = frozenset({RELAYED, EXCHANGED, OWN, WITHHELD})


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """A hop, which a picture displays as an arrow. All strings are sanitized by `texts.clean`.

    Attributes:
        outcome: One of `OUTCOMES`.
        reason: The reason for the decision, or an incoming request's verification outcome; can be empty.
        entry: The matching entry, or the origin if no entry matches; can be empty.
        exchange: How the exchanged token was obtained; can be empty.
        name: The span's name.
        at: The start time according to the sender's clock, in nanoseconds after the start of the trace's first span.
        duration: The duration in nanoseconds.
    """

    sender: str
    receiver: str
    outcome: str
    reason: str
    entry: str
    exchange: str
    name: str
    at: int
    duration: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A trace, limited to the hops that the picture displays.

    Attributes:
        trace_id: The sanitized trace ID.
        user: The caller's name, or an empty string if the recording does not contain it.
        hidden: The number of hops in this trace that the picture omits.
        notes: Notes about this trace, one sentence each.
    """

    trace_id: str
    user: str
    hops: tuple[Hop, ...]
    hidden: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The data that a picture displays.

    Attributes:
        lanes: The services in order of appearance.
        all_traces: The number of traces with hops, including traces that the picture omits.
        all_hops: The number of hops, including hops that the picture omits.
        notes: Notes about the recording, one sentence each.
    """

    lanes: tuple[str, ...]
    traces: tuple[Trace, ...]
    all_traces: int
    all_hops: int
    notes: tuple[str, ...]

    @property
    def shown_hops(self) -> int:
        return sum(len(trace.hops) for trace in self.traces)

    @property
    def counts(self) -> Mapping[str, int]:
        """The number of displayed hops for each outcome."""
        return Counter(hop.outcome for trace in self.traces for hop in trace.hops)

    def summary(self) -> str:
        """Return a sentence that states how many hops and traces the picture displays."""
        hops, traces = _count(self.all_hops, "hop"), _count(self.all_traces, "trace")
        if self.shown_hops == self.all_hops:
            return f"{hops} in {traces}."
        return f"Shown: {self.shown_hops:,} of {hops}, {len(self.traces):,} of {traces}."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def build_run(recording: Recording, *, max_hops: int) -> Run:
    """Build a run from a recording.

    Args:
        max_hops: The maximum number of hops to display. Earlier traces take precedence.
    """
    by_trace: defaultdict[str, list[Span]] = defaultdict(list)
    for span in recording.spans:
        by_trace[span.trace_id].append(span)
    names = _ReceiverNames(recording.spans)
    traces: list[Trace] = []
    all_traces = all_hops = 0
    for spans in sorted(by_trace.values(), key=_start_of):
        found = _TraceReader(spans, names)
        hops = list(found.hop_spans())
        if not hops:
            continue
        all_traces += 1
        all_hops += len(hops)
        shown = hops[: max(0, max_hops)]
        max_hops -= len(shown)
        if shown:
            traces.append(found.read(shown, hidden=len(hops) - len(shown)))
    lanes = dict.fromkeys(name for trace in traces for hop in trace.hops for name in (hop.sender, hop.receiver))
    return Run(
        lanes=tuple(lanes),
        traces=tuple(traces),
        all_traces=all_traces,
        all_hops=all_hops,
        notes=tuple(_notes(recording, all_hops)),
    )


def _notes(recording: Recording, hops: int) -> Iterator[str]:
    if not hops:
        yield "None of the spans is a request to or from another service."
    if recording.skipped:
        yield f"Skipped {_count(recording.skipped, 'span')} because of missing identifiers or duplicates."
    if recording.is_cut:
        yield "The end of the file is missing or cannot be read."


def _start_of(spans: Sequence[Span]) -> int:
    return min((span.start for span in spans if span.start), default=0)


class _ReceiverNames:
    """The names of the services that receive the clients' requests."""

    def __init__(self, spans: Sequence[Span]) -> None:
        served = [span for span in spans if span.kind in _SERVED_KINDS and span.parent_id]
        self._served = {(span.trace_id, span.parent_id): span for span in reversed(served)}

    def server_span(self, span: Span) -> Span | None:
        """Return the receiving server's span, or ``None`` if the recording does not contain it."""
        return self._served.get((span.trace_id, span.span_id))

    def name_of(self, span: Span) -> str:
        """Return the receiver's name from the most reliable source in the recording."""
        server = self.server_span(span)
        if server is not None:
            return server.service
        for key in RECEIVER_ATTRIBUTES:
            if key in span.attributes:
                return span.attributes[key]
        for host, port in _ADDRESSES:
            if host in span.attributes:
                return ":".join([span.attributes[host], *([span.attributes[port]] if port in span.attributes else [])])
        return span.attributes.get(ORIGIN_ATTRIBUTE, UNKNOWN_RECEIVER)


class _TraceReader:
    """A reader that finds the hops in one trace."""

    def __init__(self, spans: Sequence[Span], names: _ReceiverNames) -> None:
        self._spans = {span.span_id: span for span in spans}
        self._start = _start_of(spans)
        self._names = names

    def hop_spans(self) -> Iterator[Span]:
        """Yield the spans that represent calls to other services or incoming requests from unrecorded clients."""
        for span in self._ordered():
            if span.kind in _HOP_KINDS or DECISION_ATTRIBUTE in span.attributes or self._is_incoming(span):
                yield span

    def read(self, shown: Sequence[Span], *, hidden: int) -> Trace:
        users = (span.attributes[USER_ATTRIBUTE] for span in shown if USER_ATTRIBUTE in span.attributes)
        return Trace(
            trace_id=clean(shown[0].trace_id),
            user=clean(next(users, "")),
            hops=tuple(map(self._hop, shown)),
            hidden=hidden,
            notes=tuple(self._notes(shown)),
        )

    def _is_incoming(self, span: Span) -> bool:
        return span.kind in _SERVED_KINDS and span.parent_id not in self._spans

    def _ordered(self) -> Iterator[Span]:
        """Yield each span once, with parents before children and siblings in chronological order.

        A parent can be missing, and a span can be its own ancestor.
        """
        children: defaultdict[str, list[Span]] = defaultdict(list)
        roots: list[Span] = []
        for span in sorted(self._spans.values(), key=lambda span: span.start):
            is_child = span.parent_id in self._spans and span.parent_id != span.span_id
            (children[span.parent_id] if is_child else roots).append(span)
        seen: set[str] = set()
        # A cycle of spans has no root, so the traversal also starts from each span that it has not visited.
        for first in (*roots, *self._spans.values()):
            waiting = [first]
            while waiting:
                span = waiting.pop()
                if span.span_id not in seen:
                    seen.add(span.span_id)
                    yield span
                    waiting += reversed(children[span.span_id])

    def _hop(self, span: Span) -> Hop:
        attributes = span.attributes
        if span.kind in _SERVED_KINDS and DECISION_ATTRIBUTE not in attributes:
            sender, receiver, outcome = CALLER, span.service, INCOMING
            reason = attributes.get(REASON_ATTRIBUTE) or attributes.get(VERIFICATION_ATTRIBUTE, "")
        else:
            sender, receiver = span.service, self._names.name_of(span)
            decision = attributes.get(DECISION_ATTRIBUTE, "")
            outcome = decision if decision in _DECISIONS else UNDECIDED
            reason = attributes.get(REASON_ATTRIBUTE, "")
        return Hop(
            sender=clean(sender),
            receiver=clean(receiver),
            outcome=outcome,
            reason=clean(reason),
            entry=clean(attributes.get(ENTRY_ATTRIBUTE) or attributes.get(ORIGIN_ATTRIBUTE, "")),
            exchange=clean(attributes.get(EXCHANGE_ATTRIBUTE, "")),
            name=clean(span.name),
            at=max(0, span.start - self._start) if span.start else 0,
            duration=max(0, span.end - span.start) if span.start else 0,
        )

    def _notes(self, shown: Sequence[Span]) -> Iterator[str]:
        noted: set[tuple[str, str]] = set()
        for span in shown:
            server = self._names.server_span(span)
            if server is None or not (span.start and server.start and span.end):
                continue
            pair = (clean(span.service), clean(server.service))
            if not span.start <= server.start <= span.end and pair not in noted:
                noted.add(pair)
                yield f"The clocks of {pair[0]} and {pair[1]} differ, so hops are in call order."
