"""The closest entry is the one that differs least from an origin, and a phrase describes the difference."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.closest_entries import ClosestEntries, closest_entry
from otel_token_relay.destinations import Destination
from otel_token_relay.origin import Origin, OriginPattern
from otel_token_relay.policy import RelayPolicy


def policy(*entries: str, refused: tuple[str, ...] = ()) -> RelayPolicy:
    return RelayPolicy(map(Destination.parse, entries), map(OriginPattern.parse, refused))


def closest(url: str, *entries: str, refused: tuple[str, ...] = ()) -> str | None:
    origin = Origin.parse(url)
    assert origin is not None
    found = closest_entry(origin, policy(*entries, refused=refused))
    return None if found is None else str(found)


@pytest.mark.parametrize(
    ("url", "entry", "expected"),
    [
        ("http://localhost:9001", "https://localhost:9001", "the scheme differs: http, not https"),
        ("http://a", "https://a", "the scheme differs: http, not https"),
        ("https://a", "http://a", "the scheme differs: https, not http"),
        ("https://a:9001", "https://a:9000", "the port differs: 9001, not 9000"),
        ("https://a:8443", "https://a", "the port differs: 8443, not 443"),
        ("http://a:8080", "https://a", "the scheme differs: http, not https; the port differs: 8080, not 443"),
        (
            "https://profile-servic",
            "https://profile-service",
            "the host differs: profile-servic; did you mean profile-service?",
        ),
        (
            "http://profile-servic:1",
            "https://profile-service",
            "the scheme differs: http, not https; the port differs: 1, not 443; the host differs: profile-servic;"
            " did you mean profile-service?",
        ),
        ("https://a.servic.x", "https://a.service.x", "the host differs: a.servic.x; did you mean a.service.x?"),
        ("https://example.com", "https://*.example.com", "*.example.com does not match example.com itself"),
        (
            "https://bad-example.com",
            "https://*.example.com",
            "*.example.com matches whole labels only, so it does not match bad-example.com",
        ),
        ("http://a.example.com", "https://*.example.com", "the scheme differs: http, not https"),
        (
            "http://127.0.0.1:8001",
            "http://localhost:8001",
            "127.0.0.1 and localhost are different origins, even if both refer to this machine",
        ),
        (
            "http://localhost",
            "http://[::1]",
            "localhost and ::1 are different origins, even if both refer to this machine",
        ),
        (
            "http://0.0.0.0:8001",
            "http://localhost:8001",
            "0.0.0.0 and localhost are different origins, even if both refer to this machine",
        ),
        (
            "https://api.example.com",
            "https://example.com",
            "the host differs: api.example.com is a subdomain of example.com, which does not match subdomains",
        ),
        (
            "https://profile",
            "https://profile.ns.svc.cluster.local",
            "the host differs: profile, not profile.ns.svc.cluster.local",
        ),
        (
            "https://profile.ns.svc.cluster.local",
            "https://profile.ns",
            "the host differs: profile.ns.svc.cluster.local, not profile.ns",
        ),
        (
            "https://bucher.example",
            "https://b\u00fccher.example",
            "the host differs: bucher.example and xn--bcher-kva.example are different names (IDNA)",
        ),
    ],
)
def test_the_difference_is_named(url: str, entry: str, expected: str) -> None:
    """A phrase after the entry describes the difference."""
    assert closest(url, entry, "https://unrelated.test") == f"{Destination.parse(entry)}; {expected}"


@pytest.mark.parametrize(
    ("url", "entry"),
    [
        ("https://elsewhere", "https://profile-service"),
        ("https://abc", "https://abx"),
        ("https://10.0.0.1", "https://10.0.0.2"),
        ("https://api-a.test", "https://billing-b.test"),
        ("http://elsewhere:81", "https://*"),
    ],
)
def test_an_entry_that_is_not_close_is_not_named(url: str, entry: str) -> None:
    """An entry that is not similar to the origin is not suggested."""
    assert closest(url, entry) is None


def test_an_origin_that_gets_the_token_has_no_closest_entry() -> None:
    """An origin that gets the token has no closest entry, because nothing differs."""
    assert closest("https://a", "https://a") is None


def test_an_entry_that_excludes_the_origin_is_named() -> None:
    """An entry that excludes the origin is reported, although a wider entry matches."""
    found = closest_entry(Origin("https", "a.x", 443), policy("https://*", "https://*.x;never", "http://a.x"))

    assert found is not None
    assert str(found) == "https://*.x;never; the entry has ;never"
    assert (found.is_deliberate, found.is_skipped) == (True, False)


def test_a_skipped_entry_is_named() -> None:
    """For the origin of a skipped entry, the result states that the entry is skipped, and a problem describes the
    mistake.
    """
    found = closest_entry(Origin("https", "a", 443), policy("https://*", refused=("https://a",)))

    assert found is not None
    assert str(found) == "https://a; the entry is skipped because it is invalid or contradicts another entry"
    assert (found.is_deliberate, found.is_skipped) == (False, True)


def test_the_smallest_difference_wins_in_any_order() -> None:
    """The entry with the smallest difference wins in any order, first by scheme or port and then by host."""
    entries = ["https://servicd:1", "http://service", "https://service:2", "https://*.service", "https://*:3"]

    for order in (entries, entries[::-1]):
        assert closest("https://service", *order) == "https://service:2; the port differs: 443, not 2"


def test_an_excluded_entry_is_not_proposed() -> None:
    """An excluded entry is not suggested, because a different scheme or port would not help."""
    assert closest("http://a", "https://a;never") is None


def test_results_are_remembered_for_a_limited_number_of_origins() -> None:
    """Results are cached for a limited number of origins, because redirects can lead to any number of hosts."""
    entries = ClosestEntries(policy("https://a:1"))
    for number in range(3000):
        assert entries.find("https", f"h{number}.test", None) is None

    assert entries._remembered.cache_info().currsize <= 1024
    assert entries.find("https", "A.", 2) is entries.find("https", "a", 2) is not None


@pytest.mark.parametrize(
    "target", [(None, None, None), ("https", 5, None), ("https", [], "x"), ("https", "a" * 9999, 1)]
)
def test_a_target_that_cannot_be_read_has_no_closest_entry(target: tuple[object, ...]) -> None:
    """A target that cannot be read has no closest entry and does not affect the request."""
    assert ClosestEntries(policy("https://a")).find(*target) is None  # type: ignore[arg-type]


HOSTS = st.sampled_from(
    ["a", "service", "servicd", "x.service", "localhost", "127.0.0.1", "::1", "xn--bcher-kva.x", "xn--a"]
)
ORIGINS = st.builds(Origin, st.sampled_from(["http", "https"]), HOSTS, st.sampled_from([80, 443, 8443]))
PATTERNS = st.builds(
    OriginPattern,
    st.sampled_from(["http", "https"]),
    HOSTS | HOSTS.filter(lambda host: host[-1].isalpha()).map("*.{}".format) | st.just("*"),
    st.sampled_from([80, 443, 8443, None]),
)


@given(
    ORIGINS, st.lists(st.builds(Destination, PATTERNS, never=st.booleans()), max_size=6), st.lists(PATTERNS, max_size=2)
)
def test_a_closest_entry_explains_only_what_is_withheld(
    origin: Origin, entries: list[Destination], refused: list[OriginPattern]
) -> None:
    """A closest entry explains only withheld tokens, in any order of the list, and never raises an error."""
    first, last = RelayPolicy(entries, refused), RelayPolicy(entries[::-1], refused)
    if len({entry.pattern for entry in entries}) < len(entries):
        return
    found = closest_entry(origin, first)

    assert found == closest_entry(origin, last)
    assert found is None or first.match(origin) is None
    assert found is None or found.entry in map(str, [*entries, *refused])
