"""WSGI has its own behavior for rejected HEAD requests on Hypercorn and for the scopes of single views."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import flask
import httpx
import pytest

from otel_token_relay.errors import ConfigurationError
from otel_token_relay.verification import TokenVerifier
from otel_token_relay.verification.wsgi import PRINCIPAL_KEY, BearerAuthMiddleware, refuse_without
from tests.support import served
from tests.support.issuers import Issuer, bearer
from tests.support.tokens import AUDIENCE

METADATA = "https://profiles.example/.well-known/oauth-protected-resource"
OPTIONS: dict[str, Any] = {"realm": "profiles", "exclude": ("/open",), "resource_metadata": "https://profiles.example"}


@pytest.fixture
def client(issuer: Issuer) -> Iterator[httpx.Client]:
    """A plain WSGI application that requires two scopes."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        if refusal := refuse_without(environ, "profiles:read", "admin"):
            start_response(f"{refusal.status} Refused", list(refusal.headers.items()))
            return [refusal.body]
        start_response("200 OK", [])
        return [environ[PRINCIPAL_KEY].subject.encode()]

    guarded = BearerAuthMiddleware(app, TokenVerifier([issuer.url], AUDIENCE), **OPTIONS)
    with httpx.Client(transport=httpx.WSGITransport(app=guarded), base_url="http://test") as running:
        yield running


def test_refused_head_is_answered_by_hypercorn_too(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypercorn starts a response with the body's first piece, so a rejected HEAD request has an empty piece."""
    command = "{python} -m hypercorn wsgi:{app} --bind fd://{fd} --log-level warning"
    monkeypatch.setitem(served.COMMANDS, "hypercorn-wsgi", ("wsgi", command))
    app = {"wsgi": "tests.support.protected_apps:wsgi_app"}
    with served.serving("hypercorn-wsgi", app, {"ISSUER": issuer.url}) as server:
        reply = server.send_raw(b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")

        assert (reply.status, reply.body) == (401, b"")
        assert reply.headers["www-authenticate"].startswith('Bearer realm="profiles"')


def test_view_lets_in_who_has_all_scopes(issuer: Issuer, client: httpx.Client) -> None:
    """A view accepts a caller with all required scopes, even with additional scopes."""
    reply = client.get("/", headers=bearer(issuer, scope="admin other profiles:read"))

    assert (reply.status_code, reply.text) == (200, "alice")


@pytest.mark.parametrize("scope", ["profiles:read", "admin", "", "profiles:read admins"])
def test_view_refuses_a_missing_scope_with_the_challenge(issuer: Issuer, client: httpx.Client, scope: str) -> None:
    """The middleware's challenge contains the required scopes (RFC 6750, section 3.1)."""
    reply = client.get("/", headers=bearer(issuer, scope=scope))

    assert reply.status_code == 403
    assert reply.headers["www-authenticate"] == (
        'Bearer realm="profiles", error="insufficient_scope", scope="profiles:read admin", '
        f'resource_metadata="{METADATA}"'
    )
    assert reply.headers["cache-control"] == "no-store"
    assert reply.json() == {"error": "insufficient_scope"}


def test_view_on_an_excluded_path_still_asks_for_a_token(issuer: Issuer, client: httpx.Client) -> None:
    """A view on an excluded path rejects the request, because no token was verified."""
    reply = client.get("/open", headers=bearer(issuer, scope="admin profiles:read"))

    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == f'Bearer realm="profiles", resource_metadata="{METADATA}"'


def test_view_without_a_middleware_is_an_error_of_the_server() -> None:
    """A view without a middleware is a server error and never grants access."""
    with pytest.raises(ConfigurationError):
        refuse_without({}, "profiles:read")


@pytest.mark.parametrize("scope", ["a b", 'a"b', "", "a\r\nX: y"], ids=ascii)
def test_view_with_a_scope_that_would_break_the_challenge_is_an_error(issuer: Issuer, scope: str) -> None:
    """A scope that would break a view's challenge is an error even with a token that has all scopes, so the first test
    shows it.
    """
    seen: list[Exception] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        try:
            refuse_without(environ, scope)
        except ConfigurationError as error:
            seen.append(error)
        start_response("200 OK", [])
        return [b""]

    guarded = BearerAuthMiddleware(app, TokenVerifier([issuer.url], AUDIENCE))
    with httpx.Client(transport=httpx.WSGITransport(app=guarded), base_url="http://test") as client:
        client.get("/", headers=bearer(issuer))

    assert [error.setting for error in seen] == ["scopes"]  # type: ignore[attr-defined]


def test_refusal_is_a_response_of_flask(issuer: Issuer) -> None:
    """A view returns the rejection unchanged as a Flask response."""
    app = flask.Flask(__name__)

    @app.get("/")
    def view() -> Any:
        return refuse_without(flask.request.environ, "admin") or "in"

    app.wsgi_app = BearerAuthMiddleware(app.wsgi_app, TokenVerifier([issuer.url], AUDIENCE))  # type: ignore[method-assign]
    client = app.test_client()

    refused = client.get("/", headers=bearer(issuer))
    assert refused.status_code == 403
    assert refused.headers.getlist("WWW-Authenticate") == [
        'Bearer realm="api", error="insufficient_scope", scope="admin"'
    ]
    assert refused.headers.getlist("Content-Type") == ["application/json"]
    assert json.loads(refused.data) == {"error": "insufficient_scope"}
    assert client.get("/", headers=bearer(issuer, scope="admin")).text == "in"
