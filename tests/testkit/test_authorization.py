"""The authorization server for users' tests: a process of its own, which ends with the block."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from otel_token_relay.testkit import authorization
from otel_token_relay.testkit.authorization import AuthorizationServer, running_authorization_server
from otel_token_relay.token import BearerToken, claims_of
from otel_token_relay.verification.http_client import shared_client


@pytest.fixture(scope="module")
def server() -> Iterator[AuthorizationServer]:
    with running_authorization_server() as running:
        yield running


def introspect(server: AuthorizationServer, token: BearerToken) -> dict[str, Any]:
    """Return the server's introspection response to a service."""
    response = shared_client().fetch(
        f"{server.issuer}/introspect",
        timeout=20.0,
        form=f"token={token.reveal()}".encode(),
        authorization="Basic cHJvZmlsZS1zZXJ2aWNlOnByb2ZpbGUtc2VydmljZS1zZWNyZXQ=",
    )
    found: dict[str, Any] = json.loads(response.body)
    return found


def test_the_server_runs_until_the_block_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of the tests do not apply to it."""
    monkeypatch.setenv("OTEL_PYTHON_TOKEN_RELAY_VERIFY", "invalid")
    descriptors = os.listdir("/dev/fd")
    with running_authorization_server() as running:
        url = f"{running.issuer}/.well-known/openid-configuration"
        with urllib.request.urlopen(url, timeout=20) as response:
            assert json.load(response)["issuer"] == running.issuer
        assert repr(running) == f"<AuthorizationServer {running.issuer}>"

    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=20)
    assert len(os.listdir("/dev/fd")) == len(descriptors)


def test_a_user_gets_a_token_for_the_given_audience(server: AuthorizationServer) -> None:
    """Each call signs the user in again."""
    first, second = server.token_for("alice"), server.token_for("alice")
    claims = claims_of(first.reveal())
    assert claims is not None
    assert (claims["iss"], claims["aud"], claims["scope"]) == (server.issuer, "profile-service", "profile")
    assert first != second

    other = claims_of(server.token_for("bob", audience=("a", "b"), scope="profile email").reveal())
    assert other is not None
    assert (other["aud"], other["scope"]) == (["a", "b"], "profile email")
    assert other["sub"] != claims["sub"]


def test_unknown_names_are_errors(server: AuthorizationServer) -> None:
    """The message lists the names that exist."""
    with pytest.raises(ValueError, match="unknown user; expected alice or bob"):
        server.token_for("mallory")
    with pytest.raises(ValueError, match="expected one of user-service, profile-service, billing-service"):
        server.exchanging("unknown")


def test_a_revoked_token_is_inactive(server: AuthorizationServer) -> None:
    """Other tokens of the user stay active."""
    revoked, other = server.token_for("alice"), server.token_for("alice")
    assert introspect(server, revoked)["active"] is True
    server.revoke(revoked)

    assert introspect(server, revoked) == {"active": False}
    assert introspect(server, other)["active"] is True


def test_the_settings_of_a_service_name_the_server_and_the_service() -> None:
    """A service that exchanges tokens verifies them too."""
    server = AuthorizationServer("http://127.0.0.1:1")
    verifying = {"verify": "enforce", "issuers": ("http://127.0.0.1:1",), "audience": ("billing-service",)}
    assert server.verifying("billing-service") == verifying
    assert server.exchanging("billing-service") == verifying | {
        "client_id": "billing-service",
        "client_secret": "billing-service-secret",
    }
    assert server.exchanging() == server.verifying() | {
        "client_id": "profile-service",
        "client_secret": "profile-service-secret",
    }


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message contains the command that installs it."""
    monkeypatch.setattr(authorization, "find_spec", lambda name: None if name == "joserfc" else object())

    with (
        pytest.raises(ModuleNotFoundError, match=r"pip install 'otel-token-relay\[demo\]' \(joserfc is missing\)") as e,
        running_authorization_server(),
    ):
        pass
    assert e.value.name == "joserfc"


def test_a_server_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the command that shows the reason, and nothing is left open."""
    monkeypatch.setattr(authorization.sys, "executable", "/bin/true")
    monkeypatch.setattr(authorization, "tie", lambda program, lifeline: ["/bin/true"])
    descriptors = os.listdir("/dev/fd")

    with (
        pytest.raises(RuntimeError, match="did not start: run otel-token-relay demo to see why"),
        running_authorization_server(),
    ):
        pass
    assert len(os.listdir("/dev/fd")) == len(descriptors)
