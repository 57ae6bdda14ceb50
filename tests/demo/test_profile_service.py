"""The demo's profile-service verifies tokens and logs the reason for a rejection."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Iterator

import pytest
from starlette.testclient import TestClient

from otel_token_relay.demo.token_checks import tamper
from tests.support.issuers import Issuer, issuing
from tests.support.tokens import claims, make_token, public_jwk

MODULE = "otel_token_relay.demo.profile_service"
THIRD_PARTY = "http://third-party.example"


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    """Run an authorization server that reports every token as active."""
    with issuing(public_jwk("RS256", "k1")) as running:
        running.introspect = lambda token: claims(running.url, active=True)
        yield running


@pytest.fixture
def client(issuer: Issuer) -> Iterator[TestClient]:
    """Return a client of the service, whose module is imported with the demo's environment."""
    logger = logging.getLogger("otel_token_relay")
    level, introspect = logger.level, issuer.introspect
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ISSUER", issuer.url)
        patched.setenv("THIRD_PARTY", THIRD_PARTY)
        patched.setenv("CLIENT_SECRET", "profile-service-secret")
        patched.delitem(sys.modules, MODULE, raising=False)
        module = importlib.import_module(MODULE)
        try:
            with TestClient(module.app, follow_redirects=False) as client:
                yield client
        finally:
            logger.setLevel(level)
            issuer.introspect = introspect
            del sys.modules[MODULE]


def authorization(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_the_caller_is_identified_by_a_valid_token(client: TestClient, issuer: Issuer) -> None:
    """Each response contains the verified subject of its own request's token."""
    for user in ("alice", "bob"):
        response = client.get("/profile", headers=authorization(make_token(claims(issuer.url, sub=user))))

        assert (response.status_code, response.json()) == (200, {"name": user})


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda issuer: make_token(claims(issuer.url, exp=1)), "expired"),
        (lambda issuer: make_token(claims(issuer.url, aud="billing-service")), "wrong_audience"),
        (lambda issuer: make_token(claims("http://127.0.0.1:1")), "unknown_issuer"),
        (lambda issuer: tamper(make_token(claims(issuer.url))), "bad_signature"),
    ],
    ids=["expired", "another audience", "another issuer", "changed signature"],
)
def test_the_reason_for_a_rejection_is_in_the_log_only(
    client: TestClient,
    issuer: Issuer,
    build: Callable[[Issuer], str],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Only the log contains the reason for a rejection, without the token."""
    token = build(issuer)
    response = client.get("/profile", headers=authorization(token))

    assert response.status_code == 401
    assert response.headers["www-authenticate"] == 'Bearer realm="profiles", error="invalid_token"'
    assert reason not in response.text
    assert f"request rejected: {reason}" in caplog.text
    assert token not in caplog.text


def test_a_revoked_token_is_rejected(client: TestClient, issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    """A revoked token is rejected, because every token is introspected."""
    issuer.introspect = lambda token: {"active": False}
    response = client.get("/profile", headers=authorization(make_token(claims(issuer.url))))

    assert response.status_code == 401
    assert "request rejected: inactive" in caplog.text


def test_a_request_without_a_token_is_rejected_without_an_error_code(client: TestClient) -> None:
    """A rejected request without a token gets a challenge without an error code (RFC 6750, section 3.1)."""
    response = client.get("/profile")

    assert response.status_code == 401
    assert response.headers["www-authenticate"] == 'Bearer realm="profiles"'


def test_the_picture_is_at_the_third_party_for_every_caller(client: TestClient) -> None:
    """The excluded path redirects every caller to the third party without the caller's token."""
    for headers in ({}, authorization("not-a-valid-token")):
        response = client.get("/picture", headers=headers)

        assert response.status_code == 307
        assert response.headers["location"] == f"{THIRD_PARTY}/picture"
