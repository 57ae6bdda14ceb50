"""Each of several issuers has its own keys, audience, and introspection endpoint, and an issuer can be a name."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_token_relay.client_credentials import ClientCredential, Secret
from otel_token_relay.errors import ConfigurationError, KeysUnavailable
from otel_token_relay.issuers import TrustedIssuer
from otel_token_relay.settings import Settings
from otel_token_relay.verification import AsyncTokenVerifier, TokenRejected, TokenVerifier
from otel_token_relay.verification.authenticator import verifier_from
from tests.support.issuers import Issuer, issuing
from tests.support.tokens import AUDIENCE, claims, make_token, public_jwk


@pytest.fixture
def pair() -> Iterator[tuple[Issuer, Issuer]]:
    with issuing(public_jwk("RS256", "k1")) as first, issuing(public_jwk("RS256", "k1", name="second")) as second:
        for issuer in (first, second):
            issuer.introspect = lambda token: {"active": True}
        yield first, second


def trusted(issuer: Issuer, **changes: Any) -> TrustedIssuer:
    return TrustedIssuer(issuer=issuer.url, **{"introspection_endpoint": f"{issuer.url}/introspect"} | changes)


def tokens_of(pair: tuple[Issuer, Issuer]) -> tuple[str, str]:
    first, second = pair
    return make_token(claims(first.url)), make_token(claims(second.url), name="second")


def test_a_token_is_introspected_only_at_its_own_issuer(pair: tuple[Issuer, Issuer]) -> None:
    """A token is introspected only at its own issuer, so no other issuer sees it."""
    first, second = pair
    verifier = TokenVerifier([trusted(first), trusted(second)], AUDIENCE)
    for issuer, other, token in zip(pair, reversed(pair), tokens_of(pair), strict=True):
        assert verifier.verify(token).issuer == issuer.url
        assert verifier.verify(token).is_still_valid()
        signature = token.rpartition(".")[2]
        assert any(signature in request for request in issuer.seen)
        assert not any(signature in request for request in other.seen)


def test_only_the_issuer_with_an_endpoint_is_asked(pair: tuple[Issuer, Issuer]) -> None:
    """Only the issuer with an endpoint is used for introspection, and the other issuer's tokens are verified by
    signature.
    """
    first, second = pair
    verifier = TokenVerifier([trusted(first), second.url], AUDIENCE)
    of_first, of_second = tokens_of(pair)

    assert verifier.verify(of_second).subject == "alice"
    assert "/introspect" not in first.hits
    assert verifier.verify(of_first).subject == "alice"
    assert first.hits.count("/introspect") == 1
    assert "/introspect" not in second.hits
    first.introspect = lambda token: {"active": True, "aud": AUDIENCE, "sub": "opaque"}
    assert verifier.verify("an-opaque-token").subject == "opaque"


def test_an_opaque_token_is_posted_to_no_one_if_its_issuer_is_unknown(pair: tuple[Issuer, Issuer]) -> None:
    """An opaque token, which does not identify its issuer, is not posted to any of several issuers."""
    verifier = TokenVerifier([trusted(issuer) for issuer in pair], AUDIENCE)

    with pytest.raises(TokenRejected, match="malformed"):
        verifier.verify("an-opaque-token")
    assert not any("/introspect" in issuer.hits for issuer in pair)


def test_one_endpoint_for_several_issuers_is_an_error(pair: tuple[Issuer, Issuer]) -> None:
    """One endpoint for several issuers is an error, because each issuer would receive the other issuer's tokens."""
    with pytest.raises(ConfigurationError, match="introspection_endpoint requires exactly one issuer"):
        TokenVerifier([issuer.url for issuer in pair], AUDIENCE, introspection_endpoint=f"{pair[0].url}/introspect")


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        pytest.param({"token_use": "refresh_token"}, "wrong_type", id="Hydra's refresh token"),
        pytest.param({"token_type": "refresh_token"}, "wrong_type", id="refresh token"),
        pytest.param({"typ": "Refresh"}, "wrong_type", id="Keycloak's refresh token"),
        pytest.param({"typ": "ID"}, "wrong_type", id="Keycloak's ID token"),
        pytest.param({"token_type": "N_A"}, "wrong_type", id="no access token (RFC 8693)"),
        pytest.param({"token_use": 1}, "wrong_type", id="unreadable"),
        pytest.param({"nonce": "n"}, "wrong_type", id="ID token"),
        pytest.param({"token_use": "access_token"}, None, id="Hydra's access token"),
        pytest.param({"token_use": "access_token", "token_type": "Bearer"}, None, id="with both"),
        pytest.param({"token_type": None, "token_use": None, "typ": None}, None, id="null"),
        pytest.param({"iss": "https://evil.example"}, "unknown_issuer", id="another issuer"),
    ],
)
@pytest.mark.parametrize("is_opaque", [True, False])
def test_no_member_of_the_response_may_say_that_it_is_not_an_access_token(
    pair: tuple[Issuer, Issuer], member: dict[str, Any], reason: str | None, is_opaque: bool
) -> None:
    """An introspection response with any sign of a refresh token or ID token is rejected."""
    issuer = pair[0]
    issuer.introspect = lambda token: {"active": True, "aud": AUDIENCE, "sub": "alice"} | member
    token = "opaque" if is_opaque else tokens_of(pair)[0]
    if reason is None:
        assert TokenVerifier([trusted(issuer)], AUDIENCE).verify(token).subject == "alice"
        return

    with pytest.raises(TokenRejected) as rejected:
        TokenVerifier([trusted(issuer)], AUDIENCE).verify(token)
    assert rejected.value.reason == reason
    assert rejected.value.claim == next(iter(member))


