"""x03: a token is sent only to its own issuer's token endpoint, regardless of which verifier accepted the token."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from otel_token_relay import Settings, install, use_token
from otel_token_relay.client_credentials import ClientCredential
from otel_token_relay.configured_exchange import build_token_source
from otel_token_relay.issuers import PERSONAL_TENANT, TrustedIssuer
from otel_token_relay.token import BearerToken
from tests.support.loopback import party
from tests.support.token_endpoint import SECRET, Endpoint, Verified, serving, unsigned_jwt

A, B = "https://a.example", "https://b.example"
TENANT = "11111111-2222-3333-4444-555555555555"
ANY_TENANT = "https://login.microsoftonline.com/{tid}/v2.0"
OPAQUE = "opaque-token-0123456789"


def issued_by(issuer: str) -> str:
    return issuer.replace("{tid}", TENANT)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    build_token_source.cache_clear()
    with serving() as running:
        yield running
    build_token_source.cache_clear()


def trusting(issuer: str, endpoint: Endpoint) -> TrustedIssuer:
    return TrustedIssuer(
        issuer=issuer, token_endpoint=endpoint.url, client=ClientCredential(client_id="user-service", secret=SECRET)
    )


def accepted(value: str, claims: dict[str, object]) -> BearerToken:
    """Return a token that is marked as verified, as a custom verifier does."""
    token = BearerToken(value)
    verification = Verified()
    verification.claims = claims
    token.mark_verified(verification)
    return token


def relayed(settings: Settings, url: str, token: BearerToken) -> None:
    install(settings)
    with use_token(token):
        requests.get(url)


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(accepted(OPAQUE, {"iss": B}), id="the verifier's claims"),
        pytest.param(accepted(unsigned_jwt(iss=B), {}), id="the token's claims"),
        pytest.param(accepted(unsigned_jwt(iss=7), {}), id="an issuer that is not text"),
        pytest.param(BearerToken(unsigned_jwt(iss=B)), id="unverified"),
        pytest.param(BearerToken(unsigned_jwt(iss=B, tid=TENANT)), id="unverified, with a tenant"),
    ],
)
@pytest.mark.parametrize("issuer", [A, ANY_TENANT])
def test_the_only_issuer_gets_no_token_of_another(endpoint: Endpoint, token: BearerToken, issuer: str) -> None:
    with party() as billing:
        settings = Settings(
            destinations=(f"{billing.url};audience=billing",),
            issuers=(trusting(issuer, endpoint),),
            exchange_unverified=True,
        )
        relayed(settings, billing.url, token)
        assert endpoint.forms == []
        assert billing.lines() == [[]]


@pytest.mark.parametrize("claims", [{}, {"tid": "not a tenant"}, {"tid": TENANT}, {"tid": None}], ids=str)
def test_a_token_without_an_issuer_goes_to_none_of_several(endpoint: Endpoint, claims: dict[str, object]) -> None:
    with party() as billing:
        settings = Settings(
            destinations=(f"{billing.url};audience=billing",),
            issuers=(trusting(A, endpoint), trusting(ANY_TENANT, endpoint)),
        )
        relayed(settings, billing.url, accepted(OPAQUE, claims))
        assert endpoint.forms == []
        assert billing.lines() == [[]]


@pytest.mark.parametrize("issuer", [A, ANY_TENANT])
@pytest.mark.parametrize("is_verified", [True, False], ids=["verified", "unverified"])
def test_a_token_goes_to_its_own_issuer(endpoint: Endpoint, issuer: str, is_verified: bool) -> None:
    """A token is exchanged only at its own issuer, because the other issuer has no credential of this service."""
    with party() as billing:
        other = ANY_TENANT if issuer == A else A
        settings = Settings(
            destinations=(f"{billing.url};scope=billing",),
            issuers=(trusting(issuer, endpoint), other),
            exchange_unverified=True,
        )
        value = unsigned_jwt(iss=issued_by(issuer), tid=TENANT)
        claims: dict[str, object] = {"iss": issued_by(issuer), "tid": TENANT}
        relayed(settings, billing.url, accepted(value, claims) if is_verified else BearerToken(value))
        relayed(settings, billing.url, accepted(unsigned_jwt(iss=issued_by(other), tid=TENANT), {}))
        assert [form["subject_token"] for form in endpoint.forms] == [value]


def test_a_personal_account_that_is_accepted_can_be_exchanged(endpoint: Endpoint) -> None:
    with party() as billing:
        settings = Settings(
            destinations=(f"{billing.url};scope=billing",),
            issuers=(trusting(ANY_TENANT, endpoint),),
            tenants=(PERSONAL_TENANT,),
        )
        issuer = ANY_TENANT.replace("{tid}", PERSONAL_TENANT)
        relayed(settings, billing.url, accepted(OPAQUE, {"iss": issuer, "tid": PERSONAL_TENANT}))
        relayed(settings, billing.url, accepted(OPAQUE, {"iss": issued_by(ANY_TENANT), "tid": TENANT}))
        assert [form["subject_token"] for form in endpoint.forms] == [OPAQUE]
