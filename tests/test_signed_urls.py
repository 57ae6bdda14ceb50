"""Some queries authenticate a request."""

from __future__ import annotations

from pathlib import Path

import pytest

from otel_token_relay.redaction.secret_names import BUILT_IN, Kind
from otel_token_relay.signed_urls import TABLE, Row, is_signed

each_row = pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.secret}-{'-'.join(sorted(row.companions))}")


def url_with(*names: str) -> str:
    return "https://store/object?" + "&".join(f"{name}=x%2Fy" for name in names)


@each_row
def test_all_parameters_of_a_row_sign_a_url(row: Row) -> None:
    """All parameters of a row sign a URL, in any order and with additional parameters."""
    assert is_signed(url_with("a", *row.companions, row.secret))
    assert is_signed(url_with(row.secret, *sorted(row.companions), "a"))


@each_row
def test_names_are_compared_as_servers_compare_them(row: Row) -> None:
    """Parameter names match regardless of case and percent-encoding, as on servers."""
    encoded = [f"%{ord(name[0]):02X}{name[1:].upper()}" for name in (row.secret, *row.companions)]

    assert is_signed(url_with(*encoded))


@each_row
def test_each_parameter_of_a_row_is_necessary(row: Row) -> None:
    """Each parameter of a row is required, because a single parameter can have an ordinary meaning."""
    names = {row.secret, *row.companions}
    for missing in names:
        assert not is_signed(url_with(*(names - {missing})))


@each_row
def test_the_page_lists_every_row(row: Row) -> None:
    """The page lists every row of the table."""
    page = (Path(__file__).parents[1] / "docs" / "destinations.md").read_text("utf-8").lower()
    lines = [line for line in page.splitlines() if f"`{row.secret}`" in line]

    assert any(all(f"`{name}`" in line for name in row.companions) for line in lines)


@each_row
def test_redaction_masks_what_signs_a_url(row: Row) -> None:
    """Redaction masks the parameter with the signature or the token in every row."""
    assert BUILT_IN.kind_of(row.secret) not in (Kind.ORDINARY, Kind.HARMLESS)


@pytest.mark.parametrize(
    "url",
    [
        "https://store/object",
        "https://store/object?",
        "https://store/object?sig=1",
        "https://store/object?sig=1&page=2&sv=3",
        "https://store/documents?signature=valid&signer=me",
        "https://store/object?q=X-Amz-Signature",
        "https://store/object?q=access_token=1",
        "https://store/object?a=1;access_token=x",
        "https://store/object?my_access_token=1",
        "https://store/object?key=1&api_key=2",
        "https://store/X-Amz-Signature=1&access_token=2",
        "https://store/object#?access_token=1",
        "https://store/object?a=1#&access_token=1",
        "https://store/object?a=1%26access_token=1",
    ],
)
def test_an_ordinary_url_is_not_signed(url: str) -> None:
    """Values, paths, fragments, and similar names do not sign a URL."""
    assert not is_signed(url)


def test_a_name_without_a_value_counts() -> None:
    """A parameter without a value is recognized, because values are not read."""
    assert is_signed("/object?access_token")
    assert is_signed("/object??&access_token=")
