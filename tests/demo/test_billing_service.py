"""The demo's billing-service accepts only the tokens that are obtained for it."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tests.support.issuers import Issuer, issuing
from tests.support.tokens import claims, make_token, public_jwk

MODULE = "otel_token_relay.demo.billing_service"


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    """Run an authorization server."""
    with issuing(public_jwk("RS256", "k1")) as running:
        yield running


@pytest.fixture
def client(issuer: Issuer) -> Iterator[TestClient]:
    """Return a client of the service, whose module is imported with the demo's environment."""
    logger = logging.getLogger("otel_token_relay")
    level = logger.level
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ISSUER", issuer.url)
        patched.delitem(sys.modules, MODULE, raising=False)
        module = importlib.import_module(MODULE)
        try:
            with TestClient(module.app) as client:
                yield client
        finally:
            logger.setLevel(level)
            del sys.modules[MODULE]


def authorization(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("user", ["alice", "bob"])
def test_a_token_for_this_service_identifies_the_user(client: TestClient, issuer: Issuer, user: str) -> None:
    """The response contains the token's subject, which an exchange does not change."""
    token = make_token(claims(issuer.url, sub=user, aud="billing-service"))
    response = client.get("/invoices", headers=authorization(token))

    assert (response.status_code, response.json()) == (200, {"name": user})


def test_the_token_that_user_service_received_is_rejected(
    client: TestClient, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    """A token for user-service is rejected, and only the log contains the reason, without the token."""
    token = make_token(claims(issuer.url, aud=["user-service", "profile-service"]))
    response = client.get("/invoices", headers=authorization(token))

    assert response.status_code == 401
    assert response.headers["www-authenticate"] == 'Bearer realm="billing", error="invalid_token"'
    assert "request rejected: wrong_audience" in caplog.text
    assert token not in caplog.text


def test_a_request_without_a_token_is_rejected(client: TestClient) -> None:
    """A request without a token is rejected."""
    response = client.get("/invoices")

    assert response.status_code == 401
    assert response.headers["www-authenticate"] == 'Bearer realm="billing"'
