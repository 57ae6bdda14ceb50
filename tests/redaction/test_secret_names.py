"""Every name in the table has the same meaning in each spelling, alone and at the end of a longer name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.redaction.secret_names import BUILT_IN, TABLE, Kind, SecretNames, _any_of, _ends, rows

NAMES = {name: kind for name, kind, _ in rows()}
SPELLINGS: dict[str, Callable[[list[str]], str]] = {
    "snake": "_".join,
    "kebab": "-".join,
    "camel": lambda words: words[0] + "".join(word.title() for word in words[1:]),
    "pascal": lambda words: "".join(word.title() for word in words),
    "joined": "".join,
    "upper": lambda words: "_".join(words).upper(),
    "header": lambda words: "-".join(word.title() for word in words),
}
LONGER: dict[str, Callable[[str], str]] = {
    "captured-header": lambda name: f"http.request.header.{name}",
    "prefix": lambda name: f"x_forwarded_{name}",
    "header-prefix": lambda name: f"X-Upstream-{name}",
    "camel-prefix": lambda name: f"user{name[0].upper()}{name[1:]}",
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
def test_a_name_is_recognized_in_every_spelling(spell: Callable[[list[str]], str]) -> None:
    """A name is recognized regardless of its case and of how its words are joined."""
    for name, kind in NAMES.items():
        assert BUILT_IN.kind_of(spell(name.split())) is kind, name


@pytest.mark.parametrize("longer", LONGER)
def test_a_name_may_end_a_longer_name(longer: str) -> None:
    """A name is recognized at the end of a longer name, except for plain words such as ``code``."""
    for name, kind in NAMES.items():
        stays = kind is not Kind.ALONE or longer == "captured-header"
        assert BUILT_IN.kind_of(LONGER[longer]("_".join(name.split()))) is (kind if stays else Kind.ORDINARY), name


@pytest.mark.parametrize(
    "name",
    [
        "access_token_type",
        "access_token.length",
        "my_tokens",
        "gen_ai.usage.input_tokens",
        "country_code",
        "key",
        "primary_key",
        "cache.key",
        "monkey",
        "session.id",
        "aws.request_id",
        "author",
        "compass",
        "signing",
        "design",
        "keyboard",
        "db.system.name",
        "",
        ".",
        "_",
        "token_",
        "-" * 300,
    ],
)
def test_other_names_are_ordinary(name: str) -> None:
    """A name that merely contains a secret's name is not treated as a secret."""
    assert BUILT_IN.kind_of(name) is Kind.ORDINARY


@pytest.mark.parametrize("name", ["x_next_token", "nextPageToken", "list.continuationToken", "ClientRequestToken"])
def test_the_position_in_a_list_is_harmless(name: str) -> None:
    """A name for a position in a list, alone or at the end of a longer name, is harmless."""
    assert BUILT_IN.kind_of(name) is Kind.HARMLESS


@pytest.mark.parametrize("name", ["a" * 10_000 + "_access_token", "A" * 10_000 + "AccessToken"])
def test_the_end_of_a_very_long_name_counts(name: str) -> None:
    """The end of a very long name, which a caller can choose, is recognized."""
    assert BUILT_IN.kind_of(name) is Kind.STRONG


def test_configured_names_match_whole_names_and_the_end_after_a_dot() -> None:
    """Configured names match in any case, with ``-`` or ``_``, and an empty name matches nothing."""
    names = SecretNames(["X-Api-Id", "tenant.id", " ", ""], ["x-user"])

    for name in ("x_api_id", "X-API-ID", "http.request.header.x_api_id", "tenant.id", "my.tenant.id", "x-user"):
        assert names.kind_of(name) is Kind.CONFIGURED
    for name in ("my_x_api_id", "x_api_ids", "tenant", "id", "", "."):
        assert names.kind_of(name) is Kind.ORDINARY
    assert names.masks_numbers("my.Tenant.ID")
    assert not names.masks_numbers("x-user")


def test_every_row_has_a_source_and_no_name_is_in_two_rows() -> None:
    """Every row has a source, and no name appears in two rows."""
    names = [name for name, _, _ in rows()]

    assert len(names) == len(set(names))
    assert all(row.source.strip() and row.names.strip() for row in TABLE)


def test_the_page_lists_every_name_with_its_source() -> None:
    """The page lists every masked name with its source."""
    lines = (Path(__file__).parents[2] / "docs" / "redaction.md").read_text("utf-8").splitlines()

    for row in TABLE:
        names = ", ".join(f"`{name.strip().replace(' ', '_')}`" for name in row.names.split(","))
        assert any(line.startswith(f"| {names} | ") and line.endswith(f" | {row.source} |") for line in lines), names


@given(st.sets(st.text("abc._+", min_size=1, max_size=5), min_size=1), st.text("abc._+", max_size=5))
def test_a_pattern_of_words_matches_exactly_the_words(words: set[str], other: str) -> None:
    """The pattern of a group of words matches each of the words completely, and no different text."""
    pattern = re.compile(_any_of(words))

    assert all(pattern.fullmatch(word) for word in words)
    assert bool(pattern.fullmatch(other)) is (other in words)


def test_every_name_of_a_secret_ends_with_one_of_the_searched_words() -> None:
    """The search for labels looks for few words: each secret's name ends with one, and none ends with another one."""
    ends = _ends()

    for name, kind in NAMES.items():
        spelled = name.replace(" ", "_")
        assert kind is Kind.HARMLESS or spelled.endswith(tuple(ends)), name
    assert not [(one, end) for one in ends for end in ends if one != end and one.endswith(end)]
    assert "id" not in ends
    pattern = SecretNames(["X-Tenant"]).pattern
    assert all(re.fullmatch(pattern, end) for end in (*ends, "x-tenant", "x_tenant"))
