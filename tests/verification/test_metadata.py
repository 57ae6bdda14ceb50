"""Issuer metadata has well-known URLs, is trusted only in part, and stays fresh for a limited time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.errors import ConfigurationError
from otel_token_relay.verification.metadata import (
    check_issuer,
    describe_status,
    fresh_seconds,
    metadata_urls,
    problem_with_metadata,
)
from tests.support.json_values import json_values


@pytest.mark.parametrize(
    ("issuer", "is_usable"),
    [
        pytest.param("https://idp.example", True, id="https"),
        pytest.param("https://idp.example:8443/realms/a/", True, id="port and path"),
        pytest.param("http://127.0.0.1:8080", True, id="loopback"),
        pytest.param("http://[::1]:8080", True, id="IPv6 loopback"),
        pytest.param("http://idp.example", False, id="plain http"),
        pytest.param("http://127.0.0.1.evil.example", False, id="a name that starts like loopback"),
        pytest.param("https://idp.example?tenant=a", False, id="query"),
        pytest.param("https://idp.example#a", False, id="fragment"),
        pytest.param("https://a@idp.example", False, id="user name"),
        pytest.param("https://idp.example\\@evil.example", False, id="backslash"),
        pytest.param("https://ídp.example", False, id="beyond ASCII"),
        pytest.param("idp.example", False, id="no scheme"),
        pytest.param("file:///etc/passwd", False, id="file"),
        pytest.param("", False, id="empty"),
        pytest.param(None, False, id="no text"),
    ],
)
def test_an_issuer_is_an_https_url_or_on_loopback(issuer: Any, is_usable: bool) -> None:
    """An issuer must use https or be on loopback; otherwise, an attacker on the network could change its metadata."""
    if is_usable:
        assert check_issuer(issuer) == issuer
        return

    with pytest.raises(ConfigurationError) as rejected:
        check_issuer(issuer)
    assert rejected.value.setting == "issuers"


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({}, id="empty"),
        pytest.param({"jwks_uri": "https://idp.example/jwks"}, id="no issuer"),
        pytest.param({"issuer": "https://evil.example", "jwks_uri": "https://idp.example/jwks"}, id="another issuer"),
        pytest.param({"issuer": "https://idp.example/", "jwks_uri": "https://idp.example/jwks"}, id="a slash more"),
        pytest.param({"issuer": "https://IDP.example", "jwks_uri": "https://idp.example/jwks"}, id="upper case"),
        pytest.param({"issuer": ["https://idp.example"], "jwks_uri": "https://idp.example/jwks"}, id="a list"),
    ],
)
def test_metadata_must_name_the_configured_issuer(document: dict[str, Any]) -> None:
    """The issuer in the metadata must equal the configured issuer as text (RFC 8414, section 3.3)."""
    assert problem_with_metadata(document, "https://idp.example") is not None


@pytest.mark.parametrize(
    ("issuer_url", "jwks_uri", "believed"),
    [
        pytest.param("https://idp.example", "https://idp.example/jwks", True, id="same host"),
        pytest.param("https://idp.example", "https://keys.example/jwks", True, id="other host"),
        pytest.param("https://idp.example", "http://idp.example/jwks", False, id="plain http"),
        pytest.param("https://idp.example", "http://127.0.0.1/jwks", False, id="https points to loopback"),
        pytest.param("https://idp.example", "file:///etc/passwd", False, id="file"),
        pytest.param("https://idp.example", "https://a@idp.example/jwks", False, id="userinfo"),
        pytest.param("https://idp.example", None, False, id="missing"),
        pytest.param("https://idp.example", ["https://idp.example/jwks"], False, id="a list"),
        pytest.param("http://127.0.0.1:1", "http://127.0.0.1:2/jwks", True, id="loopback"),
        pytest.param("http://127.0.0.1:1", "http://idp.example/jwks", False, id="loopback points outside"),
    ],
)
def test_metadata_is_trusted_only_if_its_keys_cannot_be_changed_in_transit(
    issuer_url: str, jwks_uri: object, believed: bool
) -> None:
    """Metadata is trusted only if its keys' URL uses https, or http on loopback for a loopback issuer."""
    problem = problem_with_metadata({"issuer": issuer_url, "jwks_uri": jwks_uri}, issuer_url)

    assert (problem is None) == believed


