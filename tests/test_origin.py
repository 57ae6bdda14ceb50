"""Origins and patterns are normalized and compared, and ambiguous ones are rejected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.origin import (
    Origin,
    OriginPattern,
    is_listed,
    is_trustworthy,
    normalize_host,
    origin_of_proxied,
)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://profile-service", "https://profile-service"),
        ("HTTPS://Profile-Service/a?b#c", "https://profile-service"),
        ("https://profile-service:443/", "https://profile-service"),
        ("http://a:8080", "http://a:8080"),
        ("http://a.", "http://a"),
        ("ws://a/x", "http://a"),
        ("wss://a:444", "https://a:444"),
        ("http://[::1]:80/", "http://[::1]"),
        ("http://[0:0::1]", "http://[::1]"),
        ("http://127.0.0.1", "http://127.0.0.1"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("https://XN--BCHER-KVA.example", "https://xn--bcher-kva.example"),
        ("https://a_b", "https://a_b"),
    ],
)
def test_an_origin_is_normalized(url, expected):
    """Case, default ports, a trailing dot, IDNA, and the spelling of IPv6 addresses do not change an origin."""
    assert str(Origin.parse(url)) == expected


@pytest.mark.parametrize(
    "url",
    [
        "http://good\\@evil/",
        "http://good@evil/",
        "http://u:p@good/",
        "http://good\t/",
        "http://good /",
        "http://go\nod/",
        "http://good/\x00",
        "http://go%6fd/",
        "http://",
        "http://:80/",
        "http://a..b/",
        "http://.a/",
        "http://a../",
        "http://-a/",
        "http://127.1/",
        "http://0x7f.1/",
        "http://2130706433/",
        "http://[::1/",
        "http://[fe80::1%25eth0]/",
        "http://::1/",
        "http://a:0/",
        "http://a:65536/",
        "http://a:8a/",
        "http://a:/",
        "http://*.a/",
        "http://a:*/",
        "ftp://a/",
        "file:///etc/passwd",
        "//a/",
        "a",
        "",
        "http:a",
        "http:/a",
        "http://" + "a" * 64,
        "http://" + "a." * 127 + "a",
        "https://a\u3002b\u200d/",
    ],
)
def test_an_ambiguous_url_has_no_origin(url):
    """An ambiguous or invalid URL has no origin, so no tokens are relayed to it."""
    assert Origin.parse(url) is None


@given(st.text(), st.text(), st.none() | st.integers())
def test_origins_of_any_text_never_raise(scheme, host, port):
    """Computing the origin of any text never raises an error."""
    Origin.of(scheme, host, port)
    Origin.parse(scheme + "://" + host)
    Origin.parse("http://" + host)
    normalize_host(host)


@given(st.text())
def test_a_pattern_is_accepted_or_rejected_with_a_message(text):
    """Parsing a pattern raises only `ValueError`, and the text of a pattern parses to an equal pattern."""
    message = None
    try:
        pattern = OriginPattern.parse(text)
    except ValueError as error:
        message = str(error)

    assert message or OriginPattern.parse(str(pattern)) == pattern


@pytest.mark.parametrize(
    "text",
    [
        "https://u@a",
        "https://u:p@a",
        "https://a/",
        "https://a/x",
        "https://a?x",
        "https://a#x",
        "ftp://a",
        "https://a*.b",
        "https://*a",
        "https://a.*",
        "https://*.*.a",
        "https://**",
        "https://*.",
        "https://*.10",
        "https://*.0.0.1",
        "https://*.1.2.3.4",
        "https://*.[::1]",
        "https://a:b",
        "https://a:70000",
        "https://a:0",
        "https://",
        "",
        "https:a",
        "https://a b",
        "https://a,b",
        "http*://a",
        "*://a",
    ],
)
def test_an_invalid_pattern_is_rejected(text):
    """A pattern with a path, user info, or a star in an unsupported position is rejected."""
    with pytest.raises(ValueError, match=r"\w{3}"):
        OriginPattern.parse(text)


@pytest.mark.parametrize(
    ("entry", "loopback"),
    [
        ("http://localhost", True),
        ("http://a.localhost:1", True),
        ("http://127.8.9.1", True),
        ("http://[::1]", True),
        ("http://localhost.evil", False),
        ("http://10.0.0.1", False),
        ("http://*", False),
    ],
)
def test_loopback_is_recognized(entry, loopback):
    """Loopback, the only place where plain http is harmless, is recognized."""
    assert OriginPattern.parse(entry).is_loopback is loopback


@pytest.mark.parametrize(
    ("url", "secure", "trustworthy"),
    [
        ("https://idp.example/keys", True, True),
        ("http://127.0.0.1:8080/keys", True, True),
        ("http://keycloak:8080/keys", False, True),
        ("http://keycloak:8081/keys", False, False),
        ("http://mesh/keys", False, True),
        ("http://x.mesh/keys", False, False),
        ("http://[fd00::1]:90/keys", False, True),
        ("https://idp.example/keys#x", True, False),
        ("https://idp.example/k\N{LATIN SMALL LETTER E WITH ACUTE}ys", True, False),
        ("https://idp.example\\@evil.example/", None, False),
    ],
)
def test_a_response_is_trusted_over_https_from_loopback_or_from_a_listed_host(url, secure, trustworthy):
    """A host is listed alone or with a port, and its subdomains are not listed."""
    origin = Origin.parse(url)
    assert (None if origin is None else origin.is_secure) is secure
    assert is_trustworthy(url, ("keycloak:8080", "mesh", "[fd00::1]:90")) is trustworthy


def test_a_pattern_for_any_port_is_listed_only_without_a_port():
    """A listed host with a port does not cover an entry for all ports."""
    assert is_listed(OriginPattern.parse("http://mesh:*"), ("mesh",))
    assert not is_listed(OriginPattern.parse("http://mesh:*"), ("mesh:80",))


def test_a_proxy_gets_only_unambiguous_urls():
    """The error for an ambiguous URL does not contain the URL, which might contain a secret."""
    assert origin_of_proxied("http://profile-service/me") == ("http", "profile-service", 80)
    with pytest.raises(ValueError, match="unambiguous") as raised:
        origin_of_proxied("http://me:hunter2@profile-service/")
    assert "hunter2" not in str(raised.value)


def test_an_invalid_pattern_is_not_found():
    """`find` returns ``None`` where `parse` raises an error."""
    assert OriginPattern.find("https://a:8443") == OriginPattern("https", "a", 8443)
    assert OriginPattern.find("https://a/path") is None
