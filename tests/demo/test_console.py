"""The demo prints its cells, tables, and results correctly on consoles of any width and encoding."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from otel_token_relay import BearerToken
from otel_token_relay.demo.console import CHECK_COLUMNS, COLUMNS, TOKEN_COLUMNS, Report, check_cells, hop_cells
from otel_token_relay.demo.hops import Call, Hop
from otel_token_relay.demo.recorder import Note, SeenToken
from otel_token_relay.demo.token_checks import Outcome, TokenCheck

CALL = Call(trace_id="a" * 32, user="alice", token="digest")
NOTE = Note(
    receiver="profile-service",
    trace_id=CALL.trace_id,
    span_id="1" * 16,
    client="python-httpx/0.28.1",
    credentials=1,
    tokens=(SeenToken("digest", "alice", "user-service, profile-service"),),
)
RELAYED = Hop(call=CALL, sender="user-service", decision="relayed", reason="relayed", redirected=False, note=NOTE)
WITHHELD = replace(
    RELAYED,
    decision="withheld",
    reason="destination_not_listed",
    redirected=True,
    note=replace(NOTE, receiver="third-party", credentials=0, tokens=()),
)
EXCHANGED = replace(
    RELAYED,
    decision="exchanged",
    reason="exchanged",
    note=replace(NOTE, receiver="billing-service", tokens=(SeenToken("other", "alice", "billing-service"),)),
)
VALID = TokenCheck(what="alice's", call=CALL, token=BearerToken("eyJ.e30.c2ln"))
EXPIRED = replace(VALID, what="alice's, expired 1 s after it was issued", reason="expired")
ACCEPTED = Outcome(check=VALID, status=200, name="alice")
REJECTED = Outcome(check=EXPIRED, status=401, error="invalid_token", reason="expired")


def report(width: int = 80, encoding: str = "utf-8", **options: Any) -> tuple[Report, io.BytesIO]:
    """Return a report for a console of the given width and encoding, and the buffer that receives its output."""
    printed = io.BytesIO()
    file = io.TextIOWrapper(printed, encoding=encoding, write_through=True)
    return Report(Console(file=file, width=width, **options)), printed


def everything(one: Report) -> None:
    """Print every part of the report."""
    one.print_introduction(
        {"OTEL_PROPAGATORS": "tracecontext,token_relay", "DESTINATIONS": "http://a"}, {"http://a": "b"}
    )
    one.print_part("first", [RELAYED, WITHHELD], has_header=True)
    one.print_part("second", [RELAYED], has_header=False)
    one.print_tokens("tokens", "alice")
    one.print_checks("checks", [ACCEPTED, REJECTED], has_header=True)
    one.print_result([], exchanged="billing-service", unlisted="third-party")
    one.print_result(["a fault"], exchanged="billing-service", unlisted="third-party")
    one.print_failure("a failure")


@pytest.mark.parametrize(
    ("hop", "expected"),
    [
        (RELAYED, ("alice", "user-service", "profile-service", "httpx", "relayed", "relayed", "alice")),
        (EXCHANGED, ("alice", "user-service", "billing-service", "httpx", "exchanged", "exchanged", "alice")),
        (WITHHELD, ("alice", "user-service", "↪ third-party", "httpx", "withheld", "destination_not_listed", "none")),
        (
            replace(
                RELAYED,
                call=replace(CALL, user=None, token=None),
                decision="?",
                reason="?",
                note=replace(
                    NOTE,
                    client="",
                    tokens=tuple(SeenToken(*t, "?") for t in (("1", "alice"), ("2", "bob"), ("1", "alice"))),
                ),
            ),
            ("anon", "user-service", "profile-service", "", "?", "?", "alice, bob"),
        ),
    ],
    ids=["relayed", "exchanged", "redirected", "unreported"],
)
def test_the_cells_of_a_hop_are_the_decision_and_what_was_received(hop: Hop, expected: tuple[str, ...]) -> None:
    """A hop has one cell for each column, and each token is identified by its user."""
    assert hop_cells(hop) == expected
    assert len(expected) == len(COLUMNS)


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (ACCEPTED, ("alice's", "200 alice", "")),
        (REJECTED, ("alice's, expired 1 s after it was issued", "401 invalid_token", "expired")),
        (replace(REJECTED, error="", reason=""), ("alice's, expired 1 s after it was issued", "401", "")),
    ],
    ids=["accepted", "rejected", "without error"],
)
def test_the_cells_of_a_token_check_are_the_response_and_the_log(outcome: Outcome, expected: tuple[str, ...]) -> None:
    """A token check's response cell contains the status with either the error code or the identified user."""
    assert check_cells(outcome) == expected
    assert len(expected) == len(CHECK_COLUMNS)


def test_the_introduction_shows_the_variables_and_the_services_behind_their_urls() -> None:
    """The introduction explains each value that is a service's URL."""
    one, printed = report()
    one.print_introduction({"PROPAGATORS": "token_relay", "DESTINATIONS": "http://a"}, {"http://a": "profile-service"})

    lines = printed.getvalue().decode().splitlines()
    assert "  PROPAGATORS=token_relay" in map(str.rstrip, lines)
    assert "  DESTINATIONS=http://a  (profile-service)" in map(str.rstrip, lines)


