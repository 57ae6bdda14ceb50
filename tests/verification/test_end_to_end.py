"""A verifying service, a second service, and an Authlib authorization server work together."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from otel_token_relay import Settings, install, uninstall
from otel_token_relay.testing import third_party
from otel_token_relay.verification import AsyncTokenVerifier, KeysUnavailable, TokenRejected, TokenVerifier
from otel_token_relay.verification.asgi import BearerAuthMiddleware
from tests.support.authorization_server import AUDIENCE, INTROSPECTS, AuthorizationServer, authorizing
from tests.support.issuers import wait_until


@pytest.fixture(scope="module")
def server() -> Iterator[AuthorizationServer]:
    with authorizing() as running:
        yield running


def verifier_of(server: AuthorizationServer, *, introspects: bool = False, **options: Any) -> TokenVerifier:
    if introspects:
        options |= {
            "introspection_endpoint": f"{server.issuer}/introspect",
            "client_id": INTROSPECTS[0],
            "client_secret": INTROSPECTS[1],
        }
    return TokenVerifier([server.issuer], AUDIENCE, **options)


def client_of(verifier: TokenVerifier | AsyncTokenVerifier) -> TestClient:
    def show(request: Request) -> JSONResponse:
        return JSONResponse({"sub": request.user.subject, "scopes": sorted(request.user.scopes)})

    app = Starlette(routes=[Route("/", show)])
    app.add_middleware(BearerAuthMiddleware, verifier=verifier, required_scopes=("profile",))
    return TestClient(app)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def with_kid(token: str, kid: str) -> str:
    """Return the token with a different key's signature."""
    head = json.dumps({"alg": "RS256", "typ": "at+jwt", "kid": kid}).encode()
    return f"{base64.urlsafe_b64encode(head).rstrip(b'=').decode()}.{token.split('.', 1)[1]}"


@pytest.mark.parametrize("kind", [TokenVerifier, AsyncTokenVerifier], ids=["sync", "async"])
def test_user_flow(server: AuthorizationServer, kind: Any) -> None:
    """A user signs in with an authorization code and PKCE, and the service identifies the caller."""
    client = client_of(kind([server.issuer], AUDIENCE))
    token = server.log_in("alice")

    assert client.get("/", headers=bearer(token)).json() == {"sub": "alice", "scopes": ["profile"]}
    assert client.get("/", headers=bearer(token[:-4] + "AAAA")).status_code == 401
    assert client.get("/", headers=bearer(server.log_in("alice", "email"))).status_code == 403
    assert client.get("/").status_code == 401


def test_token_for_another_service_is_refused(server: AuthorizationServer) -> None:
    """A token from the same issuer and key with a different audience is rejected."""
    with pytest.raises(TokenRejected, match="wrong_audience"):
        verifier_of(server).verify(server.log_in("alice", audience="billing-service"))


def test_token_expires(server: AuthorizationServer) -> None:
    """A token is rejected once `exp` and the leeway have passed, even if it is cached."""
    ahead = 0.0
    verifier = verifier_of(server, now=lambda: time.time() + ahead, cache_seconds=1e6)
    token = server.log_in("alice")
    verifier.verify(token)

    ahead = 10**6
    with pytest.raises(TokenRejected, match="expired"):
        verifier.verify(token)


def test_rotation(server: AuthorizationServer) -> None:
    """A new key is used immediately, and tokens from the withdrawn key are rejected."""
    client = client_of(verifier_of(server))
    before = server.log_in("alice")
    assert client.get("/", headers=bearer(before)).status_code == 200

    server.rotate(keep=False)

    assert client.get("/", headers=bearer(before)).status_code == 200
    assert client.get("/", headers=bearer(server.log_in("bob"))).json()["sub"] == "bob"
    assert client.get("/", headers=bearer(before)).status_code == 401


def test_rotation_that_keeps_the_old_key(server: AuthorizationServer) -> None:
    """While both keys are published, both verify tokens, and detecting the new key costs one fetch."""
    client = client_of(verifier_of(server))
    before = server.log_in("alice")
    assert client.get("/", headers=bearer(before)).status_code == 200
    server.rotate(keep=True)
    fetches = server.count("/jwks")

    for _ in range(3):
        assert client.get("/", headers=bearer(server.log_in("bob"))).json()["sub"] == "bob"
        assert client.get("/", headers=bearer(before)).json()["sub"] == "alice"

    assert server.count("/jwks") == fetches + 1


