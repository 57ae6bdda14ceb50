"""Each entry in the list of destinations has parameters, and a skipped entry excludes its origins from wider
entries.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay import Settings
from otel_token_relay.destinations import Destination, read_destinations, split_entries
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.origin import Origin, OriginPattern
from otel_token_relay.policy import RelayPolicy

DESTINATIONS = "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS"


def relayed(text: str, *urls: str) -> list[str]:
    """Return the URLs that get the token with this list."""
    settings = Settings.from_env({DESTINATIONS: text})
    return matched(RelayPolicy(settings.entries, settings.refused), *urls)


def matched(policy: RelayPolicy, *urls: str) -> list[str]:
    """Return the URLs that get the token with this policy."""
    origins = {url: Origin.parse(url) for url in urls}
    return [url for url, origin in origins.items() if origin is not None and policy.match(origin) is not None]


@pytest.mark.parametrize(
    ("entry", "shown"),
    [
        ("https://a ; required", "https://a;required"),
        ("https://a;audience=b;scope=c d;resource=e", "https://a;audience=b;scope=c d;resource=e"),
        ("a ;never", "https://a;never"),
        ("http://*.a.b:*;never", "http://*.a.b:*;never"),
    ],
)
def test_parameters_are_read(entry: str, shown: str) -> None:
    """Parameters are read without the surrounding white space, and the entry's text parses to an equal entry."""
    assert str(Destination.parse(entry)) == shown
    assert Destination.parse(shown) == Destination.parse(entry)


@pytest.mark.parametrize(
    "entry",
    [
        "https://a;",
        "https://a;x",
        "https://a;required=yes",
        "https://a;audience",
        "https://a;audience=",
        "https://a;required;required",
        "https://a;never;never",
        "https://a;never=",
        "https://a;never=true",
        "https://a;never;required",
        "https://a;audience=b;never",
    ],
)
def test_an_invalid_parameter_makes_the_entry_invalid(entry: str) -> None:
    """An invalid parameter makes the entry invalid, so a misspelled `required` does not result in a plain entry."""
    with pytest.raises(ValueError, match=r";|parameter"):
        Destination.parse(entry)


@pytest.mark.parametrize("other", [{"required": True}, {"audience": "b"}, {"scope": "b"}, {"resource": "b"}], ids=str)
def test_never_excludes_other_parameters_in_code(other: dict[str, str]) -> None:
    """In code, an entry with `never` rejects other parameters, which would have no effect."""
    with pytest.raises(ValueError, match=";never"):
        Destination(OriginPattern.parse("https://a"), never=True, **other)  # type: ignore[arg-type]


def test_never_is_not_a_problem_and_causes_no_warning() -> None:
    """An entry with `never` is deliberate, so it is not reported and causes no warning."""
    settings = Settings.from_env({DESTINATIONS: "http://a;never,https://*;never,https://b;never"})

    assert [str(entry) for entry in settings.entries] == ["http://a;never", "https://*;never", "https://b;never"]
    assert (settings.problems, settings.warnings, settings.refused) == ((), (), ())


def test_never_contradicts_another_entry_for_the_same_origin() -> None:
    """If `never` contradicts a second entry for the same origin, the origin gets no token."""
    assert relayed("https://*,https://a,https://a;never", "https://a", "https://b") == ["https://b"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("https://a,never", id="comma before the parameter"),
        pytest.param("https://a, required", id="comma and blank before the parameter"),
        pytest.param("https://a,;never", id="comma and semicolon"),
        pytest.param("https://a,audience=b", id="comma before a parameter with a value"),
        pytest.param("https://a,audiance = b", id="misspelled"),
        pytest.param("https://a,required;scope=b", id="two parameters"),
    ],
)
def test_a_parameter_after_a_comma_belongs_to_its_entry(text: str) -> None:
    """A parameter after a comma belongs to the preceding entry, which does not apply without its parameter."""
    settings = Settings.from_env({DESTINATIONS: f"https://*,{text}"})

    assert [str(entry) for entry in settings.entries] == ["https://*"]
    assert len(settings.problems) == 1
    assert "https://a;" in settings.problems[0].partition("is skipped")[2]
    assert relayed(f"https://*,{text}", "https://a", "https://b") == ["https://b"]


@pytest.mark.parametrize(
    "entry",
    [
        '"https://a.x;never"',
        "'https://a.x;never",
        "https://a.x;nevr",
        "https://a.x;deny",
        "https://a.x never",
        "https://a.x%3Bnever",
        "https://a.x/api;never",
        "https:/a.x;never",
        "https//a.x;never",
        "//a.x;never",
        "https:\\\\a.x;never",
        "htps://a.x;never",
        "grpcs://a.x;never",
        "grpc://a.x;never",
        "foo://a.x;never",
        "https://a.x:443x;never",
        "https://a.x:0;never",
        "https://a.x:;never",
        "https://me:pw@a.x;never",
        "https://b.x|https://a.x;never",
        "https://b.x https://a.x;never",
        "https://b.x\nhttps://a.x;never",
        "https://b.x;https://a.x;never",
        "https://b.x;required;a.x:443;never",
        "https://a*.x;never",
        "https://*.*.x;never",
        "https://.x;never",
        r"https://.*\.x;never",
        "[https://a.x;never]",
        "DESTINATIONS=https://a.x;never",
    ],
)
@pytest.mark.parametrize("wider", ["https://*.x", "https://*", "https://*:*"])
def test_a_wider_entry_does_not_cover_the_origin_of_a_mistyped_entry(entry: str, wider: str) -> None:
    """A wider entry does not cover the origin of a mistyped, stricter entry."""
    assert relayed(f"{wider},{entry}", "https://a.x", "https://other.y") in ([], ["https://other.y"])
    assert relayed(wider, "https://a.x") == ["https://a.x"]


