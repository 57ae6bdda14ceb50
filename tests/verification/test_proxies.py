"""The environment determines the proxy for an issuer, and unusable kinds of proxies are rejected."""

from __future__ import annotations

import pytest

from otel_token_relay.origin import Origin
from otel_token_relay.verification.proxies import Proxy, is_excluded, proxy_for

IDP = Origin("https", "idp.example", 443)
BASIC = ("Proxy-Authorization", "Basic Ym9iOnBAc3M=")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param({}, None, id="none"),
        pytest.param({"https_proxy": ""}, None, id="empty"),
        pytest.param({"https_proxy": "http://proxy:3128"}, Proxy("http", "proxy", 3128), id="http"),
        pytest.param({"HTTPS_PROXY": "http://proxy:3128/"}, Proxy("http", "proxy", 3128), id="upper case, slash"),
        pytest.param({"https_proxy": "HTTPS://Proxy"}, Proxy("https", "proxy", 443), id="https"),
        pytest.param({"https_proxy": "proxy:8080"}, Proxy("http", "proxy", 8080), id="no scheme"),
        pytest.param({"https_proxy": "http://[::1]:8080"}, Proxy("http", "::1", 8080), id="IPv6"),
        pytest.param({"https_proxy": "http://bob:p%40ss@proxy"}, Proxy("http", "proxy", 80, (BASIC,)), id="password"),
        pytest.param({"HTTPS_PROXY": "http://a", "https_proxy": "http://b"}, Proxy("http", "b", 80), id="lower case"),
        pytest.param({"HTTPS_PROXY": "http://a", "https_proxy": ""}, None, id="lower case switches off"),
        pytest.param({"HTTP_PROXY": "http://a", "ALL_PROXY": "http://a"}, None, id="for other schemes"),
        pytest.param({"https_proxy": "http://a", "NO_PROXY": "example"}, None, id="excluded"),
    ],
)
def test_the_proxy_is_read_from_the_environment(environ: dict[str, str], expected: Proxy | None) -> None:
    """The proxy is read from the environment, where a lowercase variable takes precedence."""
    assert proxy_for(IDP, environ) == expected


def test_a_proxy_is_never_used_for_plain_http_or_loopback() -> None:
    """No proxy is used for plain http, which a proxy could change, or for loopback, which would be the proxy's own."""
    environ = {"https_proxy": "http://proxy", "http_proxy": "http://proxy"}

    for origin in (Origin("http", "keycloak", 8080), Origin("https", "localhost", 443), Origin("https", "::1", 443)):
        assert proxy_for(origin, environ) is None


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        pytest.param("socks5h://bob:secret@proxy:1080", "the scheme socks5h; only http and https", id="socks5h"),
        pytest.param("SOCKS4://proxy", "the scheme socks4; only http and https", id="socks4"),
        pytest.param("bob:secret://proxy", "the scheme unknown", id="no scheme"),
        pytest.param("http://bob:secret@proxy:port", "is invalid", id="port"),
        pytest.param("http://bob:secret@", "is invalid", id="no host"),
        pytest.param("http://bob:secret@[::1", "is invalid", id="bracket"),
        pytest.param("http://bob:secret@pro xy", "is invalid", id="space"),
        pytest.param("http://proxy/?bob\r\nX: secret@", None, id="line break"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_an_error(url: str, problem: str | None) -> None:
    """An unusable proxy is an error whose message contains no password, and nothing is sent around the proxy."""
    if problem is None:
        found = proxy_for(IDP, {"https_proxy": url})
        assert found is not None
        assert (found.host, found.headers) == ("proxy", ())
        return

    with pytest.raises(ValueError, match=problem) as refused:
        proxy_for(IDP, {"https_proxy": url})
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_the_password_is_not_printed() -> None:
    """The proxy's password is not printed, because a proxy can appear in a traceback."""
    assert repr(Proxy("http", "proxy", 80, (BASIC,))) == "Proxy(http://proxy:80)"


@pytest.mark.parametrize(
    ("no_proxy", "covered", "other"),
    [
        pytest.param("*", ["idp.example", "10.1.2.3", "::1"], [], id="all"),
        pytest.param("idp.example", ["idp.example", "a.idp.example"], ["notidp.example", "example"], id="name"),
        pytest.param(".idp.example", ["idp.example", "a.idp.example"], ["notidp.example"], id="leading dot"),
        pytest.param("*.idp.example", ["a.idp.example"], ["notidp.example"], id="wildcard"),
        pytest.param("IDP.Example.", ["idp.example"], [], id="case, trailing dot"),
        pytest.param("a, idp.example ,b", ["idp.example", "a", "b"], ["c"], id="list"),
        pytest.param("idp.example:443", ["idp.example"], [], id="port"),
        pytest.param("idp.example:8443", [], ["idp.example"], id="another port"),
        pytest.param("idp.example:", [], ["idp.example"], id="empty port"),
        pytest.param("10.0.0.0/8", ["10.1.2.3"], ["11.1.2.3", "idp.example", "::1"], id="network"),
        pytest.param("10.1.2.9/24", ["10.1.2.3"], ["10.1.3.3"], id="network with host bits"),
        pytest.param("fd00::/8", ["fd12::1"], ["10.1.2.3", "fe80::1"], id="IPv6 network"),
        pytest.param("10.0.0.0/99,a/b,/", [], ["10.0.0.1", "a"], id="not a network"),
        pytest.param("10.1.2.3", ["10.1.2.3"], ["110.1.2.3", "10.1.2.30"], id="address"),
        pytest.param("2.3", [], ["10.1.2.3"], id="end of an address"),
        pytest.param("10.1.2.3:443", ["10.1.2.3"], ["10.1.2.4"], id="address and port"),
        pytest.param("::1", ["::1"], ["::2"], id="IPv6"),
        pytest.param("[::1]:443,[::2]:444,[::3]", ["::1", "::3"], ["::2"], id="IPv6 and port"),
        pytest.param("", [], ["idp.example"], id="empty"),
        pytest.param(",, .", [], ["idp.example"], id="blank entries"),
    ],
)
def test_no_proxy_has_names_addresses_networks_and_ports(no_proxy: str, covered: list[str], other: list[str]) -> None:
    """`no_proxy` can contain names, addresses, networks, and ports; all requests in this test are to port 443."""
    assert [host for host in covered + other if is_excluded(host, 443, no_proxy)] == covered
