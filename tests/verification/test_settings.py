"""Each verification variable is read, and a strict value replaces an unreadable one."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import Any

import pytest

from otel_token_relay.client_credentials import Secret
from otel_token_relay.configured_authenticator import DenyAll, build_authenticator
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.issuers import TrustedIssuer
from otel_token_relay.reasons import Reason
from otel_token_relay.relay import Relay
from otel_token_relay.settings import Settings

PREFIX = "OTEL_PYTHON_TOKEN_RELAY_"
COMPLETE = {"VERIFY": "enforce", "ISSUERS": "https://idp.example", "AUDIENCE": "profile-service"}


def from_env(**variables: str) -> Settings:
    return Settings.from_env({PREFIX + name: value for name, value in variables.items()})


def test_nothing_is_verified_by_default() -> None:
    """By default, and with issuers alone, nothing is verified."""
    assert from_env().verify == "off"
    assert from_env(ISSUERS="https://idp.example", AUDIENCE="a").verify == "off"
    assert from_env().problems == ()


def test_variables_are_read() -> None:
    """Each variable is read without the white space around its entries."""
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
        pytest.param("ISSUERS", "http://evil.example", "issuers", (), id="a bad issuer, none"),
        pytest.param("LEEWAY", "-1", "leeway", 0.0, id="no leeway"),
        pytest.param("JWKS_URI", "http://idp.example/jwks", "jwks_uri", "https://jwks-uri.invalid", id="no keys"),
        pytest.param(
            "INTROSPECTION_ENDPOINT",
            "idp.example",
            "introspection_endpoint",
            "https://introspection-endpoint.invalid",
            id="an endpoint that does not respond",
        ),
        pytest.param("AUDIENCE_CLAIM", "a\x01", "audience_claim", "(none)", id="a claim that no token has"),
        pytest.param("REQUIRED_SCOPES", "a b", "required_scopes", ("(none)",), id="a scope that no token has"),
        pytest.param("TENANTS", "contoso.com", "tenants", ("(none)",), id="no tenant"),
        pytest.param("CLIENT_ID", "a\x01", "client_id", None, id="no client"),
        pytest.param("CLIENT_AUTH", "basic", "client_auth", None, id="unknown method"),
        pytest.param("CLIENT_KEY_FILE", "a\x01", "client_key_file", None, id="no key"),
        pytest.param("CLIENT_KEY_ID", "a\x01", "client_key_id", None, id="no key ID"),
        pytest.param("CLIENT_ASSERTION_FILE", "a\x01", "client_assertion_file", None, id="no assertion"),
        pytest.param("CLIENT_CERT_FILE", "a\x01", "client_cert_file", None, id="no certificate"),
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
    """An unreadable variable is reported and never accepts more requests."""
    settings = from_env(**COMPLETE | {variable: text})

    assert getattr(settings, field) == strict
    assert any(problem.startswith(PREFIX + variable) for problem in settings.problems)


def test_a_bad_entry_is_named_and_the_others_remain() -> None:
    """The tokens of an invalid entry's issuer are rejected, and the other issuers' tokens are verified."""
    settings = from_env(
        **COMPLETE | {"ISSUERS": "https://a.example,http://b.example,https://c.example/?x,https://d.example"}
    )

    assert settings.issuers == ("https://a.example", "https://d.example")
    assert [problem.split(": ")[:2] for problem in settings.problems] == [
        [f"{PREFIX}ISSUERS", "https://c.example/?x"],
        [f"{PREFIX}ISSUERS", "http://b.example"],
    ]
    assert settings.verification_problem is None


@pytest.mark.parametrize("extra", [{"JWKS_URI": "https://k.example"}, {"INTROSPECTION_ENDPOINT": "https://i.example"}])
def test_what_may_belong_to_a_bad_entry_is_not_given_to_another_issuer(extra: dict[str, str]) -> None:
    """A setting that might belong to an invalid entry is not applied to a different issuer, so verification does not
    start.
    """
    settings = from_env(**COMPLETE | {"ISSUERS": "https://a.example,https://b.example/?x"} | extra)

    assert settings.verification_problem is not None
    assert any("verification cannot start" in problem for problem in settings.problems)


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        pytest.param({"ISSUERS": "https://a.example,https://b.example"}, "requires exactly one issuer", id="issuers"),
        pytest.param({"AUDIENCE_CLAIM": "client_id"}, "AUDIENCE_CLAIM requires", id="audience claim"),
        pytest.param({"CLIENT_ID": "a"}, "CLIENT_SECRET cannot be used", id="half a credential"),
        pytest.param({"CLIENT_SECRET": "secret-value"}, "CLIENT_SECRET cannot be used", id="the other half"),
        pytest.param({"CLIENT_KEY_FILE": "/run/key"}, "CLIENT_KEY_FILE cannot be used", id="a key without a client"),
        pytest.param(
            {"CLIENT_ID": "a", "CLIENT_SECRET": "secret-value", "CLIENT_KEY_FILE": "/run/key"},
            "CLIENT_SECRET cannot be used",
            id="two credentials",
        ),
        pytest.param(
            {"CLIENT_ID": "a", "CLIENT_KEY_FILE": "/run/key", "CLIENT_AUTH": "client_secret_post"},
            "CLIENT_AUTH cannot be used",
            id="a method for another credential",
        ),
        pytest.param(
            {"ISSUERS": "", "JWKS_URI": "", "CLIENT_ID": "a", "CLIENT_KEY_FILE": "/run/key"},
            "CLIENT_AUTH cannot be used: private_key_jwt requires exactly one issuer",
            id="no issuer",
        ),
        pytest.param(
            {
                "INTROSPECTION_ENDPOINT": "http://localhost/i",
                "CLIENT_ID": "a",
                "CLIENT_CERT_FILE": "/run/cert",
            },
            "CLIENT_AUTH cannot be used: tls_client_auth requires an https endpoint",
            id="certificate over http",
        ),
        pytest.param({"AUDIENCE": ""}, "AUDIENCE has no valid value", id="no audience"),
    ],
)
def test_settings_that_contradict_each_other_are_a_problem(variables: dict[str, str], problem: str) -> None:
    """With contradictory settings, requests get status 503, and the secret is not printed."""
    settings = from_env(
        **COMPLETE | {"JWKS_URI": "https://k.example", "INTROSPECTION_ENDPOINT": "https://i.example"} | variables
    )

    assert any("verification cannot start" in found and problem in found for found in settings.problems)
    assert "secret-value" not in repr(settings) + str(settings.problems)


def test_an_introspection_endpoint_needs_no_issuer() -> None:
    """An introspection endpoint needs no issuer, but it does need an audience."""
    settings = from_env(VERIFY="enforce", AUDIENCE="orders", INTROSPECTION_ENDPOINT="https://idp.example/introspect")

    assert settings.problems == ()
    assert from_env(VERIFY="enforce", INTROSPECTION_ENDPOINT="https://idp.example/introspect").problems


def test_a_secret_is_not_shown() -> None:
    """A secret does not appear in the `repr`, in the settings as a dictionary, or in a message."""
    settings = from_env(CLIENT_ID="orders", CLIENT_SECRET=" s3cr3t-value ")

    shown = f"{settings!r} {dataclasses.asdict(settings)} {settings.client_secret} {settings.client_credential!r}"
    assert "s3cr3t-value" not in shown
    assert isinstance(settings.client_secret, Secret)
    assert settings.client_secret.reveal() == "s3cr3t-value"
    assert settings == from_env(CLIENT_ID="orders", CLIENT_SECRET="s3cr3t-value")
    assert settings != from_env(CLIENT_ID="orders", CLIENT_SECRET="another")


def test_any_tenant_without_a_list_is_a_warning() -> None:
    """Accepting any tenant without a list causes a warning, because every organization could call the service."""
    variables = COMPLETE | {"ISSUERS": "https://login.microsoftonline.com/{tid}/v2.0"}

    assert any("TENANTS" in warning for warning in from_env(**variables).warnings)
    assert not from_env(**variables, TENANTS="72f988bf-86f1-41af-91ab-2d7cd011db47").warnings


def test_one_audience_may_be_a_text() -> None:
    """A single audience can be a string, as with the verifier."""
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
        ("issuers", ("acme.com",)),
        ("issuers", ("https://login.microsoftonline.com/common/v2.0",)),
        ("issuers", ({"issuer": "https://idp.example", "jwks_url": "https://a.example"},)),
        ("jwks_uri", "http://idp.example"),
        ("leeway", -1),
        ("tenants", ("CONTOSO",)),
        ("required_scopes", "read"),
        ("scope_claims", ("",)),
        ("audience_claim", ""),
        ("client_secret", ""),
        ("client_secret", 1),
        ("client_auth", "none"),
    ],
)
def test_bad_value_in_code_is_an_error(name: str, value: Any) -> None:
    """An invalid value in code raises an error immediately."""
    with pytest.raises(ConfigurationError) as refused:
        Settings(**{name: value})
    assert refused.value.setting == name


@pytest.mark.parametrize(
    ("verify", "reason"), [("off", Reason.NOT_VERIFIED), ("report", Reason.RELAYED), ("enforce", Reason.RELAYED)]
)
def test_explain_knows_whether_anything_verifies(verify: Any, reason: Reason) -> None:
    """With REQUIRE_VERIFIED, nothing is relayed unless the boundary verifies tokens."""
    relays = {"destinations": ("https://a.example",), "require_verified": True}
    verifies = {"issuers": ("https://idp.example",), "audience": ("a",)}

    assert Relay(Settings(**relays, **verifies, verify=verify)).explain("https://a.example/x")[0].reason is reason
    # Verification cannot start without these settings.
    assert Relay(Settings(**relays, verify=verify)).explain("https://a.example/x")[0].reason is Reason.NOT_VERIFIED


def test_check_names_what_is_wrong() -> None:
    """``otel-token-relay check`` exits with status 1 if tokens cannot be verified."""
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
    """Nothing is fetched from an unlisted plain http issuer, and a problem contains the issuer and the setting that
    allows it.
    """
    settings = from_env(**COMPLETE | {"ISSUERS": issuer, "PLAINTEXT_ISSUERS": plaintext})

    assert settings.issuers == ((issuer,) if is_trusted else ())
    assert (settings.problems == ()) is is_trusted
    assert isinstance(build_authenticator(settings), DenyAll) is not is_trusted
    if not is_trusted:
        assert issuer in settings.problems[0]
        assert "plaintext_issuers" in settings.problems[0]


@pytest.mark.parametrize("name", ["JWKS_URI", "INTROSPECTION_ENDPOINT"])
@pytest.mark.parametrize(
    ("plaintext", "is_trusted"), [("idp:8080", True), ("idp", True), ("idp:80", False), ("", False)]
)
def test_plain_http_endpoint_must_be_listed(name: str, plaintext: str, is_trusted: bool) -> None:
    """Nothing is sent to an unlisted plain http endpoint."""
    settings = from_env(**COMPLETE | {name: "http://idp:8080/a", "PLAINTEXT_ISSUERS": plaintext})

    assert (getattr(settings, name.lower()) == "http://idp:8080/a") is is_trusted
    assert any(name in problem for problem in settings.problems) is not is_trusted
    assert not isinstance(build_authenticator(settings), DenyAll)


def test_only_the_entry_with_a_plain_http_endpoint_is_refused() -> None:
    """In a configuration file, only the issuer whose endpoint uses unlisted plain http is rejected."""
    bad = TrustedIssuer(issuer="https://a.example", jwks_uri="http://keys.example")
    with pytest.raises(ConfigurationError, match=r"https://a\.example: jwks_uri: expected an https URL"):
        Settings(issuers=(bad, "https://b.example"))
    assert Settings(issuers=(bad,), plaintext_issuers=("keys.example",)).issuers == (bad,)


def test_a_token_file_needs_one_issuer() -> None:
    """A token file requires exactly one issuer, so the token is not sent to an unintended issuer."""
    both = "https://idp.example,https://b.example"
    settings = from_env(**COMPLETE | {"ISSUERS": both, "JWKS_TOKEN_FILE": "/run/token"})

    assert isinstance(build_authenticator(settings), DenyAll)
