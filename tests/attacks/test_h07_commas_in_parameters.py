"""h07: text after a comma in a parameter never becomes a destination."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay import Settings
from otel_token_relay.destinations import Destination, split_entries
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.origin import OriginPattern
from otel_token_relay.relay import Relay
from tests.commands.test_check import run

DESTINATIONS = "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS"


def read(text: str) -> Settings:
    return Settings.from_env({DESTINATIONS: text})


def listed(text: str) -> list[str]:
    return [str(destination) for destination in read(text).entries]


@pytest.mark.parametrize(
    ("text", "expected", "problems"),
    [
        pytest.param("https://g.x;audience=orders.x,billing.x", [], 1, id="two audiences"),
        pytest.param("https://g.x;audience=a,b,c,d", [], 1, id="several words"),
        pytest.param("https://g.x;audience=a, b ,\tc", [], 1, id="surrounding white space"),
        pytest.param("https://g.x;audience=a,,b.x,", [], 1, id="empty items"),
        pytest.param("https://g.x;audience=,b.x", [], 1, id="comma directly after the name"),
        pytest.param("https://g.x;scope=read,write", [], 1, id="two scopes"),
        pytest.param("https://g.x;required,b.x", [], 1, id="parameter without a value"),
        pytest.param("https://g.x;audience=a,b.x;scope=c,d", [], 1, id="parameters in the skipped items"),
        pytest.param("g.x;audience=a,b.x", [], 1, id="no scheme"),
        pytest.param("https://g.x;audience=a,*", [], 1, id="wildcard"),
        pytest.param("https://g.x;audience=a,*.x:*", [], 1, id="wide wildcard"),
        pytest.param("https://g.x;audience=a,localhost:8080", [], 1, id="port"),
        pytest.param("https://g.x;audience=a,//b.x", [], 1, id="omitted scheme"),
        pytest.param("https://g.x;audience=a,x=https://b.x", [], 1, id="scheme later in the item"),
        pytest.param("https://g.x;audience=a,https:b.x", [], 1, id="incomplete scheme"),
        pytest.param(
            "https://g.x;audience=a,ftp://b.x,c.x", ["https://g.x;audience=a"], 1, id="unsupported scheme, then a word"
        ),
        pytest.param("https://g.x;x=1,b.x,https://c.x", ["https://c.x"], 1, id="valid entry after them"),
        pytest.param("https://c.x,https://g.x;scope=a,b", ["https://c.x"], 1, id="valid entry before them"),
        pytest.param("https://c.x,d.x", ["https://c.x", "https://d.x"], 0, id="no parameters, no scheme"),
        pytest.param(
            "c.x;required,HTTPS://d.x", ["https://c.x;required", "https://d.x"], 0, id="parameters and a scheme"
        ),
        pytest.param("https://g.x;audience=a%2Cb.x", ["https://g.x;audience=a%2Cb.x"], 0, id="encoded comma"),
        pytest.param("https://g.x;scope=read write", ["https://g.x;scope=read write"], 0, id="space"),
    ],
)
def test_h07_an_entry_after_parameters_needs_a_scheme(text: str, expected: list[str], problems: int) -> None:
    """After an entry with parameters, an entry without a scheme is skipped with its predecessor as one problem."""
    settings = read(text)

    assert [str(destination) for destination in settings.entries] == expected
    assert len(settings.problems) == problems


SKIPPED = ["https://g.x;audience=orders,billing.x", "https://g.x;required,b", "https://g.x;scope=a,b,c;audience=d,e"]


@pytest.mark.parametrize("text", SKIPPED)
def test_h07_wider_entries_do_not_apply_to_a_skipped_origin(text: str) -> None:
    """No wider entry applies to the origin of a skipped entry."""
    relay = Relay(read(f"https://*,https://*.x,{text}"))

    assert relay.explain("https://g.x/")[0].outcome == "withheld"
    assert relay.explain("https://other.x/")[0].outcome == "relayed"
    if "c;" in text:
        assert relay.explain("https://c/")[0].outcome == "withheld"


@pytest.mark.parametrize("text", SKIPPED)
def test_h07_the_problem_names_the_entry_and_what_to_do(text: str) -> None:
    """One problem reports all skipped items and explains how to encode a comma."""
    settings = read(text)

    assert len(settings.problems) == 1
    assert settings.problems[0].startswith(f"{DESTINATIONS}: the entry '{text}' is skipped: ")
    assert "%2C" in settings.problems[0]
    assert "https://" in settings.problems[0].partition(" is skipped: ")[2]


@pytest.mark.parametrize(
    "text",
    [
        "https://me:hunter2@g.x;audience=a,b",
        "https://g.x;audience=a,me:hunter2@b.x",
        "https://g.x;audience=a,me:hunter2,x@b.x",
        "https://me:hunter2,x@b.x",
        "https://me:pw,hunter2/,x@b.x",
        "https://g.x;audience=a,b,me:hun,ter2@b.x",
        "https://me:hunt,er2@g.x;audience=a,b",
        "https://g.x;audience=a,b,https://me:hunter2@c.x",
    ],
)
def test_h07_no_problem_shows_a_password(text: str) -> None:
    """No problem reveals any part of a password, regardless of where a comma splits the entry."""
    shown = "".join(read(text).problems)

    assert shown
    assert "hunter2" not in shown
    assert "ter2" not in shown
    assert "er2@" not in shown


def test_h07_check_and_explain_report_the_problem() -> None:
    """Both commands report the problem and exit with 1."""
    variables = {"OTEL_PROPAGATORS": "tracecontext,token_relay", DESTINATIONS: SKIPPED[0]}
    status, output = run("check", **variables)
    explained, explanation = run("explain", "https://billing.x/", **variables)

    assert (status, explained) == (1, 1)
    assert "%2C" in output
    assert "destination_not_listed" in explanation


@pytest.mark.parametrize(
    "text", ["https://a;audience=b,c", "https://a,https://b", "https://a;audience=b,https://c", ",", "https://a,"]
)
def test_h07_a_comma_in_code_raises_an_error_about_it(text: str) -> None:
    """In code, an entry that contains a comma raises an error that explains how to encode the comma."""
    with pytest.raises(ConfigurationError, match=r"comma.*%2C") as failure:
        Settings(destinations=["https://first", text])

    assert failure.value.setting == "destinations"


@pytest.mark.parametrize(
    "value",
    [
        "%",
        "%2",
        "%zz",
        "100%",
        "a%2",
        "%%2C",
        "%u002C",
        "%0A",
        "%00",
        "%7F",
        "a\tb",
        "a\x7fb",
        "ü",
        "%C3%BC",
        "%80",
        "\udc80",
    ],
)
def test_h07_an_entry_with_an_invalid_value_is_skipped(value: str) -> None:
    """An entry with an invalid value is skipped, and no wider entry applies to its origin."""
    settings = read(f"https://*.x,https://g.x;audience={value}")

    assert listed(f"https://g.x;audience={value}") == []
    assert len(settings.problems) == 1
    assert Relay(settings).explain("https://g.x/")[0].outcome == "withheld"
    with pytest.raises(ConfigurationError):
        Settings(destinations=[f"https://g.x;audience={value}"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a%2Cb", "a,b"),
        ("a%3bb", "a;b"),
        ("100%25", "100%"),
        ("%252C", "%2C"),
        ("%20a b%20", " a b "),
        ("a=b", "a=b"),
        ("https://b.x/?q=1#f", "https://b.x/?q=1#f"),
        ("a+b", "a+b"),
    ],
)
def test_h07_values_are_percent_decoded_once(text: str, value: str) -> None:
    """A parameter's value is percent-decoded, and a plus sign is kept."""
    assert Destination.parse(f"https://a;resource={text}").resource == value