def test_the_response_must_be_about_the_same_issuer(pair: tuple[Issuer, Issuer]) -> None:
    """An introspection response must be about the token's own issuer, even if the other issuer is also trusted."""
    first, second = pair
    first.introspect = lambda token: {"active": True, "iss": second.url}

    with pytest.raises(TokenRejected, match=r"unknown_issuer \(iss\)"):
        TokenVerifier([trusted(first), trusted(second)], AUDIENCE).verify(tokens_of(pair)[0])


def test_each_issuer_has_its_own_audience(pair: tuple[Issuer, Issuer]) -> None:
    """An issuer's audience for this service is not accepted from a different issuer."""
    first, second = pair
    verifier = TokenVerifier([TrustedIssuer(issuer=first.url, audience=("orders",)), second.url], AUDIENCE)

    assert verifier.verify(make_token(claims(first.url, aud="orders"))).subject == "alice"
    assert verifier.verify(make_token(claims(second.url), name="second")).subject == "alice"
    for token in (make_token(claims(first.url)), make_token(claims(second.url, aud="orders"), name="second")):
        with pytest.raises(TokenRejected, match="wrong_audience"):
            verifier.verify(token)


@pytest.mark.parametrize("auth", ["client_secret_basic", "client_secret_basic_plain", "client_secret_post"])
def test_the_credential_is_sent_as_configured(pair: tuple[Issuer, Issuer], auth: Any, tmp_path: Path) -> None:
    """The credential is sent as configured, and only to the issuer's own endpoint."""
    (tmp_path / "secret").write_text("s3:cr3t\n")
    client = ClientCredential(client_id="me", secret_file=str(tmp_path / "secret"), method=auth)
    TokenVerifier([trusted(pair[0], client=client), trusted(pair[1])], AUDIENCE).verify(tokens_of(pair)[0])

    (request,) = [request for request in pair[0].seen if "token=" in request]
    basic = {"client_secret_basic": "me:s3%3Acr3t", "client_secret_basic_plain": "me:s3:cr3t"}.get(auth)
    if basic is None:
        assert "client_id=me&client_secret=s3%3Acr3t" in request
        assert "Authorization" not in request
    else:
        assert f"Authorization: Basic {base64.b64encode(basic.encode()).decode()}" in request
        assert "client_secret" not in request
    assert not any("Authorization" in request for request in pair[1].seen)


def test_a_secret_that_cannot_be_read_is_an_outage(pair: tuple[Issuer, Issuer], tmp_path: Path) -> None:
    """An unreadable secret is an outage, because the token might be valid."""
    client = ClientCredential(client_id="me", secret_file=str(tmp_path / "missing"))

    with pytest.raises(KeysUnavailable):
        TokenVerifier([trusted(pair[0], client=client)], AUDIENCE).verify(tokens_of(pair)[0])


@pytest.mark.parametrize("name", ["accounts.google.com", "http://adfs.example/adfs/services/trust", "acme.com"])
def test_an_issuer_that_is_a_name_needs_its_keys_and_is_never_fetched(pair: tuple[Issuer, Issuer], name: str) -> None:
    """An issuer that is a name needs configured keys, because any computer on the network could serve fetched ones."""
    issuer = pair[0]
    verifier = TokenVerifier([name], AUDIENCE, jwks_uri=f"{issuer.url}/jwks")

    assert verifier.verify(make_token(claims(name))).issuer == name
    assert issuer.hits == ["/jwks"]
    with pytest.raises(ConfigurationError, match="requires jwks_uri"):
        TokenVerifier([name], AUDIENCE)


