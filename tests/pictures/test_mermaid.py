"""The Mermaid diagram has an arrow for each outcome, and its text cannot change its structure."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.pictures.mermaid import MAX_HOPS, escape, write_mermaid
from otel_token_relay.pictures.runs import build_run
from otel_token_relay.pictures.spans import read_recording
from tests.support.otlp_json import decided, every_outcome, lines_of, make_span, request_of

# This pattern matches every possible line of the diagram. Text consists only of harmless characters and escapes.
TEXT = r"(?:[A-Za-z0-9 ,._/-]|#\d+;)+"
LINE = re.compile(
    rf"sequenceDiagram|    %% [\w ,.]+|    participant p\d+ as {TEXT}|    Note over p\d+: {TEXT}"
    rf"|    p\d+(?:->>|-->>|--x)p\d+: {TEXT}"
)


def diagram_of(*requests) -> str:
    return write_mermaid(build_run(read_recording(lines_of(*requests)), max_hops=MAX_HOPS))


def test_every_outcome_has_its_arrow() -> None:
    """A solid arrow represents a hop with a token, and a cross represents a withheld token."""
    text = write_mermaid(build_run(read_recording(every_outcome()), max_hops=MAX_HOPS))

    assert text.splitlines() == [
        "sequenceDiagram",
        "    %% 7 hops in 1 trace.",
        "    participant p0 as caller",
        "    participant p1 as frontend",
        "    participant p2 as orders",
        "    participant p3 as database",
        "    participant p4 as billing",
        "    participant p5 as stock",
        "    participant p6 as weather.example",
        "    participant p7 as old-service#58;8080",
        "    p0->>p1: request",
        "    p1->>p2: relayed",
        "    p2--xp3: withheld, no_token",
        "    p1->>p4: exchanged",
        "    p1->>p5: own",
        "    p1--xp6: withheld, destination_not_listed",
        "    p1-->>p7: no decision",
    ]


@given(st.text(), st.text(), st.text())
def test_no_text_leaves_its_place(service: str, receiver: str, reason: str) -> None:
    """Each line matches a known pattern, regardless of the names in the recording."""
    text = diagram_of(request_of(service, make_span("01", peer__service=receiver, **decided("withheld", reason))))

    assert [line for line in text.splitlines() if not LINE.fullmatch(line)] == []
    assert text.isascii()


def test_escapes_are_those_of_mermaid() -> None:
    """Special characters are escaped as character codes, which Mermaid decodes."""
    assert escape("a;b#c\n%%{init}%% ü<b>", 80) == "a#59;b#35;c#10;#37;#37;#123;init#125;#37;#37; #252;#60;b#62;"
    assert escape("", 80) == escape("   ", 80) == "#32;"


def test_long_runs_are_cut() -> None:
    """Mermaid rejects more than 50,000 characters, so the remaining hops are omitted and counted."""
    spans = [make_span(f"{n:x}", **decided("withheld", "\u4e00" * 60)) for n in range(300)]

    text = diagram_of(request_of("a", *spans))

    assert len(text) < 50_000
    assert text.splitlines()[1:3] == [
        "    %% Shown: 250 of 300 hops, 1 of 1 trace.",
        f"    %% {250 - text.count('--x')} more lines are omitted, because Mermaid limits the length of a diagram.",
    ]
