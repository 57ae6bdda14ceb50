"""Sign a demo user in and out. This module plays the part of the browser.

Source: RFC 6749, section 4.1; RFC 7636, section 4; RFC 7009.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Sequence
from urllib.parse import parse_qs, urlsplit

import httpx

CLIENT_ID = "web"
REDIRECT_URI = "http://127.0.0.1/signed-in"
"""The URI that receives the code. No server listens there: `sign_in` reads the code from the redirect."""


def sign_in(
    issuer: str, user: str, *, client_id: str = CLIENT_ID, scope: str = "profile", resource: str | Sequence[str] = ()
) -> str:
    """Return a new access token for *user*, obtained with an authorization code and PKCE.

    Args:
        client_id: The ID of a public client.
        resource: The service or services that the token is for (RFC 8707); none for profile-service.

    Raises:
        RuntimeError: The authorization server rejected the request. The message does not quote the response.
    """
    verifier = secrets.token_urlsafe(48)
    state = secrets.token_urlsafe(16)
    # Do not use the environment's proxy for loopback.
    with httpx.Client(base_url=issuer, trust_env=False, timeout=10) as client:
        redirect = client.get(
            "/authorize",
            params={
                "response_type": "code",
                "client_id": client_id,
                "redirect_uri": REDIRECT_URI,
                "scope": scope,
                "state": state,
                "login_hint": user,
                "code_challenge": code_challenge(verifier),
                "code_challenge_method": "S256",
            },
        )
        result = parse_qs(urlsplit(redirect.headers.get("location", "")).query)
        if "code" not in result or result.get("state") != [state]:
            raise RuntimeError(f"the authorization server did not sign {user} in")
        response = client.post(
            "/token",
            data={
                "grant_type": "authorization_code",
                "client_id": client_id,
                "redirect_uri": REDIRECT_URI,
                "code": result["code"][0],
                "code_verifier": verifier,
                "resource": resource or (),
            },
        )
    if response.status_code != 200:
        raise RuntimeError(f"the authorization server did not issue a token: status {response.status_code}")
    return str(response.json()["access_token"])


def sign_out(issuer: str, token: str, *, client_id: str = CLIENT_ID) -> None:
    """Revoke an access token as the client to which it was issued.

    Raises:
        RuntimeError: The authorization server rejected the request. The message does not quote the response.
    """
    form = {"token": token, "token_type_hint": "access_token", "client_id": client_id}
    response = httpx.post(f"{issuer}/revoke", data=form, trust_env=False, timeout=10)
    if response.status_code != 200:
        raise RuntimeError(f"the authorization server did not revoke the token: status {response.status_code}")


def code_challenge(verifier: str) -> str:
    """Return the ``S256`` challenge for a verifier (RFC 7636, section 4.2)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
