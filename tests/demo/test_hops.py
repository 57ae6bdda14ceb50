"""The demo combines decisions with received requests into hops, and detects faults."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from otel_token_relay.demo.hops import Call, Hop, find_faults, join_hops, read_spans
from otel_token_relay.demo.recorder import Note, SeenToken

LISTED = frozenset({"profile-service"})

EXCHANGED = frozenset({"billing-service"})

ALICE = Call(trace_id="a" * 32, user="alice", token="digest of alice's")

ANONYMOUS = Call(trace_id="b" * 32, user=None, token=None)


def note_of(receiver, call, *tokens, **changes):
    values = {"span_id": "1" * 16, "client": "python-httpx/0", "credentials": len(tokens)} | changes
    return Note(receiver=receiver, trace_id=call.trace_id, tokens=tokens, **values)


def hop_of(call, note, decision="withheld"):
    return Hop(call=call, sender="user-service", decision=decision, reason="…", redirected=False, note=note)


OWN = SeenToken("digest of alice's", "alice", "profile-service")

OTHER = SeenToken("digest of bob's", "bob", "profile-service")

FOR_BILLING = SeenToken("digest of another", "alice", "billing-service")


def faults_in(*hops):
    return find_faults([ALICE, ANONYMOUS], hops, [hop.note for hop in hops], listed=LISTED, exchanged=EXCHANGED)


def test_expected_hops_are_not_faults():
    """Expected hops are not reported as faults."""
    assert (
        faults_in(
            hop_of(ALICE, note_of("profile-service", ALICE, OWN), "relayed"),
            hop_of(ALICE, note_of("billing-service", ALICE, FOR_BILLING), "exchanged"),
            hop_of(ALICE, note_of("third-party", ALICE)),
            hop_of(ANONYMOUS, note_of("profile-service", ANONYMOUS)),
            hop_of(ANONYMOUS, note_of("billing-service", ANONYMOUS)),
        )
        == []
    )


@pytest.mark.parametrize(
    ("hop", "words"),
    [
        (hop_of(ALICE, note_of("third-party", ALICE, OWN), "relayed"), "third-party received alice's token"),
        (hop_of(ALICE, note_of("profile-service", ALICE, OTHER), "relayed"), "bob's token in a request from alice"),
        (
            hop_of(ANONYMOUS, note_of("profile-service", ANONYMOUS, OWN), "relayed"),
            "alice's token in a request from anonymous",
        ),
        (hop_of(ALICE, note_of("third-party", ALICE, FOR_BILLING), "exchanged"), "third-party received alice's token"),
        (
            hop_of(ALICE, note_of("billing-service", ALICE, OWN), "relayed"),
            "billing-service received the token that alice had sent to user-service",
        ),
        (
            hop_of(ALICE, note_of("billing-service", ALICE, FOR_BILLING._replace(subject="bob")), "exchanged"),
            "billing-service received bob's token in a request from alice",
        ),
        (
            hop_of(ANONYMOUS, note_of("billing-service", ANONYMOUS, FOR_BILLING), "exchanged"),
            "billing-service received alice's token in a request from anonymous",
        ),
        (
            hop_of(ALICE, note_of("billing-service", ALICE, FOR_BILLING._replace(audience="?")), "exchanged"),
            "billing-service received a token for ?",
        ),
        (hop_of(ALICE, note_of("billing-service", ALICE)), "billing-service for alice: the token was not received"),
        (hop_of(ALICE, note_of("billing-service", ALICE, FOR_BILLING), "relayed"), "the decision was relayed"),
        (hop_of(ALICE, note_of("profile-service", ALICE)), "was not received"),
        (hop_of(ALICE, note_of("profile-service", ALICE, OWN)), "the decision was withheld"),
        (hop_of(ANONYMOUS, note_of("profile-service", ANONYMOUS), "relayed"), "the decision was relayed"),
        (hop_of(ALICE, note_of("profile-service", ALICE, OWN, credentials=2), "relayed"), "2 Authorization lines"),
    ],
    ids=[
        "third party",
        "another user",
        "anonymous",
        "exchanged token at third party",
        "caller's token instead of an exchanged one",
        "exchanged token of another user",
        "exchanged token for anonymous",
        "exchanged token for another audience",
        "no exchanged token",
        "exchanged token reported as relayed",
        "missing",
        "unreported",
        "only reported",
        "two lines",
    ],
)
def test_wrong_token_is_a_fault(hop, words):
    """A token that is received by mistake, or that is missing, is reported as a fault."""
    faults = faults_in(hop)

    assert faults
    assert any(words in fault for fault in faults)


def test_token_in_a_request_of_no_call_is_a_fault():
    """A token in a request that does not belong to a call of the demo is reported as a fault."""
    stray = replace(note_of("profile-service", ALICE, OWN), trace_id="")

    assert find_faults([ALICE], [], [stray], listed=LISTED) == [
        "profile-service received alice's token in a request from anonymous"
    ]


def test_a_direct_call_may_have_the_token_of_its_caller():
    """Alice's token in the demo's direct call to billing-service is not reported as a fault."""
    direct = replace(ALICE, receiver="billing-service")

    assert find_faults([direct], [], [note_of("billing-service", ALICE, OWN)], listed=LISTED, exchanged=EXCHANGED) == []
    assert find_faults([direct], [], [note_of("billing-service", ALICE, OTHER)], listed=LISTED, exchanged=EXCHANGED)


def span_of(call, span_id, start, status=200, **attributes):
    return {
        "kind": "SpanKind.CLIENT",
        "context": {"trace_id": f"0x{call.trace_id}", "span_id": f"0x{span_id}"},
        "start_time": start,
        "attributes": {"http.status_code": status, **attributes},
        "resource": {"attributes": {"service.name": "user-service"}},
    }


def test_hops_are_joined_when_both_halves_are_there():
    """Spans and notes are combined by span ID as soon as both are complete."""
    first, second = "1" * 16, "2" * 16
    spans = [
        span_of(ALICE, second, "2026-01-01T00:00:01Z"),
        span_of(ALICE, first, "2026-01-01T00:00:00Z", 307, **{"token_relay.decision": "relayed"}),
    ]
    notes = [
        note_of("user-service", ALICE, span_id="0" * 16),
        note_of("profile-service", ALICE, span_id=first),
        note_of("third-party", ALICE, span_id=second),
    ]

    hops = join_hops([ALICE], spans, notes)

    assert [(hop.note.receiver, hop.decision, hop.redirected) for hop in hops] == [
        ("profile-service", "relayed", False),
        ("third-party", "?", True),
    ]
    assert join_hops([ALICE], spans[1:], notes) is None
    assert join_hops([ALICE], spans, notes[:2]) is None
    assert join_hops([ALICE], spans, notes[1:]) is None


def test_spans_are_read_while_they_are_written():
    """Other text between spans, and an incomplete last span, are ignored."""
    text = 'a line of a log\n{\n "n": 1\n}\n{"n": {"m": 2}}\n{"n":'

    assert [json.dumps(span) for span in read_spans(text)] == ['{"n": 1}', '{"n": {"m": 2}}']


def test_a_call_begins_its_own_trace():
    """Each ``traceparent`` header of a call contains the call's trace ID and a new span ID."""
    first, second = ALICE.traceparent(), ALICE.traceparent()

    assert re.fullmatch(rf"00-{ALICE.trace_id}-[0-9a-f]{{16}}-01", first)
    assert first != second


def test_a_hop_names_each_received_subject_once():
    """Each subject is listed once, even if several parts of a request contain its token."""
    assert hop_of(ALICE, note_of("third-party", ALICE)).seen == ()
    assert hop_of(ALICE, note_of("third-party", ALICE, OWN, OTHER, OWN)).seen == ("alice", "bob")


@pytest.mark.parametrize("text", ["", "no spans", "{", '{"n": 1', "}{"])
def test_a_log_without_a_complete_span_has_none(text):
    """A log without a complete span contains no spans."""
    assert list(read_spans(text)) == []
