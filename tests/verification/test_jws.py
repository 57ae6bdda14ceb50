"""Compact JWSs and their JSON are parsed strictly."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.errors import TokenRejected
from otel_token_relay.verification.jws import (
    MAX_DEPTH,
    MAX_INTEGER_DIGITS,
    Jws,
    copy_json,
    has_control_character,
    looks_like_jws,
    parse_jws,
    parse_object,
)
from tests.support.json_values import json_values
from tests.support.tokens import b64

HEADER = b64({"alg": "RS256", "typ": "at+jwt", "kid": "k1"})
PAYLOAD = b64({"sub": "alice"})


@given(data=st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_strict_json_never_says_other_than_json(data: bytes) -> None:
    """The standard parser reads every text that the strict parser accepts in the same way."""
    try:
        value = parse_object(data)
    except ValueError:
        return
    assert value == json.loads(data)


@given(text=st.text())
def test_reading_a_token_agrees_with_itself(text: str) -> None:
    """Every text that can be parsed as a JWS is recognized as one."""
    try:
        parse_jws(text, max_length=16384)
    except TokenRejected:
        return
    assert looks_like_jws(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("{}", {}, id="empty"),
        pytest.param('{"a": [1, -0.5, 1e10, true, null]}', {"a": [1, -0.5, 1e10, True, None]}, id="every kind"),
        pytest.param(' {"a" :\t"é\\u00e9"}\n', {"a": "éé"}, id="white space, UTF-8 and an escape"),
        pytest.param('{"a": {"a": 1}}', {"a": {"a": 1}}, id="one name at two levels"),
        pytest.param('{"a": "\\ud83c\\udf88"}', {"a": "🎈"}, id="a pair of surrogates"),
        pytest.param('{"a": "' + "[{" * 100 + '"}', {"a": "[{" * 100}, id="brackets in a text are not nested"),
        pytest.param('{"a": "\\"' + "[" * 100 + '"}', {"a": '"' + "[" * 100}, id="brackets after an escaped quote"),
        pytest.param('{"a": [' + "[]," * 100 + "[]]}", {"a": [[]] * 101}, id="many brackets beside each other"),
        pytest.param(
            '{"a": ' + "9" * MAX_INTEGER_DIGITS + "}", {"a": 10**MAX_INTEGER_DIGITS - 1}, id="the longest integer"
        ),
    ],
)
def test_a_json_object_is_parsed(text: str, expected: object) -> None:
    """Valid JSON has the same meaning as with any other parser."""
    assert parse_object(text.encode()) == expected


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        pytest.param(b"", "not JSON", id="empty"),
        pytest.param(b'{"sub": "alice", "sub": "admin"}', "duplicate member name", id="a name twice"),
        pytest.param(
            b'{"a": {"sub": 1, "s\\u0075b": 2}}', "duplicate member name", id="a name twice, one with an escape"
        ),
        pytest.param(b'{"a": NaN}', "NaN and Infinity are not valid JSON", id="NaN"),
        pytest.param(b'{"a": -Infinity}', "NaN and Infinity are not valid JSON", id="infinite"),
        pytest.param(b'{"a": 1e400}', "a number must not exceed the range of a double", id="beyond a double"),
        pytest.param(
            b'{"a": ' + b"9" * (MAX_INTEGER_DIGITS + 1) + b"}",
            "an integer must not have more than 20 digits",
            id="an integer that is too long",
        ),
        pytest.param(
            b'{"a": ' + b"9" * 10_000 + b"}",
            "an integer must not have more than 20 digits",
            id="an integer that Python itself does not parse",
        ),
        pytest.param(b'{"a": "\\ud800"}', "unpaired surrogate", id="a lone surrogate"),
        pytest.param(b'\xef\xbb\xbf{"a": 1}', "not JSON", id="a byte order mark"),
        pytest.param('{"a": 1}'.encode("utf-16"), "not UTF-8", id="UTF-16"),
        pytest.param(b'{"a": "\xe9"}', "not UTF-8", id="Latin-1"),
        pytest.param(b'{"a": 1} {}', "not JSON", id="two objects"),
        pytest.param(b'{"a": "' + b'\\"' * 5000, "not JSON", id="an open text full of escaped quotes"),
        pytest.param(b'["alice"]', "not a JSON object", id="a list"),
        pytest.param(b'"alice"', "not a JSON object", id="a text"),
        pytest.param(b"null", "not a JSON object", id="null"),
    ],
)
def test_other_json_is_rejected_without_being_quoted(data: bytes, problem: str) -> None:
    """Ambiguous JSON is rejected without being quoted in the message."""
    with pytest.raises(ValueError) as rejected:  # noqa: PT011  # the whole message is compared below
        parse_object(data)

    assert str(rejected.value) == problem
    assert rejected.value.__cause__ is None


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_depth_is_limited(opening: str) -> None:
    """The depth of nesting is limited, and the object itself is the first level."""
    closing = "]" if opening == "[" else "}"

    def nested(depth: int) -> bytes:
        inner = depth - 1
        return ('{"x":' + opening * inner + ("1" if opening != "[" else "") + closing * inner + "}").encode()

    assert "x" in parse_object(nested(MAX_DEPTH))
    for depth in (MAX_DEPTH + 1, 100_000):
        with pytest.raises(ValueError, match="nested more than 32 levels deep"):
            parse_object(nested(depth))


def test_a_jws_is_divided_into_its_parts() -> None:
    """A JWS is split into its parts, and the signing input is the exact text before the second dot."""
    token = f"{HEADER}.{PAYLOAD}.{b64(bytes(range(250, 256)))}"

    assert parse_jws(token, max_length=len(token)) == Jws(
        header={"alg": "RS256", "typ": "at+jwt", "kid": "k1"},
        claims={"sub": "alice"},
        signing_input=f"{HEADER}.{PAYLOAD}".encode(),
        signature=bytes(range(250, 256)),
    )
    with pytest.raises(TokenRejected, match="too_long"):
        parse_jws(token, max_length=len(token) - 1)


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("", id="empty"),
        pytest.param(None, id="no text"),
        pytest.param("2YotnFZFEjr1zCsicMWpAA", id="opaque"),
        pytest.param(f"{HEADER}.{PAYLOAD}", id="two parts"),
        pytest.param(f"{HEADER}.{PAYLOAD}.", id="no signature"),
        pytest.param(f"{HEADER}.{PAYLOAD}.AAAA.AAAA", id="four parts"),
        pytest.param(f"{HEADER}.{PAYLOAD}.AA==", id="padding"),
        pytest.param(f"{HEADER}.{PAYLOAD}.AA+/", id="base64 instead of base64url"),
        pytest.param(f"{HEADER}.{PAYLOAD}.AAAA\n", id="line break"),
        pytest.param(f"{HEADER}.{PAYLOAD}.AAAAA", id="impossible length"),
        pytest.param(f"{HEADER}.{PAYLOAD}.AB", id="four unused bits"),
        pytest.param(f"{HEADER}.{PAYLOAD}.AAB", id="two unused bits"),
        pytest.param(f"{HEADER}.{b64('[]')}.AAAA", id="payload a list"),
        pytest.param(f"{b64('null')}.{PAYLOAD}.AAAA", id="header null"),
    ],
)
def test_another_text_is_malformed(token: str) -> None:
    """Each token has exactly one spelling, and any other text raises the same error."""
    with pytest.raises(TokenRejected) as rejected:
        parse_jws(token, max_length=16384)

    assert rejected.value.reason == "malformed"
    assert rejected.value.__cause__ is None


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        pytest.param({"alg": "RS256"}, None, id="the least"),
        pytest.param({"alg": "RS256", "jku": "https://evil.example", "jwk": {}}, None, id="keys that are not read"),
        pytest.param({}, "algorithm_not_allowed", id="no alg"),
        pytest.param({"alg": None}, "algorithm_not_allowed", id="alg null"),
        pytest.param({"alg": ["RS256"]}, "algorithm_not_allowed", id="alg a list"),
        pytest.param({"alg": "RS256", "crit": []}, "malformed", id="crit empty"),
        pytest.param({"alg": "RS256", "crit": ["exp"], "exp": 1}, "malformed", id="crit"),
        pytest.param({"alg": "RS256", "b64": False}, "malformed", id="b64"),
        pytest.param({"alg": "RS256", "kid": ""}, "malformed", id="kid empty"),
        pytest.param({"alg": "RS256", "kid": 1}, "malformed", id="kid a number"),
        pytest.param({"alg": "RS256", "kid": "k\n1"}, "malformed", id="kid of two lines"),
        pytest.param({"alg": "RS256", "typ": None}, "malformed", id="typ null"),
        pytest.param({"alg": "RS256", "typ": ["at+jwt"]}, "malformed", id="typ a list"),
    ],
)
def test_the_header_is_checked(header: dict[str, object], reason: str | None) -> None:
    """The header must not contain extensions, and its members must have the types that the RFC requires."""
    token = f"{b64(header)}.{PAYLOAD}.AAAA"
    if reason is None:
        assert parse_jws(token, max_length=16384).header == header
        return

    with pytest.raises(TokenRejected) as rejected:
        parse_jws(token, max_length=16384)
    assert rejected.value.reason == reason


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (f"{HEADER}.AAAA.AAAA", True),
        (f"{b64({'alg': None})}.AAAA.AAAA", True),
        (f"{b64({'typ': 'at+jwt'})}.AAAA.AAAA", False),
        (f"{b64('[1]')}.AAAA.AAAA", False),
        ("AAAAA.AAAA.AAAA", False),
        ("opaque", False),
        ("a.b", False),
        ("", False),
    ],
)
def test_a_jws_is_recognized_by_its_header(token: str, expected: bool) -> None:
    """A JWS is recognized by its header, and an opaque token with dots is introspected."""
    assert looks_like_jws(token) is expected


@pytest.mark.parametrize("character", ["\0", "\n", "\r", "\x1f", "\x7f", "\x85", "\x9f", "\u2028", "\u2029"], ids=ascii)
def test_a_line_break_or_control_character_is_found(character: str) -> None:
    """A line break or control character, which could split a value into two log lines, is found."""
    assert has_control_character(f"a{character}b")
    assert not has_control_character("Åsa ~ 漢字 \u2027\u202a\xa0")


def test_a_copy_shares_no_list_and_no_object() -> None:
    """Changes to a copy at any depth leave the original unchanged."""
    original = {"roles": ["reader", {"on": ["a"]}], "n": None, "sub": "alice"}
    copied = copy_json(original)
    assert copied == original

    copied["roles"][1]["on"].append("b")
    copied["roles"].append("admin")
    assert original == {"roles": ["reader", {"on": ["a"]}], "n": None, "sub": "alice"}