def test_the_introduction_shows_each_url_of_a_list_on_a_line_of_its_own() -> None:
    """Each URL in a list is printed on a separate line with its service, even if the entry has parameters."""
    one, printed = report()
    urls = {"http://a": "profile-service", "http://b.example": "billing-service"}
    one.print_introduction({"DESTINATIONS": "http://a,http://b.example;audience=b,http://c", "LIST": "a,b"}, urls)

    lines = [line.rstrip() for line in printed.getvalue().decode().splitlines()]
    start = lines.index("  DESTINATIONS=")
    assert lines[start + 1 : start + 5] == [
        "    http://a,                     (profile-service)",
        "    http://b.example;audience=b,  (billing-service)",
        "    http://c",
        "  LIST=a,b",
    ]


def test_the_tokens_of_a_user_are_shown_once_for_each_service() -> None:
    """The table contains the user and the audience of each token once, for the given user only."""
    one, printed = report()
    bobs = replace(RELAYED, call=replace(CALL, user="bob"))
    one.print_part("part", [RELAYED, EXCHANGED, WITHHELD, RELAYED, bobs], has_header=True)
    one.print_tokens("tokens", "alice")

    lines = [re.split("  +", line.strip()) for line in printed.getvalue().decode().splitlines()]
    assert lines[lines.index(["tokens"]) + 1 :] == [
        ["received by", "user", "token audience"],
        ["profile-service alice", "user-service, profile-service"],
        ["billing-service alice", "billing-service"],
    ]
    assert len(TOKEN_COLUMNS) == 3


def test_parts_have_the_same_columns_and_one_header() -> None:
    """All parts have the same columns, and they share a single header."""
    one, printed = report()
    one.print_part("first", [RELAYED], has_header=True)
    one.print_part("second", [WITHHELD], has_header=False)
    one.print_checks("third", [ACCEPTED], has_header=False)
    one.print_checks("fourth", [REJECTED], has_header=True)

    lines = printed.getvalue().decode().splitlines()
    (header,) = (line for line in lines if line.split() == list(COLUMNS))
    rows = [line for line in lines if line.startswith("alice ")]
    assert [row.index("user-service") for row in rows] == [header.index("from")] * 2
    assert [row.index("httpx") for row in rows] == [header.index("via")] * 2
    (checks,) = (line for line in lines if line.startswith("token "))
    assert checks.index("response") == next(line for line in lines if "200 alice" in line).index("200")
    assert (one.hops, one.outcomes) == ([RELAYED, WITHHELD], [ACCEPTED, REJECTED])


@pytest.mark.parametrize("width", [20, 79, 80, 95, 96, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_every_console_can_show_the_report(width: int, encoding: str) -> None:
    """No line is wider than the console, and a console without Unicode gets ASCII characters."""
    one, printed = report(width, encoding)
    everything(one)

    text = printed.getvalue().decode(encoding)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "\x1b" not in text
    assert text.isascii() == (encoding != "utf-8")
    assert ("✗ a fault" if encoding == "utf-8" else "NO a fault") in text


def test_a_result_without_faults_counts_the_hops() -> None:
    """A result without faults contains the number of hops with each decision."""
    one, printed = report()
    one.print_part("part", [RELAYED, WITHHELD, EXCHANGED, RELAYED], has_header=True)
    one.print_result([], exchanged="billing-service", unlisted="third-party")

    text = printed.getvalue().decode()
    assert "4 hops. 2 carried the calling user's token." in text
    assert "1 carried a token that was exchanged for billing-service." in text
    assert "third-party received 1 requests, all without a token." in text
    assert "✗" not in text


def test_a_result_with_faults_shows_only_these() -> None:
    """A result with faults contains only the faults."""
    one, printed = report()
    one.print_result(["first fault", "second fault"], exchanged="billing-service", unlisted="third-party")

    assert printed.getvalue().decode().split("\n") == ["", "✗ first fault", "✗ second fault", ""]


def test_an_unexpected_outcome_is_shown_in_red() -> None:
    """An unexpected outcome is printed in red, and expected outcomes are printed in other colors."""
    one, printed = report(force_terminal=True, color_system="standard")
    one.print_checks("checks", [ACCEPTED, REJECTED, replace(REJECTED, status=200, error="")], has_header=True)

    accepted, rejected, fault = (line for line in printed.getvalue().decode().splitlines() if "alice's" in line)
    assert "\x1b[32m200 alice" in accepted
    assert "\x1b[33m401 invalid_token" in rejected
    assert "\x1b[1;31m200" in fault


def test_a_terminal_without_colors_gets_none() -> None:
    """If NO_COLOR is set, the terminal gets no colors (https://no-color.org)."""
    one, printed = report(force_terminal=True, color_system="standard", _environ={"NO_COLOR": "1"})
    everything(one)

    assert re.findall(r"\x1b\[[\d;]*m", printed.getvalue().decode())
    assert not re.search(r"\x1b\[(\d+;)*[34]\d", printed.getvalue().decode())


def test_markup_in_received_text_is_shown_as_text() -> None:
    """Markup in received text, such as a User-Agent or a log, is printed literally."""
    one, printed = report(200)
    one.print_part("[/]", [replace(RELAYED, sender="[/x]", note=replace(NOTE, client="[red]"))], has_header=True)
    one.print_result(["[/fault]"], exchanged="[/]", unlisted="[/]")
    one.print_failure("[bold]failure[/nothing]")

    text = printed.getvalue().decode()
    assert all(shown in text for shown in ("[/]", "[/x]", "[red]", "✗ [/fault]", "✗ [bold]failure[/nothing]"))
