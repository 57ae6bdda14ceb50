"""The forms of both grants have the parameters of their specifications, and nothing else."""

from __future__ import annotations

import pytest

from otel_token_relay.exchange.grants import Request

SUBJECT, ACTOR = "the-callers-token", "the-services-token"


def test_the_form_of_token_exchange_has_the_parameters_of_rfc_8693() -> None:
    """Both types are that of an access token. What is not asked for is not sent."""
    request = Request(audience="billing-api", resource="https://billing", scope="invoices:read")

    assert dict(request.form(SUBJECT, ACTOR)) == {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token": SUBJECT,
        "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "actor_token": ACTOR,
        "actor_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "audience": "billing-api",
        "resource": "https://billing",
        "scope": "invoices:read",
    }
    assert {name for name, _ in Request(scope="a").form(SUBJECT)} == {
        "grant_type",
        "subject_token",
        "subject_token_type",
        "requested_token_type",
        "scope",
    }


@pytest.mark.parametrize(
    ("request_", "scope"),
    [
        (Request("on-behalf-of", scope="api://billing/invoices.read"), "api://billing/invoices.read"),
        (Request("on-behalf-of", audience="api://billing"), "api://billing/.default"),
        (Request("on-behalf-of", resource="api://billing"), "api://billing/.default"),
    ],
)
def test_the_form_of_on_behalf_of_has_the_parameters_of_entra(request_: Request, scope: str) -> None:
    """Entra knows an audience only as a part of a scope."""
    assert dict(request_.form(SUBJECT)) == {
        "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "assertion": SUBJECT,
        "requested_token_use": "on_behalf_of",
        "scope": scope,
    }


def test_the_expected_audiences_are_those_asked_for() -> None:
    """Without one, any audience is acceptable."""
    assert Request(scope="a").audiences == frozenset()
    assert Request(scope="a", expected=("x",)).audiences == frozenset()
    assert Request(audience="a", resource="b", expected=("c",)).audiences == {"a", "b", "c"}
