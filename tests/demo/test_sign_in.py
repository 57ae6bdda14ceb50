"""Users can sign in and out at the demo's authorization server, and invalid server responses are rejected."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest

from otel_token_relay import BearerToken
from otel_token_relay.demo.sign_in import code_challenge, sign_in, sign_out
from tests.support.servers import serve_wsgi

SERVICE = ("profile-service", "profile-service-secret")


def introspect(issuer: str, token: str) -> dict[str, Any]:
    response = httpx.post(f"{issuer}/introspect", data={"token": token}, auth=SERVICE, trust_env=False)
    found: dict[str, Any] = response.json()
    return found


@pytest.mark.parametrize("user", ["alice", "bob"])
def test_signing_in_returns_a_new_token_of_the_user(issuer: str, user: str) -> None:
    """Each sign-in returns a new token, which is for profile-service by default."""
    first, second = sign_in(issuer, user), sign_in(issuer, user)
    for_billing = introspect(issuer, sign_in(issuer, user, resource="billing-service", scope="email"))

    assert first != second
    found = introspect(issuer, first)
    assert (found["active"], found["sub"], found["aud"]) == (True, user, "profile-service")
    assert (found["scope"], for_billing["scope"]) == ("profile", "email")
    assert for_billing["aud"] == "billing-service"
    both = introspect(issuer, sign_in(issuer, user, resource=("user-service", "profile-service")))
    assert both["aud"] == ["user-service", "profile-service"]


def test_a_token_for_another_client_has_the_lifetime_of_that_client(issuer: str) -> None:
    """A token that is issued to the kiosk expires earlier than other tokens."""
    assert BearerToken(sign_in(issuer, "alice", client_id="kiosk")).expires_at is not None
    assert (BearerToken(sign_in(issuer, "alice", client_id="kiosk")).expires_at or 0) < (
        BearerToken(sign_in(issuer, "alice")).expires_at or 0
    )


@pytest.mark.parametrize("user", ["mallory", "", "alice bob", "alice&login_hint=bob"])
def test_an_unknown_user_is_not_signed_in(issuer: str, user: str) -> None:
    """An unknown user is not signed in, and a user name cannot add parameters to the request."""
    with pytest.raises(RuntimeError, match="did not sign"):
        sign_in(issuer, user)


def test_signing_out_revokes_only_that_token(issuer: str) -> None:
    """Signing out revokes only the given token, not the user's other tokens."""
    revoked, other = sign_in(issuer, "alice"), sign_in(issuer, "alice")
    sign_out(issuer, revoked)

    assert introspect(issuer, revoked)["active"] is False
    assert introspect(issuer, other)["active"] is True


def test_a_token_of_another_client_cannot_be_revoked(issuer: str) -> None:
    """A client cannot revoke a different client's token, and the error does not contain the token."""
    token = sign_in(issuer, "alice")
    with pytest.raises(RuntimeError, match="did not revoke the token: status 4") as failed:
        sign_out(issuer, token, client_id="kiosk")

    assert token not in str(failed.value)
    assert introspect(issuer, token)["active"] is True


SECRET = "a-code-of-the-server"


def _respond(environ: Any, start_response: Any, *, state: str | None, status: str, location: bool) -> list[bytes]:
    query = parse_qs(environ["QUERY_STRING"])
    headers = []
    if environ["PATH_INFO"] == "/authorize":
        if location:
            headers = [("Location", f"/signed-in?code={SECRET}&state={state or query['state'][0]}")]
        start_response("302 Found", headers)
        return [SECRET.encode()]
    start_response(status, headers)
    return [f'{{"access_token": "{SECRET}"}}'.encode()]


@pytest.mark.parametrize(
    ("state", "status", "location", "message"),
    [
        pytest.param("another", "200 OK", True, "did not sign alice in", id="another state"),
        pytest.param(None, "200 OK", False, "did not sign alice in", id="no redirect"),
        pytest.param(None, "400 Bad Request", True, "did not issue a token: status 400", id="code rejected"),
        pytest.param(None, "503 Unavailable", True, "did not issue a token: status 503", id="unavailable"),
    ],
)
def test_a_response_that_does_not_follow_the_protocol_is_not_quoted(
    state: str | None, status: str, location: bool, message: str
) -> None:
    """A server response that violates the protocol, such as one with a wrong state, is rejected."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        return _respond(environ, start_response, state=state, status=status, location=location)

    with serve_wsgi(app) as port, pytest.raises(RuntimeError, match=message) as failed:
        sign_in(f"http://127.0.0.1:{port}", "alice")

    assert SECRET not in str(failed.value)


def test_the_challenge_is_the_one_of_the_specification() -> None:
    """The code challenge matches the example in RFC 7636, appendix B."""
    assert (
        code_challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk") == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
    )
