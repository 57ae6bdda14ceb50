"""x12: an invalid entry in the list of issuers never causes the credential to be sent to a different issuer."""

from __future__ import annotations

import pytest

from otel_token_relay import Settings
from otel_token_relay import environment_variables as env
from otel_token_relay.client_credentials import SECRET_VARIABLE

GOOD, OTHER = "https://a.example", "https://b.example"


def settings_for(issuers: str, **others: str) -> Settings:
    return Settings.from_env(
        {
            env.OTEL_PYTHON_TOKEN_RELAY_ISSUERS: issuers,
            env.OTEL_PYTHON_TOKEN_RELAY_CLIENT_ID: "user-service",
            SECRET_VARIABLE: "the-secret-of-the-service",
            **others,
        }
    )


@pytest.mark.parametrize("mistake", [f"{OTHER}?q", "http://b.example", "b example", "{tid}"])
@pytest.mark.parametrize("is_first", [False, True], ids=["last", "first"])
def test_one_of_two_issuers_is_invalid(mistake: str, is_first: bool) -> None:
    """If one of two issuers is invalid, the remaining issuer does not get the credential."""
    settings = settings_for(f"{mistake},{GOOD}" if is_first else f"{GOOD},{mistake}")
    assert [(issuer.issuer, issuer.client) for issuer in settings.trusted_issuers] == [(GOOD, None)]
    assert settings.exchange_problem is not None
    assert any("CLIENT_ID" in problem and "which issuer" in problem for problem in settings.problems)
    assert "the-secret" not in str(settings.problems)


def test_valid_issuers() -> None:
    assert [issuer.client for issuer in settings_for(f"{GOOD},{OTHER}").trusted_issuers] == [None, None]
    (only,) = settings_for(GOOD).trusted_issuers
    assert only.client is not None