def test_an_entry_before_what_looks_like_user_info_is_refused_too() -> None:
    """If a stray @ makes a preceding entry look like user info, that entry's origin is excluded too."""
    assert relayed("https://*,a;never,@b.x", "https://a", "https://b.x", "https://c") == ["https://c"]


def test_a_skipped_plain_entry_takes_its_origin_only_from_wider_entries() -> None:
    """A skipped plain entry excludes its origin only from wider entries, not from a valid entry for the same origin."""
    text = "https://*,https://a/api,https://a,https://b/api"

    assert relayed(text, "https://a", "https://b", "https://c") == ["https://a", "https://c"]
    assert relayed("https://a,https://a/api;required", "https://a") == []


PIECES = st.sampled_from(
    [
        *",;=% @|\n\"'[]\\?${}(.^#&",
        "%2C",
        "a",
        "b.x",
        "*",
        "*.x",
        ":*",
        ":80",
        ":http",
        "https://",
        "http://c",
        "ftp://",
        "//",
        "grpc://",
        "dns:///",
        "::1",
        "required",
        "requird",
        "never",
        "audience=",
        "scope=",
    ]
)
ENTRIES = st.lists(PIECES | st.text(max_size=3), max_size=14).map("".join)
GOOD = st.lists(st.sampled_from(["https://*", "https://*.x", "https://b.x", "a;required", "http://c", "http://*:*"]))
URLS = ("https://a", "https://b.x", "https://a.b.x", "http://c", "https://c", "http://a:80", "https://b.x:8443")


def is_invalid(entry: str) -> bool:
    try:
        Destination.parse(entry)
    except ValueError:
        return True
    return False


@given(GOOD, ENTRIES, GOOD)
def test_a_skipped_entry_never_widens_the_list(before: list[str], text: str, after: list[str]) -> None:
    """A mistyped entry never gives a token to an origin that would not get one without the entry."""
    if not all(map(is_invalid, split_entries(text))):
        return
    with_text = relayed(",".join([*before, text, *after]), *URLS)

    # The other entries are parsed individually, because two of them can form one invalid entry in a variable.
    without_text = RelayPolicy(read_destinations([*before, *after], lambda *_: None))

    assert set(with_text) <= set(matched(without_text, *URLS))


@given(ENTRIES)
def test_any_text_is_read_or_skipped(text: str) -> None:
    """Any text becomes a listed entry or is mentioned in a problem, without an error."""
    settings = Settings.from_env({DESTINATIONS: text})

    assert len(settings.entries) + len(settings.problems) >= bool(split_entries(text))
    assert all(Destination.parse(str(entry)) == entry for entry in settings.entries)


def test_an_entry_that_is_dropped_because_of_another_is_in_the_error() -> None:
    """In code, the error for the first invalid entry also mentions an entry that was dropped because of it."""
    with pytest.raises(ConfigurationError, match=r"did you mean https://a;required\?"):
        Settings(destinations=["https://a;require"])


@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "Bearer {}",
        "https://{}",
        "https://a/?token={}",
        "https://a;{}",
        "https://a;{}=1",
        "https://a:{}",
        "https://a;audience={}",
    ],
)
def test_a_token_in_an_entry_is_masked(form: str) -> None:
    """A token that was set as an entry by mistake is masked."""
    token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlc2lnbmF0dXJl"
    problems: list[str] = []

    assert read_destinations([form.format(token)], lambda _, problem: problems.append(problem)) == ()
    with pytest.raises(ValueError, match=r"\A") as refused:
        Destination.parse(form.format(token))
    assert "***" in problems[0]
    assert "eyJ" not in problems[0] + str(refused.value)


@pytest.mark.parametrize(
    "skipped",
    [
        'https://"pay.internal;never',
        "https://pay.internal!;never",
        "https://pay.internal..;never",
        "https://[pay.internal];never",
        "https://pay%2Einternal;never",
        "https;//pay.internal;never",
        "-https://pay.internal;never",
        "h:tps://pay.internal;audience=x",
        "https://${NAME}.internal;never",
        "https://pay.internal;nevr",
        "https://pay.internal,Never",
    ],
)
def test_a_skipped_entry_protects_its_origin_also_if_it_is_hard_to_read(skipped: str) -> None:
    """A skipped entry excludes its host from wildcards, or disables all wildcards if its host cannot be read."""
    listed = f"https://*.internal,https://exact.internal,{skipped}"

    assert relayed(listed, "https://pay.internal/", "https://exact.internal/") == ["https://exact.internal/"]


def test_no_proposal_removes_a_parameter() -> None:
    """No suggestion removes a parameter, because it could list an origin that the operator wanted to exclude."""
    (problem,) = Settings.from_env({DESTINATIONS: "https://pay.internal;never:443"}).problems

    assert "write" not in problem


def test_the_expected_audiences_are_words() -> None:
    """An entry can list several additional audiences, and an entry without the parameter lists none."""
    (one, other) = Settings(destinations=("https://a;audience=x;expect=y z", "https://b;audience=x")).entries
    assert (one.expected, other.expected) == (("y", "z"), ())
