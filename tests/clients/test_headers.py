"""Header names are recognized in all forms that applications use."""

from __future__ import annotations

import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay import Settings, install, use_token
from otel_token_relay.clients.headers import lower
from tests.support.loopback import Party

TOKEN = "headers-sample-token"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Authorization", "authorization"),
        ("authorization", "authorization"),
        (b"AUTHORIZATION", "authorization"),
        (b"X-Us\xcbr", "x-us\u00ebr"),
        ("", ""),
        (b"", ""),
    ],
    ids=repr,
)
def test_text_and_bytes_have_the_same_form(name: str | bytes, expected: str) -> None:
    """A header name in bytes is decoded as Latin-1, the encoding that http.client uses."""
    assert lower(name) == expected


@given(st.text() | st.binary())
def test_every_name_has_a_form(name: str | bytes) -> None:
    """Any name can be converted to lowercase, even a name that no client can send."""
    assert lower(name) == lower(lower(name))


@pytest.mark.parametrize("name", ["aUTHORIZATION", b"AUTHORIZATION"], ids=["text", "bytes"])
@pytest.mark.parametrize("on_conflict", ["keep", "replace"])
def test_a_header_of_the_application_is_found_in_each_form(name: str | bytes, on_conflict: str, one: Party) -> None:
    """A request has a single Authorization line: the application's own or, with ON_CONFLICT=replace, the relay's."""
    install(Settings(destinations=[one.url], on_conflict=on_conflict))  # type: ignore[arg-type]
    headers = {name: "Own a"}
    with use_token(TOKEN), urllib3.PoolManager() as manager:
        manager.request("GET", one.url, headers=headers)  # type: ignore[arg-type]

    assert one.lines() == [["Own a"] if on_conflict == "keep" else [f"Bearer {TOKEN}"]]
    assert headers == {name: "Own a"}
