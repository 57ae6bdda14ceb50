"""Printed values from an unverified token are short printable ASCII and contain no credentials."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.verification.concealment import Concealment
from tests.support.json_values import json_values
from tests.support.tokens import b64

HEADER = b64({"alg": "RS256", "kid": "k1"})
TOKEN = f"{HEADER}.{b64({'iss': 'https://idp.example', 'aud': 'profile-service'})}.dGhlLXNpZ25hdHVyZS1vZi10aGlz"
OTHER = f"{b64({'alg': 'ES256'})}.{b64({'iss': 'https://other.example'})}.c2lnbmF0dXJlLW9mLWFub3RoZXI"


def runs_of(token: str, text: str) -> list[str]:
    """Return all runs of 17 characters of the token that a text contains."""
    return [token[at : at + 17] for at in range(len(token) - 16) if token[at : at + 17] in text]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param("https://idp.example/", "https://idp.example/", id="URL"),
        pytest.param("123e4567-e89b-12d3-a456-426614174000", "123e4567-e89b-12d3-a456-426614174000", id="UUID"),
        pytest.param(
            "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs", "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs", id="kid"
        ),
        pytest.param("\x1b[31mred\nnext", r"\x1b[31mred\nnext", id="control sequence"),
        pytest.param("\ud800", r"\ud800", id="lone surrogate"),
        pytest.param(TOKEN, "[REDACTED]", id="the token"),
        pytest.param(HEADER, "[REDACTED]", id="its header"),
        pytest.param(f"a {TOKEN[-20:]} b", "a [REDACTED] b", id="a part of its signature"),
        pytest.param(TOKEN[-8:], TOKEN[-8:], id="a few characters"),
        pytest.param(f"sent {OTHER}", "sent [REDACTED]", id="another token"),
        pytest.param("Bearer 2YotnFZFEjr1zCsicMWpAA", "Bearer [REDACTED]", id="an opaque token"),
        pytest.param("https://a/?access_token=s3cr3t", "https://a/?access_token=[REDACTED]", id="a parameter"),
        pytest.param(quote(TOKEN).replace("-", "%2D"), "[REDACTED]", id="percent-encoded"),
        pytest.param(base64.b64encode(TOKEN.encode()).decode(), "[REDACTED]", id="base64"),
        pytest.param(["a", 1, None], '["a", 1, null]', id="a list"),
        pytest.param({"a": OTHER}, '{"a": "[REDACTED]"}', id="an object"),
        pytest.param(1795761796, "1795761796", id="a number"),
        pytest.param("a" * 300, "a" * 97 + "...", id="a long value"),
        pytest.param("a" * 100_000 + TOKEN, "a" * 97 + "...", id="a long value before the token"),
    ],
)
def test_a_value_is_shown_without_credentials(value: object, shown: str) -> None:
    """A value is printed without credentials, and the parts that help to find the cause remain readable."""
    assert Concealment(TOKEN).value(value, 100) == shown


def test_an_escape_cannot_complete_a_run_of_the_token() -> None:
    """An escaped letter, which ends in letters and digits, cannot complete a run of the token."""
    for size in range(20):  # the search for parts does not check every position
        token = f"{HEADER}{'-' * size}xe9abcdefghijklmnopqrstuvwxyz.AAAA"

        assert runs_of(token, Concealment(token).text("\xe9abcdefghijklmn", 100)) == []


def test_only_some_of_many_values_are_shown() -> None:
    """Of many values, only some are printed, with the number of remaining values."""
    concealment = Concealment(TOKEN)

    assert concealment.values(map(str, range(7)), limit=100, count=5) == ("0", "1", "2", "3", "4", "2 more")
    assert concealment.values(["a", "b"], limit=100, count=2) == ("a", "b")
    assert concealment.values([], limit=100, count=2) == ()


PIECES = st.builds(lambda start, size: TOKEN[start : start + size], st.integers(0, len(TOKEN)), st.integers(0, 80))
CHANGED = st.builds(
    lambda piece, change: change(piece),
    PIECES,
    st.sampled_from(
        [str, quote, str.upper, str.lower, lambda p: p.replace(".", "\n"), lambda p: b64(p), lambda p: "\x1b".join(p)]
    ),
)


@given(
    st.lists(st.one_of(PIECES, CHANGED, st.text(st.characters(codec=None), max_size=5)), max_size=8),
    st.integers(0, 300),
)
def test_no_run_of_the_token_is_shown(pieces: list[str], limit: int) -> None:
    """No run of a hostile token is printed, even if a value contains any pieces of the token."""
    shown = Concealment(TOKEN).text("".join(pieces), limit)

    assert runs_of(TOKEN, shown) == []
    assert len(shown) <= max(limit, 3)
    assert all(" " <= c <= "~" for c in shown)


@given(json_values)
def test_any_json_value_can_be_shown(value: object) -> None:
    """Any JSON value is printed in ASCII, because the class is also used for values that the strict token parser
    rejects.
    """
    assert all(" " <= c <= "~" for c in Concealment(TOKEN).value(value, 50))


def test_a_short_token_has_no_run_to_mask() -> None:
    """A short opaque token contains no run that could be masked."""
    assert Concealment("abc").text("abcdef", 100) == "abcdef"
    assert Concealment("").text("abcdef", 100) == "abcdef"
