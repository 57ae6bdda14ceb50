"""Text for terminals and logs consists of printable ASCII and has a limited length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.printable import escape, shorten


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        pytest.param("plain ~ text", "plain ~ text", id="printable"),
        pytest.param("\x1b[31m", r"\x1b[31m", id="terminal control sequence"),
        pytest.param("a\r\n\tb", r"a\r\n\tb", id="line break"),
        pytest.param("\x7f\x9b", r"\x7f\x9b", id="DEL and C1"),
        pytest.param("\u202e\u2028", r"\u202e\u2028", id="right-to-left override, line separator"),
        pytest.param("\ud800", r"\ud800", id="lone surrogate"),
        pytest.param("é😀", r"\xe9\U0001f600", id="letters"),
    ],
)
def test_only_printable_ascii_remains(text: str, escaped: str) -> None:
    """Each character that is not printable ASCII is replaced with its escape sequence."""
    assert escape(text) == escaped


@given(st.text(st.characters(codec=None)))
def test_escaping_any_text(text: str) -> None:
    """Escaped text cannot control a terminal or start a new line."""
    assert all(" " <= c <= "~" for c in escape(text))


@pytest.mark.parametrize(("limit", "shortened"), [(6, "abcdef"), (5, "ab..."), (3, "..."), (2, "..."), (100, "abcdef")])
def test_a_longer_text_is_cut(limit: int, shortened: str) -> None:
    """A text that is too long is truncated with a visible mark."""
    assert shorten("abcdef", limit) == shortened
