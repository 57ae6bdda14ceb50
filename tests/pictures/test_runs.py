"""Hops are built from spans in the correct order, even if a recording is incomplete or malicious."""

from __future__ import annotations

import pytest

from otel_token_relay.pictures.runs import OUTCOMES, Run, build_run
from otel_token_relay.pictures.spans import read_recording
from otel_token_relay.reasons import Reason
from tests.support.otlp_json import decided, every_outcome, lines_of, make_span, request_of


def run_of(*requests, max_hops: int = 100) -> Run:
    return build_run(read_recording(lines_of(*requests)), max_hops=max_hops)


def arrows_in(run: Run) -> list[str]:
    return [f"{hop.sender}>{hop.receiver}" for trace in run.traces for hop in trace.hops]


def test_every_outcome_is_read() -> None:
    """Hops are in the order of the calls and contain the decision, the reason, and the entry."""
    run = build_run(read_recording(every_outcome()), max_hops=100)

    assert [(h.sender, h.receiver, h.outcome, h.reason, h.entry) for t in run.traces for h in t.hops] == [
        ("caller", "frontend", "incoming", "", ""),
        ("frontend", "orders", "relayed", "relayed", "https://orders"),
        ("orders", "database", "withheld", "no_token", ""),
        ("frontend", "billing", "exchanged", "exchanged", "https://billing;audience=billing"),
        ("frontend", "stock", "own", "own", ""),
        ("frontend", "weather.example", "withheld", "destination_not_listed", "https://weather.example"),
        ("frontend", "old-service:8080", "undecided", "", ""),
    ]
    assert set(run.counts) == set(OUTCOMES)
    assert run.lanes[:3] == ("caller", "frontend", "orders")
    assert run.summary() == "7 hops in 1 trace."
    assert run.notes == run.traces[0].notes == ()


@pytest.mark.parametrize("reason", Reason, ids=str)
def test_every_reason_is_read(reason: Reason) -> None:
    """A hop has the reason in its span."""
    run = run_of(request_of("a", make_span("01", **decided("withheld", reason.value))))

    assert run.traces[0].hops[0].reason == reason.value


@pytest.mark.parametrize(
    ("attributes", "receiver"),
    [
        ({"service__peer__name": "x", "peer__service": "y", "server__address": "z"}, "x"),
        ({"peer__service": "y", "server__address": "z"}, "y"),
        ({"server__address": "z", "server__port": 81}, "z:81"),
        ({"net__peer__name": "z"}, "z"),
        ({"token_relay__origin": "https://z"}, "https://z"),
        ({}, "unknown"),
    ],
)
def test_receivers_without_telemetry_are_named(attributes, receiver: str) -> None:
    """The most reliable name in the client span identifies a receiver without telemetry."""
    assert arrows_in(run_of(request_of("a", make_span("01", **attributes)))) == [f"a>{receiver}"]


def test_missing_parents() -> None:
    """A span whose parent is not in the recording is considered an external request."""
    run = run_of(request_of("a", make_span("01", "77", 2), make_span("02", "88")))

    assert arrows_in(run) == ["caller>a", "a>unknown"]


def test_cycles_are_shown_once() -> None:
    """Spans that are their own or each other's parents are included as hops."""
    run = run_of(request_of("a", make_span("01", "02"), make_span("02", "01"), make_span("03", "03")))

    assert len(arrows_in(run)) == 3


def test_a_long_chain() -> None:
    """A trace can be deeper than Python's recursion limit."""
    spans = [make_span(f"{n:x}", f"{n - 1:x}" if n else "") for n in range(5000)]

    assert run_of(request_of("a", *spans), max_hops=9999).shown_hops == 5000


def test_clock_skew_does_not_change_the_order() -> None:
    """Calls of a receiver whose clock is wrong appear after the hop that caused them, with a note."""
    run = run_of(
        request_of("a", make_span("01", "", 2, seconds=9), make_span("02", "01", at=1), make_span("05", "01", at=3)),
        request_of("b", make_span("03", "02", 2, at=-3600), make_span("04", "03", at=-3599, peer__service="c")),
    )

    assert arrows_in(run) == ["caller>a", "a>b", "b>c", "a>unknown"]
    assert run.traces[0].notes == ("The clocks of a and b differ, so hops are in call order.",)


def test_how_much_is_shown() -> None:
    """The earliest traces are included first, and the omitted hops are counted."""
    traces = [
        request_of("a", *(make_span(f"{n:x}", trace=str(t) * 32, at=t * 100 + n) for n in range(4))) for t in (3, 1, 2)
    ]

    run = run_of(*traces, max_hops=6)

    assert [(trace.trace_id[0], len(trace.hops), trace.hidden) for trace in run.traces] == [("1", 4, 0), ("2", 2, 2)]
    assert run.summary() == "Shown: 6 of 12 hops, 2 of 3 traces."


def test_notes() -> None:
    """Notes describe what is missing from the recording."""
    text = lines_of(request_of("a", make_span("01", kind=1), make_span("01", kind=1)))

    run = build_run(read_recording(text + "{"), max_hops=9)

    assert run.notes == (
        "None of the spans is a request to or from another service.",
        "Skipped 1 span because of missing identifiers or duplicates.",
        "The end of the file is missing or cannot be read.",
    )


def test_a_decision_of_another_kind_is_none() -> None:
    """A decision with an unknown value is displayed as undecided."""
    run = run_of(request_of("a", make_span("01", **decided("allowed", "x"))))

    assert run.traces[0].hops[0].outcome == "undecided"


def test_the_verification_of_an_incoming_request() -> None:
    """An arrow from the caller includes the reason for which the request was rejected."""
    attributes = {"token_relay__verification": "refused", "token_relay__reason": "wrong_audience"}

    run = run_of(request_of("a", make_span("01", "77", 2, **attributes)))

    assert [(hop.outcome, hop.reason) for hop in run.traces[0].hops] == [("incoming", "wrong_audience")]
