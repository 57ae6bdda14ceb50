"""The difference between two similar values is described."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.differences import closest_difference, describe_difference

ISSUER = "https://idp.example/realms/a"


@pytest.mark.parametrize(
    ("actual", "difference"),
    [
        (ISSUER, None),
        (f"{ISSUER}/", "an extra trailing slash"),
        (f" {ISSUER}\n", "leading or trailing white space"),
        ("https://idp.example/Realms/A", "the capitalization differs"),
        ("http://idp.example/realms/a", "the scheme differs"),
        ("https://idp.example:8443/realms/a", "the port differs"),
        ("https://idp.example/realms/b", "the path differs"),
        ("http://idp.example/realms/b", "the path differs"),
        ("https://evil.example/realms/a", None),
        ("http://idp.example:8080/realms/a", None),
        ("https://user@idp.example:8443/realms/a", None),
        ("https://[", None),
        ("billing", None),
        ("", None),
    ],
)
def test_the_difference_of_two_urls(actual: str, difference: str | None) -> None:
    """The text describes the difference between two URLs without quoting them."""
    assert describe_difference(ISSUER, actual) == difference


def test_the_difference_is_named_from_the_side_of_the_actual_value() -> None:
    """The difference is described from the perspective of the actual value, for example, that it lacks a slash."""
    assert describe_difference(f"{ISSUER}/", ISSUER) == "a missing trailing slash"


def test_the_prefix_of_an_application_id() -> None:
    """The `api://` prefix, which Entra ID writes only in some audiences, is recognized as the difference."""
    assert describe_difference("api://orders", "orders") == "the api:// prefix differs"
    assert describe_difference("orders", "api://orders") == "the api:// prefix differs"
    assert describe_difference("orders", "api://billing") is None


def test_the_closest_of_several_values() -> None:
    """The closest of several values is the one with the smallest difference that can be described."""
    assert closest_difference(["https://idp.example/realms/b", ISSUER[:-1], f"{ISSUER}/"], ISSUER) == (
        "a missing trailing slash"
    )
    assert closest_difference(["billing", f"{ISSUER}/", ISSUER.upper()], ISSUER) == "a missing trailing slash"
    assert closest_difference(["billing"], ISSUER) is None
    assert closest_difference([], ISSUER) is None


@given(st.text(), st.text())
def test_any_two_texts_can_be_compared(expected: str, actual: str) -> None:
    """Any two texts can be compared, because an attacker can choose the text in a token."""
    assert (describe_difference(expected, actual) is None) or expected != actual