printable = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1)


@given(st.booleans(), *[st.none() | printable] * 3)
def test_h07_a_destination_round_trips(
    required: bool, audience: str | None, scope: str | None, resource: str | None
) -> None:
    """The text of a destination parses to an equal destination, both alone and in a list."""
    one = Destination(OriginPattern.parse("https://a"), required, audience, scope, resource)
    other = Destination.parse("https://b")

    assert Destination.parse(str(one)) == one
    assert read(f"{one},{other}").entries == (one, other)
    assert read(f"{other},{one}").entries == (other, one)


@pytest.mark.parametrize("value", ["", "ü", "a\nb", "\x7f"])
def test_h07_a_value_that_cannot_be_written_as_text_is_rejected_in_code(value: str) -> None:
    """In code, a value that is not printable ASCII is rejected, because `str` could not represent it."""
    with pytest.raises(ValueError, match="printable ASCII"):
        Destination(OriginPattern.parse("https://a"), scope=value)


has_scheme = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://").match
pieces = st.sampled_from(
    [
        ",",
        ";",
        "=",
        "%2C",
        "%",
        " ",
        "a",
        "b.x",
        "*",
        "*.x",
        ":*",
        ":80",
        "https://",
        "http://c",
        "ftp://",
        "//",
        "@",
        "required",
    ]
)
values = st.lists(pieces | st.text(max_size=3), max_size=12).map("".join)


@given(values, st.sampled_from(["audience", "scope", "resource"]), st.sampled_from(["", "https://first,", "first,"]))
def test_h07_no_value_lists_an_origin(value: str, name: str, before: str) -> None:
    """For any value, an item becomes a destination only if it has a scheme or follows an entry without parameters."""
    text = f"{before}https://g.x;{name}={value}"
    items = [item for item in map(str.strip, text.split(",")) if item]
    allowed = set()
    for number, item in enumerate(items):
        if has_scheme(item) or number == 0 or ";" not in items[number - 1]:
            try:
                allowed.add(OriginPattern.parse(item.partition(";")[0].strip()))
            except ValueError:
                continue

    settings = read(text)

    assert {destination.pattern for destination in settings.entries} <= allowed
    # An item directly after the entry with the value is listed only if the item has its own scheme.
    start = next(number for number, item in enumerate(items) if item.startswith("https://g.x;"))
    run = []
    for item in items[start + 1 :]:
        if has_scheme(item):
            break
        run.append(item)
    if run:
        assert all(
            destination.pattern.host != "g.x" or destination.pattern.port != 443 for destination in settings.entries
        )
        assert settings.problems


@given(st.text())
def test_h07_splitting_loses_nothing(text: str) -> None:
    """Splitting a list into entries keeps every item in order."""
    items = [item for item in map(str.strip, text.split(",")) if item]

    assert [item for entry in split_entries(text) for item in entry.split(",")] == items