def test_issuers_can_be_configured_in_a_file(pair: tuple[Issuer, Issuer], tmp_path: Path) -> None:
    """Each issuer in a file has its own keys, audience, endpoint, and credential, and an invalid entry does not affect
    the other entries.
    """
    first, second = pair
    file = tmp_path / "otel.json"
    entries = [
        {
            "issuer": "acme.com",
            "jwks_uri": f"{first.url}/jwks",
            "audience": "orders",
            "introspection_endpoint": f"{first.url}/introspect",
            "client": {"id": "me", "secret": "${SECRET}"},
        },
        second.url,
        {"issuer": "https://broken.example", "jwks_uri": "http://broken.example"},
    ]
    section = {"verify": "enforce", "audience": AUDIENCE, "issuers": entries}
    file.write_text(json.dumps({"instrumentation/development": {"python": {"token_relay": section}}}))
    settings = Settings.load({"OTEL_CONFIG_FILE": str(file), "SECRET": "s3cr3t"})
    verifier = verifier_from(settings)

    assert [problem for problem in settings.problems if "https://broken.example: jwks_uri:" in problem]
    assert len(settings.problems) == 1
    assert "s3cr3t" not in repr(settings)
    assert verifier.verify(make_token(claims("acme.com", aud="orders"))).issuer == "acme.com"
    assert verifier.verify(make_token(claims(second.url), name="second")).issuer == second.url
    assert any(base64.b64encode(b"me:s3cr3t").decode() in request for request in first.seen)
    with pytest.raises(TokenRejected, match="wrong_audience"):
        verifier.verify(make_token(claims("acme.com")))


@pytest.mark.parametrize("kind", [TokenVerifier, AsyncTokenVerifier])
@pytest.mark.parametrize(
    ("wrong", "meant"), [("issuer", "issuers"), ("audiences", "audience"), ("jwks_url", "jwks_uri"), ("zzz", None)]
)
def test_an_argument_that_does_not_exist_is_explained(kind: Any, wrong: str, meant: str | None) -> None:
    """The error for an unknown argument suggests the similar argument that was probably meant."""
    with pytest.raises(TypeError) as raised:
        kind(**{wrong: "https://idp.example"})

    assert str(raised.value) == f"{kind.__name__}: unknown argument {wrong}" + (
        "" if meant is None else f"; did you mean {meant}?"
    )


def test_the_error_names_the_claim_and_has_the_values(pair: tuple[Issuer, Issuer]) -> None:
    """Both verifiers raise the same error, which contains the values as attributes and only the claim in the
    message.
    """
    issuer = pair[0]
    token = make_token(claims(issuer.url, aud="billing\x1b[31m"))
    for verify in (
        TokenVerifier([issuer.url], AUDIENCE).verify,
        lambda token: asyncio.run(AsyncTokenVerifier([issuer.url], AUDIENCE).verify(token)),
    ):
        with pytest.raises(TokenRejected) as rejected:
            verify(token)
        error = rejected.value
        assert str(error) == "token rejected: wrong_audience (aud)"
        assert (error.claim, error.expected, error.found) == ("aud", (AUDIENCE,), ("billing\\x1b[31m",))
        assert "billing" not in repr(error)


def test_settings_build_the_same_verifier(pair: tuple[Issuer, Issuer]) -> None:
    """Each option of the verifier is also a setting that builds the same verifier."""
    issuer = pair[0]
    prefix = "OTEL_PYTHON_TOKEN_RELAY_"
    variables = {
        "VERIFY": "enforce",
        "ISSUERS": "acme.com",
        "AUDIENCE": "web",
        "AUDIENCE_CLAIM": "client_id",
        "PROFILE": "generic",
        "JWKS_URI": f"{issuer.url}/jwks",
        "LEEWAY": "120",
        "SCOPE_CLAIMS": "scope,realm_access.roles",
        "INTROSPECTION_ENDPOINT": f"{issuer.url}/introspect",
        "CLIENT_ID": "me",
        "CLIENT_SECRET": "s3cr3t",
    }
    settings = Settings.from_env({prefix + name: value for name, value in variables.items()})
    payload = claims("acme.com", aud=..., realm_access={"roles": ["admin"]}, scope="read")
    payload |= {"exp": payload["iat"] - 60}

    assert settings.problems == ()
    assert settings.client_secret == Secret("s3cr3t")
    verified = verifier_from(settings).verify(make_token(payload, typ="JWT"))
    assert verified.scopes == {"read", "admin"}
    assert any("/introspect" in hit for hit in issuer.hits)
