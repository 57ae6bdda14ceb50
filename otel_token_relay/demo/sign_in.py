"""Sign demo users in and out by sending the requests that a browser would send.

Sources: RFC 6749, section 4.1; RFC 7636, section 4; RFC 7009.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection
from typing import NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

CLIENT_ID = "web"
REDIRECT_URI = "http://127.0.0.1/signed-in"
"""The redirect URI. No server listens at this URI, because `sign_in` reads the code from the redirect."""


def sign_in(
    issuer: str, user: str, *, client_id: str = CLIENT_ID, scope: str = "profile", resource: str | Sequence[str] = ()
) -> str:
    """Sign in *user* with an authorization code and PKCE, and return a new access token.

    Args:
        client_id: The ID of a public client.
        resource: The token's audience, which is one or more services (RFC 8707). The default is profile-service.

    Raises:
        RuntimeError: The authorization server rejected the request. The error message does not quote the response.
    """
    verifier = secrets.token_urlsafe(48)
    state = secrets.token_urlsafe(16)
    query = {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": REDIRECT_URI,
        "scope": scope,
        "state": state,
        "login_hint": user,
        "code_challenge": code_challenge(verifier),
        "code_challenge_method": "S256",
    }
    redirect = _send(issuer, "GET", f"/authorize?{urlencode(query)}")
    result = parse_qs(urlsplit(redirect.location).query)
    if "code" not in result or result.get("state") != [state]:
        raise RuntimeError(f"the authorization server did not sign {user} in")
    form = {
        "grant_type": "authorization_code",
        "client_id": client_id,
        "redirect_uri": REDIRECT_URI,
        "code": result["code"][0],
        "code_verifier": verifier,
        "resource": resource or (),
    }
    response = _send(issuer, "POST", "/token", form)
    if response.status != 200:
        raise RuntimeError(f"the authorization server did not issue a token: status {response.status}")
    return str(json.loads(response.body)["access_token"])


def sign_out(issuer: str, token: str, *, client_id: str = CLIENT_ID) -> None:
    """Revoke an access token on behalf of the client to which it was issued.

    Raises:
        RuntimeError: The authorization server rejected the request. The error message does not quote the response.
    """
    form = {"token": token, "token_type_hint": "access_token", "client_id": client_id}
    response = _send(issuer, "POST", "/revoke", form)
    if response.status != 200:
        raise RuntimeError(f"the authorization server did not revoke the token: status {response.status}")


class _Response(NamedTuple):
    status: int
    location: str
    body: bytes


def _send(issuer: str, method: str, target: str, form: Mapping[str, str | Sequence[str]] | None = None) -> _Response:
    """Send one request without following redirects.

    This function uses ``http.client``, which the relay does not hook and tests do not mock.
    """
    connection = HTTPConnection(urlsplit(issuer).netloc, timeout=10)
    try:
        body = None if form is None else urlencode(form, doseq=True)
        headers = {} if form is None else {"Content-Type": "application/x-www-form-urlencoded"}
        connection.request(method, target, body, headers)
        response = connection.getresponse()
        return _Response(response.status, response.headers.get("Location", ""), response.read())
    finally:
        connection.close()


def code_challenge(verifier: str) -> str:
    """Return the ``S256`` challenge for a code verifier (RFC 7636, section 4.2)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
