"""The demo's authorization server exchanges tokens as defined in RFC 8693; the client is requests-oauth2client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jwt
import pytest
import requests
from requests_oauth2client import BearerToken, ClientSecretBasic, OAuth2Client, OAuth2Error

from otel_token_relay.demo.sign_in import sign_in, sign_out

ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
REFRESH_TOKEN = "urn:ietf:params:oauth:token-type:refresh_token"


@pytest.fixture
def client_of(issuer: str) -> Iterator[Any]:
    """Return a function that creates a service's client for the token endpoint."""
    with requests.Session() as session:
        session.trust_env = False

        def client_of(name: str, secret: str | None = None) -> OAuth2Client:
            auth = ClientSecretBasic(name, secret or f"{name}-secret")
            return OAuth2Client(f"{issuer}/token", auth=auth, session=session, testing=True)

        yield client_of


def exchange(client: OAuth2Client, subject: str, **parameters: Any) -> BearerToken:
    types = {f"{name}_type": "access_token" for name in ("subject_token", "actor_token") if name in parameters}
    return client.token_exchange(
        **{"subject_token": subject, "subject_token_type": "access_token"} | types | parameters
    )


def claims_of(token: BearerToken | str) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(str(token), options={"verify_signature": False})
    return found


def error_of(call: Any) -> str:
    with pytest.raises(OAuth2Error) as refused:
        call()
    return str(refused.value.error)


@pytest.mark.parametrize(
    ("target", "audience"),
    [
        ({"audience": "profile-service"}, "profile-service"),
        ({"resource": "https://profile-service"}, "https://profile-service"),
        (
            {"audience": "profile-service", "resource": "https://user-service"},
            ["https://user-service", "profile-service"],
        ),
    ],
    ids=["audience", "resource", "both"],
)
def test_token_is_exchanged_for_a_service(client_of: Any, issuer: str, target: Any, audience: Any) -> None:
    """An exchanged token keeps its subject, identifies the service as its client, and has no refresh token."""
    subject = sign_in(issuer, "alice", resource="user-service", scope="profile email")

    issued = exchange(client_of("user-service"), subject, **target)

    assert issued.issued_token_type == ACCESS_TOKEN
    assert issued.refresh_token is None
    claims = claims_of(issued)
    assert (claims["sub"], claims["aud"], claims["client_id"]) == ("alice", audience, "user-service")
    assert claims["scope"] == "profile email"
    assert "act" not in claims


def test_scope_can_only_be_reduced(client_of: Any, issuer: str) -> None:
    """An exchange can only reduce the scope, which defaults to the subject token's scope."""
    subject, client = sign_in(issuer, "alice", scope="profile email"), client_of("user-service")

    assert claims_of(exchange(client, subject, audience="profile-service", scope="email"))["scope"] == "email"
    narrow = str(exchange(client, subject, audience="profile-service", scope="email"))
    assert error_of(lambda: exchange(client, narrow, audience="profile-service", scope="profile")) == "invalid_scope"


def test_actors_are_nested(client_of: Any, issuer: str) -> None:
    """The most recent actor is the outermost one (RFC 8693, section 4.1), and earlier actors are kept."""
    subject, first, second = sign_in(issuer, "alice"), client_of("user-service"), client_of("profile-service")

    once = str(exchange(first, subject, audience="profile-service", actor_token=str(first.client_credentials())))
    twice = str(exchange(second, once, audience="user-service", actor_token=str(second.client_credentials())))
    silent = str(exchange(first, twice, audience="profile-service"))

    nested = {"sub": "profile-service", "act": {"sub": "user-service"}}
    assert claims_of(once)["act"] == {"sub": "user-service"}
    assert claims_of(twice)["act"] == claims_of(silent)["act"] == nested
    assert claims_of(twice)["sub"] == "alice"
    introspected = requests.post(
        f"{issuer}/introspect", data={"token": twice}, auth=("user-service", "user-service-secret"), timeout=10
    ).json()
    assert introspected["act"] == nested


def test_unacceptable_requests_are_refused(client_of: Any, issuer: str) -> None:
    """An unacceptable token is rejected with `invalid_request` (RFC 8693, section 2.2.2)."""
    subject, client = sign_in(issuer, "alice"), client_of("user-service")
    revoked = sign_in(issuer, "alice")
    sign_out(issuer, revoked)
    foreign = str(client_of("profile-service").client_credentials())

    def refused(token: str = subject, /, **changes: Any) -> str:
        return error_of(lambda: exchange(client, token, **{"audience": "profile-service"} | changes))

    assert refused("made-up") == "invalid_request"
    assert refused(revoked) == "invalid_request"
    assert refused(subject_token_type="refresh_token") == "invalid_request"
    assert refused(requested_token_type=REFRESH_TOKEN) == "invalid_request"
    assert refused(actor_token="made-up") == "invalid_request"
    assert refused(actor_token=foreign) == "invalid_request"
    assert refused(audience="unknown-service") == "invalid_target"


def test_only_services_exchange_tokens(client_of: Any, issuer: str) -> None:
    """Only an authenticated service can exchange a token."""
    subject = sign_in(issuer, "alice")

    wrong = client_of("user-service", "wrong")
    assert error_of(lambda: exchange(wrong, subject, audience="profile-service")) == "invalid_client"
    response = requests.post(
        f"{issuer}/token",
        data={
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "client_id": "web",
            "subject_token": subject,
            "subject_token_type": ACCESS_TOKEN,
        },
        timeout=10,
    )
    assert response.json()["error"] == "invalid_client"
