"""The variables of verification: their meaning, and the strict values when they cannot be read."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from otel_token_relay.configured_authenticator import DenyAll, build_authenticator
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.reasons import Reason
from otel_token_relay.relay import Relay
from otel_token_relay.settings import Settings

PREFIX = "OTEL_PYTHON_TOKEN_RELAY_"
COMPLETE = {"VERIFY": "enforce", "ISSUERS": "https://idp.example", "AUDIENCE": "profile-service"}


def from_env(**variables: str) -> Settings:
    return Settings.from_env({PREFIX + name: value for name, value in variables.items()})


def test_nothing_is_verified_by_default() -> None:
    """Without a variable, and with issuers alone, nothing changes."""
    assert from_env().verify == "off"
    assert from_env(ISSUERS="https://idp.example", AUDIENCE="a").verify == "off"
    assert from_env().problems == ()


def test_variables_are_read() -> None:
    """Each variable, with white space around its entries."""
    settings = from_env(
        **COMPLETE | {"ISSUERS": "https://idp.example , https://b.example/realms/x"},
        ALGORITHMS="ES256, EdDSA",
        PROFILE="generic",
        VERIFY_EXCLUDE="/healthz,/metrics",
        SPAN_CLAIMS="sub:enduser.id, azp:client.id",
    )

    assert settings.problems == ()
    assert settings.verify == "enforce"
    assert settings.issuers == ("https://idp.example", "https://b.example/realms/x")
    assert settings.audience == ("profile-service",)
    assert settings.algorithms == ("ES256", "EdDSA")
    assert settings.profile == "generic"
    assert settings.verify_exclude == ("/healthz", "/metrics")
    assert settings.span_claims == ("sub:enduser.id", "azp:client.id")


@pytest.mark.parametrize(
    ("variable", "text", "field", "strict"),
    [
        pytest.param("VERIFY", "enfroce", "verify", "enforce", id="typing error enforces"),
        pytest.param("VERIFY", "true", "verify", "enforce", id="true enforces"),
        pytest.param("VERIFY", "Off", "verify", "enforce", id="case matters"),
        pytest.param("PROFILE", "lax", "profile", "rfc9068", id="unknown profile is the strict one"),
        pytest.param("ISSUERS", "https://idp.example,ftp://evil.example", "issuers", (), id="one bad issuer, none"),
        pytest.param("ALGORITHMS", "RS256,HS256", "algorithms", (), id="one bad algorithm, none"),
        pytest.param("VERIFY_EXCLUDE", "/healthz,metrics", "verify_exclude", (), id="one bad path, none"),
        pytest.param("VERIFY_EXCLUDE", "/healthz,/*", "verify_exclude", (), id="all paths, none"),
        pytest.param("VERIFY_EXCLUDE", "/a*", "verify_exclude", (), id="part of a segment, none"),
        pytest.param("VERIFY_EXCLUDE", "/a/*/b", "verify_exclude", (), id="a star in the middle, none"),
        pytest.param("VERIFY", "Optional", "verify", "enforce", id="case of optional"),
        pytest.param("VERIFY_STREAMS", "yes", "verify_streams", "exp", id="streams end"),
        pytest.param("PLAINTEXT_ISSUERS", "keycloak,http://a", "plaintext_issuers", (), id="one bad host, none"),
        pytest.param("PLAINTEXT_ISSUERS", "*", "plaintext_issuers", (), id="every host, none"),
        pytest.param("PLAINTEXT_ISSUERS", "*.svc", "plaintext_issuers", (), id="wildcard, none"),
        pytest.param("CA_FILE", "a\0b", "ca_file", "/dev/null", id="no file"),
        pytest.param("JWKS_TOKEN_FILE", "a\0b", "jwks_token_file", "/dev/null", id="no token file"),
        pytest.param("REALM", 'a"b', "realm", "api", id="quote in the realm"),
        pytest.param("RESOURCE_METADATA", "http://mcp.example", "resource_metadata", "", id="plain resource"),
        pytest.param("RESOURCE_METADATA", "https://mcp.example/#a", "resource_metadata", "", id="fragment"),
        pytest.param("SPAN_CLAIMS", "sub", "span_claims", (), id="pair without a name, none"),
    ],
)
def test_unreadable_variable_takes_the_strict_side(variable: str, text: str, field: str, strict: object) -> None:
    """A mistake never accepts more, and is reported."""
    settings = from_env(**COMPLETE | {variable: text})

    assert getattr(settings, field) == strict
    assert any(problem.startswith(PREFIX + variable) for problem in settings.problems)


def test_one_audience_may_be_a_text() -> None:
    """As with the verifier itself."""
    assert Settings(audience="profile-service").audience == ("profile-service",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("verify", "on"),
        ("profile", "strict"),
        ("issuers", ("ftp://idp.example",)),
        ("issuers", "https://idp.example"),
        ("issuers", ("https://idp.example#x",)),
        ("audience", ("",)),
        ("algorithms", ("none",)),
        ("verify_exclude", ("healthz",)),
        ("span_claims", ("sub:",)),
    ],
)
def test_bad_value_in_code_is_an_error(name: str, value: Any) -> None:
    """In code a mistake raises at once."""
    with pytest.raises(ConfigurationError) as refused:
        Settings(**{name: value})
    assert refused.value.setting == name


@pytest.mark.parametrize(
    ("verify", "reason"), [("off", Reason.NOT_VERIFIED), ("report", Reason.RELAYED), ("enforce", Reason.RELAYED)]
)
def test_explain_knows_whether_anything_verifies(verify: Any, reason: Reason) -> None:
    """REQUIRE_VERIFIED alone relays nothing; together with verification at the boundary it relays."""
    relays = {"destinations": ("https://a.example",), "require_verified": True}
    verifies = {"issuers": ("https://idp.example",), "audience": ("a",)}

    assert Relay(Settings(**relays, **verifies, verify=verify)).explain("https://a.example/x")[0].reason is reason
    # Without these settings, verification cannot start.
    assert Relay(Settings(**relays, verify=verify)).explain("https://a.example/x")[0].reason is Reason.NOT_VERIFIED


def test_check_names_what_is_wrong() -> None:
    """``otel-token-relay check`` exits with 1 if tokens cannot be verified."""
    environ = {**os.environ, PREFIX + "VERIFY": "enforce", PREFIX + "AUDIENCE": "a"}
    program = "import sys; sys.modules['jwt'] = None; from otel_token_relay import cli; sys.exit(cli.main())"
    ran = subprocess.run(
        [sys.executable, "-c", program, "check"], env=environ, capture_output=True, text=True, timeout=120
    )

    assert ran.returncode == 1
    assert "verification cannot start, because" in ran.stdout


@pytest.mark.parametrize(
    ("issuer", "plaintext", "is_trusted"),
    [
        pytest.param("http://keycloak:8080/realms/a", "keycloak:8080", True, id="host and port"),
        pytest.param("http://keycloak:8080/realms/a", "keycloak", True, id="host"),
        pytest.param("http://keycloak:8080/realms/a", "keycloak:80", False, id="another port"),
        pytest.param("http://keycloak:8080/realms/a", "cloak:8080", False, id="end of the host"),
        pytest.param("http://a.keycloak:8080", "keycloak:8080", False, id="below the host"),
        pytest.param("http://keycloak:8080/realms/a", "", False, id="none"),
    ],
)
def test_plain_http_issuer_must_be_listed(issuer: str, plaintext: str, is_trusted: bool) -> None:
    """Otherwise, verification cannot start, and a problem names the issuer and the variable that allows it."""
    settings = from_env(**COMPLETE | {"ISSUERS": issuer, "PLAINTEXT_ISSUERS": plaintext})

    assert settings.issuers == (issuer,)
    assert (settings.problems == ()) is is_trusted
    assert isinstance(build_authenticator(settings), DenyAll) is not is_trusted
    if not is_trusted:
        (problem,) = settings.problems
        assert issuer in problem
        assert f"{PREFIX}PLAINTEXT_ISSUERS" in problem


@pytest.mark.parametrize("other", ["off", "report", "optional", "enforce"])
def test_the_strictest_source_wins(other: Any) -> None:
    """``optional`` refuses some of the requests that ``report`` serves, and serves some that ``enforce`` refuses."""
    order = ["off", "report", "optional", "enforce"]
    for mode in order:
        loaded = Settings.load({f"{PREFIX}VERIFY": mode}, code=Settings(verify=other))
        assert loaded.verify == max(mode, other, key=order.index)


def test_a_token_file_needs_one_issuer() -> None:
    """A token must not be sent to an issuer that it was not meant for."""
    both = "https://idp.example,https://b.example"
    settings = from_env(**COMPLETE | {"ISSUERS": both, "JWKS_TOKEN_FILE": "/run/token"})

    assert isinstance(build_authenticator(settings), DenyAll)
