"""The message about a mistyped entry describes the mistake and hides secrets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay import Settings
from otel_token_relay.destinations import split_entries
from otel_token_relay.entry_mistakes import describe, hide_user_info, origins_of

DESTINATIONS = "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS"

# Each mistyped entry with the words that its message contains.
MISTYPED = [
    # Quotation marks and brackets
    ('"https://a"', ["unexpected character '\"'", "write https://a"]),
    ("'https://a'", ['unexpected character "\'"', "write https://a"]),
    ("`https://a`", ['"`"', "write https://a"]),
    ("\u201chttps://a\u201d", ["\\u201c", "write https://a"]),
    ('["https://a"]', ['"["', "write https://a"]),
    ("<https://a>", ['"<", ">"', "write https://a"]),
    # Separators
    ("https://a|https://b", ['unexpected character "|"', "write https://a,https://b"]),
    ("a | b", ['unexpected character "|"', "https://a,https://b"]),
    ("https://a;https://b", ['unexpected character ";"', "write https://a,https://b"]),
    ("https://a;required;https://b;required", ['";"', "write https://a;required,https://b;required"]),
    ("https://a;b.internal:8443", ['";"', "write https://a,https://b.internal:8443"]),
    ("https://a;required|https://b", ['"|"', "write https://a;required,https://b"]),
    ("https://a https://b", ["unexpected blank", "write https://a,https://b"]),
    ("https://a\nhttps://b", ["unexpected line break", "write https://a,https://b"]),
    ("https://a\r\nhttps://b", ["unexpected line break", "write https://a,https://b"]),
    ("https://a\thttps://b", ["unexpected tab", "write https://a,https://b"]),
    ("https://a&https://b", ['"&"', "write https://a,https://b"]),
    ("https://a;required,b", ["comma", "write https://a;required,https://b"]),
    ("https://a;audience=b,c", ["%2C", "https://a;audience=b%2Cc or https://a;audience=b,https://c"]),
    ("https://a,never", ["never is a parameter", "write https://a;never"]),
    ("https://a never", ["never is a parameter", "write https://a;never"]),
    # Blanks
    ("https:// a", ["unexpected blank", "write https://a"]),
    ("https://a :8443", ["unexpected blank", "write https://a:8443"]),
    # Schemes
    ("grpc://a:50051", ["grpc", "with TLS", "write https://a:50051 or http://a:50051"]),
    ("grpcs://a:50051", ["grpcs", "write https://a:50051"]),
    ("dns:///a:50051", ["gRPC target", "write https://a:50051 or http://a:50051"]),
    ("dns:a", ["gRPC target", "write https://a:443 or http://a:443"]),
    ("ipv4:10.0.0.1:50051", ["gRPC target", "https://10.0.0.1:50051"]),
    ("unix:/run/a.sock", ["unix", "never get a token"]),
    ("wss://a", ["must be https", "write https://a"]),
    ("htps://a", ['"htps"', "did you mean https://a?"]),
    ("ftp://a", ["must be http or https", '"ftp"']),
    ("*://a", ['"*"', "https://a or http://a"]),
    ("https:/a", ['expected "https://"', "write https://a"]),
    ("https:a", ['expected "https://"', "write https://a"]),
    ("https//a", ['expected "https://"', "write https://a"]),
    ("http:///a", ['expected "http://"', "write http://a"]),
    ("//a", ['expected "https://"', "write https://a"]),
    (r"https:\\a", [r'unexpected character "\"', "write https://a"]),
    # Ports
    ("https://a:http", ['the port "http"', "did you mean https://a:80?"]),
    ("https://a:8o80", ['the port "8o80" is not a number']),
    ("https://a:0", ['the port "0"', "between 1 and 65535"]),
    ("https://a:70000", ['the port "70000"', "between 1 and 65535"]),
    ("https://a:80-90", ['the port "80-90"', "one entry for each port"]),
    ("https://a:", ["the port", "missing", "write https://a"]),
    ("https://[::1]:http", ['the port "http"', "https://[::1]:80"]),
    # Hosts
    ("https://", ["the host is missing"]),
    (":8080", ["the host is missing"]),
    ("https://a*.b", ["*", "first label"]),
    ("https://*a.b", ["first label", "did you mean https://*.a.b?"]),
    ("https://*.*.b", ["first label", "did you mean https://*.b?"]),
    ("http://*.", ["the domain after *. is missing"]),
    ("https://.a.b", ["must not start with a dot", "did you mean https://*.a.b?"]),
    (r"https://.*\.a\.b", ["not a regular expression", "did you mean https://*.a.b?"]),
    ("^https://a$", ['"^", "$"', "write https://a"]),
    ("https://::1", ["brackets", "write https://[::1]"]),
    ("https://[::1", ["brackets", "write https://[::1]"]),
    ("https://127.1", ['"127.1"', "canonical"]),
    ("https://a..b", ['"a..b"', "host name"]),
    ("https://10.0.0.0/8", ['"/8"', "ranges are not supported"]),
    ("https://${HOST}", ['"${HOST}"', "not been replaced"]),
    ("https://$(HOST):80", ['"$(HOST)"', "not been replaced"]),
    ("https://a%2Eb", ['unexpected character "%"']),
    # Paths and user info
    ("https://a/api", ['unexpected characters "/api"', "write https://a"]),
    ("https://a/", ['unexpected character "/"', "write https://a"]),
    ("https://a?x=1", ['unexpected characters "?x=1"', "write https://a"]),
    ("https://user:pw@a", ["user name or password", "write https://a"]),
    # Parameters
    ("https://a;require", ["unknown parameter ;require", "did you mean https://a;required?"]),
    ("https://a;Required", ["unknown parameter ;Required", "did you mean https://a;required?"]),
    ("https://a;required=true", [";required does not accept a value", "write https://a;required"]),
    ("https://a;nevr", ["unknown parameter ;nevr", "did you mean https://a;never?"]),
    ("https://a;aud=b", ["unknown parameter ;aud", "did you mean https://a;audience=b?"]),
    ("https://a;scopes=b", ["unknown parameter ;scopes", "did you mean https://a;scope=b?"]),
    ("https://a;x", ["unknown parameter ;x", "expected ;required"]),
    ("https://a;", ['unexpected character ";"', "write https://a"]),
    ("https://a;never;required", [";never", "other parameters"]),
    ("DESTINATIONS=https://a", ['"DESTINATIONS="', "write https://a"]),
]


@pytest.mark.parametrize(("entry", "words"), MISTYPED, ids=[ascii(entry)[1:-1] for entry, _ in MISTYPED])
def test_the_message_names_the_mistake_and_what_to_write(entry: str, words: list[str]) -> None:
    """The message about a skipped entry is one ASCII sentence that describes the mistake and the correct entry."""
    settings = Settings.from_env({DESTINATIONS: entry})

    (problem,) = settings.problems
    assert settings.entries == ()
    assert [word for word in words if word not in problem] == []
    assert problem.isascii()
    assert "\n" not in problem


@pytest.mark.parametrize("entry", [entry for entry, _ in MISTYPED], ids=ascii)
def test_the_proposal_is_valid(entry: str) -> None:
    """The entry that the message suggests is valid."""
    (problem,) = Settings.from_env({DESTINATIONS: entry}).problems
    for verb in ("; write https", "; write http:", "; did you mean "):
        if verb in problem:
            proposals = problem.rpartition(verb.removesuffix("https").removesuffix("http:"))[2].removesuffix("?")
            for proposal in proposals.split(" or "):
                assert Settings.from_env({DESTINATIONS: proposal}).problems == ()
                assert Settings.from_env({DESTINATIONS: proposal}).entries


@pytest.mark.parametrize(
    "text",
    [
        "https://a:http",
        "https:/a",
        '"https://a"',
        "localhost:http",
        "https://g.x;resource=urn:a,b",
        "https://g.x;audience=api@b;x",
        "https://a:8o80;required",
        "grpc://a:50051",
        "https://a,https:b,https://me:pw@c",
    ],
)
def test_only_user_info_is_masked(text: str) -> None:
    """The message masks only the entry's user info."""
    first = Settings.from_env({DESTINATIONS: text}).problems[0]

    assert "***" not in first
    assert repr(text.replace("https://a,https:b,https://me:pw@c", "https:b")) in first


