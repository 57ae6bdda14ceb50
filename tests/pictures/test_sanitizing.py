"""Tokens, and characters that alter the surrounding text, are removed from the text of a recording."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.pictures.sanitizing import MAX_LENGTH, clean
from tests.support.tokens import claims, make_token

TOKEN = make_token(claims("https://idp.example"))
OPAQUE = "gho_16C7e42F292c6912E7710c838347Ae178B4a"


@pytest.mark.parametrize("text", ["{}", "GET /x?access_token={}", "Bearer {}", "a {} b", "https://host/{}/x", "é{}"])
@pytest.mark.parametrize("token", [TOKEN, OPAQUE], ids=["JWT", "opaque"])
def test_no_token_survives(text: str, token: str) -> None:
    """A token in a name is masked, regardless of the surrounding text."""
    cleaned = clean(text.format(token))

    assert all(token[start : start + 17] not in cleaned for start in range(len(token) - 17))


@pytest.mark.parametrize("text", ["Authorization: Bearer s3cr3t-w0rd", "GET /?access_token=s3cr3t-w0rd"])
def test_a_short_token_is_found_by_its_label(text: str) -> None:
    """A token that does not look like a token is masked if its label identifies it, as in telemetry."""
    assert "s3cr3t-w0rd" not in clean(text)


@pytest.mark.parametrize("left", range(1, len(OPAQUE)))
def test_no_part_of_a_token_survives_a_cut(left: int) -> None:
    """No part of a token remains at the end of a text that is truncated before it is searched."""
    header = "eyJhbGciOiJSUzI1NiJ9.eyJ"
    long = f"{header}{'a1B2' * 1100}"[: 4095 - left - 43] + f".{'c2lnbmF0dXJl' * 3}abcdef"

    assert clean(f"{long} {OPAQUE} and more") == "[REDACTED]"


@pytest.mark.parametrize(
    "text",
    ["user-service", "GET /orders/{id}", "服务-1", "خدمة", "👩‍👩‍👧", "https://*.svc.cluster.local:8443", "a" * 32, ""],
)
def test_ordinary_text_is_kept(text: str) -> None:
    """Names of services and spans are kept unchanged in every script."""
    assert clean(text) == text


def test_text_is_escaped_and_cut() -> None:
    """Control characters, direction marks, and lone surrogates are escaped, and long text is truncated."""
    assert clean("a\x1b[31m\n\u202eb\u2066\ud800") == "a\\x1b[31m\\n\\u202eb\\u2066\\ud800"
    assert len(clean("word " * 1000)) == MAX_LENGTH


@given(st.text())
def test_any_text_can_be_written(text: str) -> None:
    """Any cleaned text can be encoded."""
    clean(text).encode("utf-8")
