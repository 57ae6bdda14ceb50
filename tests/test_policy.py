"""The policy finds the entry that matches an origin and caches the result."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.destinations import Destination
from otel_token_relay.origin import Origin, OriginPattern
from otel_token_relay.policy import RelayPolicy

labels = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=8).filter(lambda s: not s.isdigit())
# A name whose last label looks like a number is an IPv4 address (WHATWG URL, section 3.5).
names = st.lists(labels, min_size=1, max_size=4).map(".".join).filter(lambda s: not s.split(".")[-1].startswith("0x"))


def find(entries, url):
    """Return the entry of *entries* that matches *url*."""
    return RelayPolicy(map(Destination.parse, entries)).match(Origin.parse(url))


@pytest.mark.parametrize(
    ("entry", "url", "matches"),
    [
        ("https://a", "https://a", True),
        ("a", "https://a", True),
        ("a", "http://a", False),
        ("https://a", "http://a", False),
        ("http://a", "https://a", False),
        ("https://a", "https://a:444", False),
        ("https://a:*", "https://a:444", True),
        ("https://a:*", "http://a:444", False),
        ("https://A.", "https://a", True),
        ("https://a", "https://a.b", False),
        ("https://a", "https://b.a", False),
        ("https://*.a.b", "https://x.a.b", True),
        ("https://*.a.b", "https://x.y.a.b", True),
        ("https://*.a.b", "https://a.b", False),
        ("https://*.a.b", "https://xa.b", False),
        ("https://*.a.b", "https://a.b.evil", False),
        ("https://*.a.b", "https://x.a.b.", True),
        ("https://*.internal.org", "https://evil-internal.org", False),
        ("https://*.internal.org", "https://x.internalxorg", False),
        ("https://*.a.b:8443", "https://x.a.b", False),
        ("https://*.a.b:8443", "https://x.a.b:8443", True),
        ("https://*", "https://anything.at.all", True),
        ("https://*", "https://[::1]", True),
        ("https://*", "https://10.0.0.1", True),
        ("https://*", "https://a:444", False),
        ("https://*", "http://a", False),
        ("http://[::1]:*", "http://[0::1]:5", True),
        ("http://127.0.0.1", "http://127.0.0.2", False),
        ("http://localhost", "http://127.0.0.1", False),
        ("https://bücher.example", "https://xn--bcher-kva.example", True),
        ("https://*.bücher.example", "https://x.XN--bcher-kva.example", True),
    ],
)
def test_a_pattern_matches_whole_labels_of_the_right_origin(entry, url, matches):
    """A pattern matches if the scheme, the port, and every label match."""
    assert (find([entry], url) is not None) is matches


@given(names, names, labels)
def test_a_wildcard_matches_below_whole_labels_only(parent, below, label):
    """A wildcard matches one or more whole labels below the parent, but not the parent itself or part of a label."""
    entry = f"https://*.{parent}"

    assert find([entry], f"https://{below}.{parent}") is not None
    assert find([entry], f"https://{parent}") is None
    # No generated label contains a hyphen, so this host does not end with the parent.
    assert find([entry], f"https://{label}{parent}.x-y") is None
    if "." not in parent:
        assert find([entry], f"https://{label}{parent}") is None
    assert find([entry], f"https://{label}-{parent}") is None or (
        find([entry], f"https://{label}-{parent}").pattern.host == (f"*.{parent}")
        and f"{label}-{parent}".endswith(f".{parent}")
    )


@given(names, names)
def test_an_exact_entry_matches_only_itself(listed, other):
    """An exact entry does not match names of which it is a prefix or a suffix."""
    assert find([f"https://{listed}"], f"https://{listed}") is not None
    assert (find([f"https://{listed}"], f"https://{other}") is not None) is (listed == other)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://x.a.b:1", "https://x.a.b:1"),
        ("https://x.a.b:2", "https://x.a.b:*"),
        ("https://y.a.b:1", "https://*.a.b:1"),
        ("https://y.a.b:2", "https://*.a.b:*"),
        ("https://y.c.b:1", "https://*.b:1"),
        ("https://c:1", "https://*:1"),
    ],
)
def test_the_most_specific_entry_applies(url, expected):
    """The most specific entry applies, regardless of the order of the list."""
    entries = [
        "https://*:1",
        "https://*.b:1",
        "https://*.a.b:*",
        "https://*.a.b:1",
        "https://x.a.b:*",
        "https://x.a.b:1",
    ]

    for order in (entries, entries[::-1]):
        assert str(find(order, url)) == expected


def test_the_cache_of_origins_is_bounded():
    """The cache of origins is bounded, because redirects can lead to any number of hosts."""
    policy = RelayPolicy([Destination.parse("https://a")])

    for number in range(6000):
        assert policy.find("https", f"h{number}", None) is None

    assert policy._remembered.cache_info().currsize <= 4096


@pytest.mark.parametrize(("scheme", "host"), [("https", "a" * 300), ("x" * 300, "a")], ids=["host", "scheme"])
def test_an_origin_that_is_too_long_is_not_cached(scheme, host):
    """An origin that is too long is not cached, because the cache has thousands of entries."""
    policy = RelayPolicy([Destination.parse("https://*")])

    assert policy.find(scheme, host, None) is None
    assert policy._remembered.cache_info().currsize == 0


NEVER = ("https://*.x", "https://*.secret.x;never", "https://open.secret.x", "https://a:*", "https://a:1;never")


@pytest.mark.parametrize(
    ("url", "entry", "gets"),
    [
        ("https://a.x", "https://*.x", True),
        ("https://a.secret.x", "https://*.secret.x;never", False),
        ("https://open.secret.x", "https://open.secret.x", True),
        ("https://a:1", "https://a:1;never", False),
        ("https://a:2", "https://a:*", True),
        ("https://b", None, False),
    ],
)
def test_an_entry_with_never_decides_alone(url, entry, gets):
    """An entry with `never` overrides a wider entry, but not a more specific one."""
    for entries in (NEVER, NEVER[::-1]):
        policy = RelayPolicy(map(Destination.parse, entries))
        origin = Origin.parse(url)
        deciding = policy.deciding_entry(origin)

        assert (policy.match(origin) is not None) is gets
        assert (policy.find(*origin) is not None) is gets
        assert (None if deciding is None else str(deciding)) == entry


def test_a_list_of_excluded_origins_is_empty():
    """A list that contains only excluded origins is empty, so hops without a token need no lookup."""
    assert RelayPolicy([Destination.parse("https://a;never")]).is_empty
    assert not RelayPolicy([Destination.parse("https://a;never"), Destination.parse("https://b")]).is_empty


def test_a_refused_pattern_has_no_entry():
    """The refused pattern of a skipped entry matches no entry."""
    policy = RelayPolicy([Destination.parse("https://*")], [OriginPattern.parse("https://a")])

    assert policy.deciding_pattern(Origin.parse("https://a")) == OriginPattern.parse("https://a")
    assert policy.deciding_entry(Origin.parse("https://a")) is None