@pytest.mark.parametrize(
    ("entry", "shown"),
    [
        ("https://me:pw@a", "https://***@a"),
        ("me:pw@a", "***@a"),
        ("https://me:p@w@a", "https://***@a"),
        ("https://me:p/w@a/x", "https://***@a/x"),
        ("https://me:p;w@a", "https://***@a"),
        ("https://a;audience=x@y", "https://a;audience=x@y"),
        ("https://a;audience=b,me:pw@c", "https://***@c"),
        ("https://a;resource=https://me:pw@b", "https://***@b"),
        ("https://me:pw@a;audience=x@y", "https://***@y"),
    ],
)
def test_user_info_is_masked(entry: str, shown: str) -> None:
    """User info is masked even if the password contains characters that should be encoded."""
    assert hide_user_info(entry) == shown


PIECES = st.sampled_from(
    [
        *",;=% @|\n\"'[]\\?${}(.^#&",
        *("%2C", "a", "b.x", "*", "*.x", ":*", ":80", "ftp://", "//", "grpc://", "dns:///", "::1"),
        *("required", "requird", "never", "scope="),
    ]
)
TEXT = st.lists(PIECES | st.text(max_size=3), max_size=10).map("".join)


@given(st.sampled_from(["http://", "https://", "grpc://", "x://"]), TEXT, TEXT, TEXT, TEXT)
def test_no_message_contains_user_info(scheme: str, before: str, after: str, prefix: str, suffix: str) -> None:
    """No message contains user info, regardless of the commas and delimiters that split the entry."""
    text = f"{prefix}{scheme}user:{before}s3cret{after}@host.example{suffix}"

    assert "s3cret" not in "".join(Settings.from_env({DESTINATIONS: text}).problems)


@given(TEXT)
def test_any_text_can_be_described(text: str) -> None:
    """Any text can be described without raising an error, even text that the parser accepts."""
    for entry in (text, *split_entries(text)):
        assert describe(entry, "problem", lambda _: True)
        assert all(pattern.scheme in ("http", "https") for pattern in origins_of(entry))


@given(TEXT)
def test_a_message_is_short(text: str) -> None:
    """The message is short even for a very long value that was pasted by mistake."""
    for problem in Settings.from_env({DESTINATIONS: text * 100}).problems:
        assert len(problem) < 6000
