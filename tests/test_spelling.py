"""Names that differ by at most two edits are considered similar."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.spelling import hint, nearest, resembles


def distance(left: str, right: str) -> int:
    """Return the Levenshtein distance, computed according to its definition."""
    if not left or not right:
        return len(left) + len(right)
    if left[0] == right[0]:
        return distance(left[1:], right[1:])
    return 1 + min(distance(left[1:], right), distance(left, right[1:]), distance(left[1:], right[1:]))


@given(st.text("AB_", max_size=7), st.text("AB_", max_size=7))
def test_h15_two_edits_are_a_misspelling_and_three_are_not(left: str, right: str) -> None:
    """Two edits are a misspelling and three are not, in either direction and in any case."""
    assert resembles(left, right) == resembles(right, left.lower()) == (distance(left, right) <= 2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("required", True, id="equal"),
        pytest.param("REQUIRED", True, id="another case"),
        pytest.param("requird", True, id="a letter missing"),
        pytest.param("requirred", True, id="a letter too many"),
        pytest.param("raquired", True, id="a wrong letter"),
        pytest.param("erquired", True, id="two letters swapped"),
        pytest.param("require", True, id="another ending"),
        pytest.param("requi", False, id="three letters missing"),
        pytest.param("rqeuierd", False, id="twice two letters swapped"),
        pytest.param("audience", False, id="another word"),
        pytest.param("", False, id="empty"),
    ],
)
def test_common_mistakes_are_recognized(name: str, expected: bool) -> None:
    """Common misspellings of the `;required` parameter are recognized."""
    assert resembles(name, "required") is expected
    assert resembles("required", name) is expected


def test_short_names_resemble_each_other() -> None:
    """All short names are similar, so callers compare only names that are long enough."""
    assert resembles("", "")
    assert resembles("ab", "")
    assert not resembles("abc", "")
    assert resembles("ab", "xy")


@given(st.text(max_size=12), st.text(max_size=12))
def test_any_text_can_be_compared(left: str, right: str) -> None:
    """Any text can be compared, including letters that become several letters in uppercase."""
    assert resembles(left, right) is resembles(right, left)
    assert resembles(left, left)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("verify", "verify"),
        ("VERIF", "verify"),
        ("header", "header"),
        ("heeder", "header"),
        ("logs", "log"),
        ("port", None),
        ("ogg", None),
        ("gol", None),
        ("", None),
        ("hue", None),
    ],
)
def test_the_nearest_name_is_found(name: str, meant: str | None) -> None:
    """The closest name is found, with one edit less for short names, which resemble too many names."""
    assert nearest(name, ["header", "headers_of", "verify", "log"]) == meant


def test_of_two_equally_near_names_the_first_is_returned() -> None:
    """If two names are equally close, the first is returned, so the result does not depend on a set's order."""
    assert nearest("axxb", ["axxc", "axxd"]) == "axxc"


@pytest.mark.parametrize(
    ("name", "text"),
    [("heeder", "; did you mean header?"), ("VERIF", "; did you mean verify?"), ("color", ""), ("", "")],
)
def test_a_message_suggests_the_name_that_was_meant(name: str, text: str) -> None:
    """A message suggests the closest name, and suggests nothing if no name is close enough."""
    assert f"unknown key{hint(name, ['header', 'verify', 'log'])}" == f"unknown key{text}"
