"""A cause of a rejection: one printable line, cut to a limit."""

from __future__ import annotations

import pytest

from otel_token_relay.verification.causes import MAX_VALUE_LENGTH, MAX_VALUES, Cause, describe_time, join_names

CAUSE = Cause(check="aud", problem="expected billing, but the token is for orders", advice="Ask for a new token.")


def test_a_line_has_no_advice() -> None:
    """The line is for a log; the advice is for a person."""
    assert CAUSE.line() == str(CAUSE) == "aud: expected billing, but the token is for orders"


@pytest.mark.parametrize("limit", [20, 49, 50, 51])
def test_a_line_is_cut_to_its_limit(limit: int) -> None:
    """A caller chooses the values in a token."""
    line = CAUSE.line(limit)

    assert len(line) <= limit
    assert (line == str(CAUSE)) is (len(str(CAUSE)) <= limit)


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        ([], ""),
        (["a"], "a"),
        ([str(number) for number in range(MAX_VALUES)], "0, 1, 2, 3, 4"),
        ([str(number) for number in range(MAX_VALUES + 2)], "0, 1, 2, 3, 4, 2 more"),
        (["\u00e9\n"], "\\xe9\\n"),
    ],
    ids=["none", "one", "most", "more", "escaped"],
)
def test_names_are_joined(names: list[str], shown: str) -> None:
    """The list is printable and has a limited number of names."""
    assert join_names(iter(names)) == shown


def test_a_long_name_is_cut() -> None:
    """The limit applies to each name."""
    assert len(join_names(["x" * (MAX_VALUE_LENGTH + 1)])) <= MAX_VALUE_LENGTH


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_795_000_000.9, "2026-11-18T11:06:40Z"),
        (253_402_300_799, "9999-12-31T23:59:59Z"),
        (253_402_300_800, "253402300800"),
        (-1, "-1"),
    ],
)
def test_a_time_is_formatted_as_in_rfc_3339(seconds: float, shown: str) -> None:
    """Times that `datetime` does not support are shown as numbers."""
    assert describe_time(seconds) == shown