def test_forged_keys_cost_the_server_one_fetch(server: AuthorizationServer) -> None:
    """Any number of tokens with unknown keys cost the server one request, and valid tokens are accepted."""
    client = client_of(verifier_of(server))
    token = server.log_in("alice")
    assert client.get("/", headers=bearer(token)).status_code == 200
    fetches = server.count("/jwks")

    for number in range(20):
        forged = with_kid(token, f"forged-{number}")
        assert client.get("/", headers=bearer(forged)).status_code == 401
        assert client.get("/", headers=bearer(token)).status_code == 200

    assert server.count("/jwks") == fetches + 1


def test_outage(server: AuthorizationServer) -> None:
    """While the server is down, a verifier with keys continues, and one without keys returns 503 instead of 401."""
    warm, cold = client_of(verifier_of(server)), client_of(verifier_of(server))
    token, other = server.log_in("alice"), server.log_in("bob")
    warm.get("/", headers=bearer(token))
    with server.failing():
        assert warm.get("/", headers=bearer(other)).json()["sub"] == "bob"
        refused = cold.get("/", headers=bearer(token))
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        with pytest.raises(KeysUnavailable):
            verifier_of(server, introspects=True).verify("opaque")


def test_slow_server_delays_nobody_whose_key_is_known(server: AuthorizationServer) -> None:
    """While a request waits for a new key, tokens with known keys are accepted; later, tokens with the new key are
    accepted, too.
    """
    verifier = verifier_of(server, timeout=60)
    verifier.verify(server.log_in("alice"))
    other = server.log_in("bob")
    server.rotate(keep=True)
    new = server.log_in("alice")
    fetches = server.count("/jwks")

    with ThreadPoolExecutor() as pool:
        with server.failing("/jwks", status=None, delay=60):
            waiting = pool.submit(verifier.verify, new)
            wait_until(lambda: server.count("/jwks") == fetches + 1)
            assert verifier.verify(other).subject == "bob"
            assert not waiting.done()

        assert waiting.result(60).subject == "alice"


def test_introspection_outage(server: AuthorizationServer) -> None:
    """During an outage of introspection, a token is not accepted and not reported as invalid; afterward, it is
    accepted.
    """
    ahead = 0.0
    client = client_of(verifier_of(server, introspects=True, monotonic=lambda: time.monotonic() + ahead))
    token = server.log_in("alice")
    with server.failing("/introspect", status=500):
        refused = client.get("/", headers=bearer(token))
        assert refused.status_code == 503
        assert "www-authenticate" not in refused.headers

    ahead = 2.0  # after the circuit becomes half-open
    assert client.get("/", headers=bearer(token)).json()["sub"] == "alice"


def test_opaque_token_is_introspected(server: AuthorizationServer) -> None:
    """An opaque token is introspected, and without introspection it is rejected."""
    token = server.log_in("alice", opaque=True)
    assert "." not in token

    verified = verifier_of(server, introspects=True).verify(token)
    assert (verified.subject, verified.issuer) == ("alice", server.issuer)
    assert client_of(verifier_of(server)).get("/", headers=bearer(token)).status_code == 401


@pytest.mark.parametrize("opaque", [False, True], ids=["JWT", "opaque"])
def test_revoked_token_is_refused(server: AuthorizationServer, opaque: bool) -> None:
    """A revoked token is rejected after the next introspection, at most a minute later."""
    ahead = 0.0
    verifier = verifier_of(server, introspects=True, monotonic=lambda: time.monotonic() + ahead)
    token = server.log_in("alice", opaque=opaque)
    verifier.verify(token)
    server.revoke(token)

    with pytest.raises(TokenRejected, match="inactive"):
        verifier_of(server, introspects=True).verify(token)
    ahead = 61.0
    with pytest.raises(TokenRejected, match="inactive"):
        verifier.verify(token)


@pytest.mark.parametrize("opaque", [False, True], ids=["JWT", "opaque"])
def test_token_is_relayed_for_as_long_as_it_stands(server: AuthorizationServer, opaque: bool) -> None:
    """The second service receives the token until the server revokes it, and then both services reject the token."""
    ahead = 0.0
    verifier = verifier_of(server, introspects=True, monotonic=lambda: time.monotonic() + ahead)
    token = server.log_in("alice", opaque=opaque)

    def call(request: Request) -> JSONResponse:
        httpx.get(behind.url)
        return JSONResponse({})

    app = Starlette(routes=[Route("/", call)])
    app.add_middleware(BearerAuthMiddleware, verifier=verifier)
    client = TestClient(app)
    with third_party() as behind:
        install(Settings(destinations=[behind.url], require_verified=True))
        try:
            assert client.get("/", headers=bearer(token)).status_code == 200
            server.revoke(token)
            ahead = 61.0
            assert client.get("/", headers=bearer(token)).status_code == 401
        finally:
            uninstall()

        assert [request.authorization for request in behind.requests] == [f"Bearer {token}"]