def test_metadata_of_an_issuer_with_a_path_has_two_urls() -> None:
    """For an issuer with a path, OpenID appends the well-known part, and RFC 8414 inserts it before the path (section
    3.1).
    """
    assert metadata_urls("https://idp.example/realms/a/") == (
        "https://idp.example/realms/a/.well-known/openid-configuration",
        "https://idp.example/.well-known/oauth-authorization-server/realms/a",
    )


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        pytest.param({}, 300.0, id="nothing said"),
        pytest.param({"cache-control": "max-age=600"}, 600.0, id="max-age"),
        pytest.param({"cache-control": "max-age=600", "age": "100"}, 500.0, id="age"),
        pytest.param({"cache-control": "max-age=600", "age": "nonsense"}, 600.0, id="broken age"),
        pytest.param({"cache-control": "max-age=1"}, 30.0, id="too short"),
        pytest.param({"cache-control": "max-age=0"}, 30.0, id="zero"),
        pytest.param({"cache-control": "max-age=9999999"}, 86400.0, id="too long"),
        pytest.param({"cache-control": "no-store"}, 30.0, id="no-store"),
        pytest.param({"cache-control": "no-cache, max-age=600"}, 30.0, id="no-cache"),
        pytest.param({"cache-control": "s-maxage=600"}, 300.0, id="s-maxage is for proxies"),
        pytest.param({"cache-control": "max-age=-5"}, 300.0, id="negative"),
        pytest.param({"cache-control": "PUBLIC,MAX-AGE=600"}, 600.0, id="upper case"),
    ],
)
def test_cache_control_is_followed_within_bounds(headers: dict[str, str], seconds: float) -> None:
    """The bounds for Cache-Control prevent an issuer from forcing constant fetches or a week without a fetch."""
    assert fresh_seconds(headers) == seconds


@given(document=st.dictionaries(st.sampled_from(["issuer", "jwks_uri"]), json_values), control=st.text())
def test_any_metadata_is_read_or_not_believed(document: dict[str, Any], control: str) -> None:
    """Metadata and headers of any form are used or not trusted, without an unexpected error."""
    assert problem_with_metadata(document, "https://idp.example") is not None
    assert 30.0 <= fresh_seconds({"cache-control": control, "age": control}) <= 86400.0


@pytest.mark.parametrize(
    ("jwks_uri", "is_believed"),
    [
        pytest.param("http://keycloak:8080/jwks", True, id="own origin"),
        pytest.param("http://keycloak:8081/jwks", False, id="another port"),
        pytest.param("http://other/jwks", False, id="another listed host"),
        pytest.param("http://evil/jwks", False, id="another host"),
        pytest.param("https://other/jwks", True, id="https"),
    ],
)
def test_a_document_over_plain_http_names_only_its_own_origin(jwks_uri: str, is_believed: bool) -> None:
    """A document that was fetched over plain http can refer only to its own origin, because only the issuer was
    configured.
    """
    issuer = "http://keycloak:8080/realms/a"
    document = {"issuer": issuer, "jwks_uri": jwks_uri}

    assert (problem_with_metadata(document, issuer, ("keycloak", "other")) is None) == is_believed
    assert (problem_with_metadata(document, issuer) is None) == jwks_uri.startswith("https:")


def test_https_is_never_downgraded_to_plain_http() -> None:
    """An https URL is never downgraded to plain http, even on the same host."""
    issuer = "https://keycloak/realms/a"

    document = {"issuer": issuer, "jwks_uri": "http://keycloak/jwks"}

    assert problem_with_metadata(document, issuer, ("keycloak",)) is not None


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (404, "status 404"),
        (503, "status 503"),
        (302, "status 302; redirects are not followed"),
        (308, "status 308; redirects are not followed"),
        (201, "status 201"),
    ],
)
def test_a_message_about_a_redirect_says_that_it_is_not_followed(status: int, text: str) -> None:
    """A message contains the unexpected status, and explains that a redirect is not followed."""
    assert describe_status(status) == text
