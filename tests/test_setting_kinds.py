"""Each kind of setting can be read from text and from a value in a file."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from otel_token_relay.destinations import Destination
from otel_token_relay.setting_kinds import COUNT, ENTRIES, FLAG, NUMBER, TEXT, WORDS, Kind, choice, is_off

MODE = choice("off", "report")


@pytest.mark.parametrize(
    ("kind", "value", "read"),
    [
        (TEXT, " a b ", "a b"),
        (WORDS, "a, b,,", ("a", "b")),
        (WORDS, ["a", " b "], ("a", "b")),
        (WORDS, [], ()),
        (NUMBER, "0.5", 0.5),
        (NUMBER, 5, 5.0),
        (NUMBER, 1e3, 1000.0),
        (COUNT, "5", 5),
        (COUNT, 5, 5),
        (FLAG, "Yes", True),
        (FLAG, "0", False),
        (FLAG, False, False),
        (MODE, "report", "report"),
        (MODE, False, "off"),
        (ENTRIES, "https://a, https://b", ("https://a", "https://b")),
        (ENTRIES, ["https://a;required", {"origin": " b "}], ("https://a;required", "b")),
        (ENTRIES, [{"origin": "b", "required": True, "never": False, "scope": None}], ("b;required",)),
        (ENTRIES, [{"origin": "b", "audience": "x, y;%"}], ("b;audience=x%2C%20y%3B%25",)),
    ],
)
def test_each_form_is_read(kind: Kind, value: Any, read: Any) -> None:
    """Each valid form of a setting is read, and text is read as in an environment variable."""
    assert kind.read_any(value) == read
    assert type(kind.read_any(value)) is type(read)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (TEXT, 1, "expected text"),
        (WORDS, {"a": 1}, "expected a list"),
        (WORDS, ["a", 1], "expected text for item 1"),
        (WORDS, ["a", " "], "expected text for item 1"),
        (NUMBER, True, "expected a number of seconds"),
        (NUMBER, "1_000", "expected a number of seconds"),
        (NUMBER, float("nan"), "expected a number of seconds"),
        (NUMBER, [], "expected a number of seconds"),
        (COUNT, True, "expected a whole number"),
        (COUNT, 1.5, "expected a whole number"),
        (COUNT, -1, "expected a whole number"),
        (COUNT, 10**12, "expected a whole number"),
        (FLAG, 1, "expected true or false"),
        (FLAG, "maybe", "expected true or false"),
        (MODE, True, "expected one of off, report"),
        (choice("", "a", "b"), False, "expected one of a, b"),
        (ENTRIES, {"origin": "https://a"}, "expected a list"),
        (ENTRIES, [1], "expected text or a mapping for item 0"),
        (ENTRIES, ["a", {}], "for origin in item 1"),
        (ENTRIES, [{"origin": "a;required"}], "for origin in item 0"),
        (ENTRIES, [{"origin": "a,b"}], "for origin in item 0"),
        (ENTRIES, [{"origin": "a", "required": "yes"}], "expected true or false for required in item 0"),
        (ENTRIES, [{"origin": "a", "audience": 1}], "expected text for audience in item 0"),
        (ENTRIES, [{"origin": "a", "hue\x1b": 1}], r"unknown key 'hue\x1b' in item 0"),
    ],
)
def test_each_other_form_is_refused(kind: Kind, value: Any, message: str) -> None:
    """The message about an invalid value states the expected form and the location."""
    with pytest.raises(ValueError, match=r"\A") as refused:
        kind.read_any(value)
    assert message in str(refused.value)


def test_every_parameter_of_a_destination_is_a_key_in_the_file() -> None:
    """Every destination parameter is a key in the file, so a file can express each entry."""
    (_, items) = ENTRIES.schema["oneOf"]  # type: ignore[misc]
    (_, mapping) = items["items"]["oneOf"]
    names = {field.name for field in fields(Destination) if field.init} - {"pattern"}

    assert set(mapping["properties"]) - {"origin"} >= names


@pytest.mark.parametrize("value", [None, "", " ", "off", "OFF", False, "no", 0, "0"], ids=repr)
def test_what_is_off(value: Any) -> None:
    """These values disable protection."""
    assert is_off(value)


@pytest.mark.parametrize("value", [True, "report", 1, "enforce", "nope", []])
def test_what_is_not_off(value: Any) -> None:
    """Any other value might be intended to enable protection."""
    assert not is_off(value)
