"""The difference between two values that look alike."""

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
    """The text names the difference without quoting either URL."""
    assert describe_difference(ISSUER, actual) == difference


def test_the_difference_is_named_from_the_side_of_the_actual_value() -> None:
    """The actual value lacks a slash that the expected one has."""
    assert describe_difference(f"{ISSUER}/", ISSUER) == "a missing trailing slash"


def test_the_prefix_of_an_application_id() -> None:
    """Entra ID writes some audiences with and some without api://."""
    assert describe_difference("api://orders", "orders") == "the api:// prefix differs"
    assert describe_difference("orders", "api://orders") == "the api:// prefix differs"
    assert describe_difference("orders", "api://billing") is None


def test_the_closest_of_several_values() -> None:
    """The smallest difference that can be named."""
    assert closest_difference(["https://idp.example/realms/b", ISSUER[:-1], f"{ISSUER}/"], ISSUER) == (
        "a missing trailing slash"
    )
    assert closest_difference(["billing", f"{ISSUER}/", ISSUER.upper()], ISSUER) == "a missing trailing slash"
    assert closest_difference(["billing"], ISSUER) is None
    assert closest_difference([], ISSUER) is None


@given(st.text(), st.text())
def test_any_two_texts_can_be_compared(expected: str, actual: str) -> None:
    """One of the texts comes from a token that anyone can make."""
    assert (describe_difference(expected, actual) is None) or expected != actual
