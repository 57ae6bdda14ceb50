"""The demo's user-service calls three services and relays the token only to the listed ones."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient

from otel_token_relay import Settings, install
from tests.support.loopback import Party, party
from tests.support.servers import serve_wsgi

MODULE = "otel_token_relay.demo.user_service"
TOKEN = "user-service-sample-token"


class ProfileService:
    """A service that identifies a single caller and redirects to the third party."""

    def __init__(self, third_party: str) -> None:
        self.third_party = third_party
        self.requests: list[tuple[str, str | None]] = []

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        path, authorization = environ["PATH_INFO"], environ.get("HTTP_AUTHORIZATION")
        self.requests.append((path, authorization))
        if path == "/picture":
            start_response("307 Away", [("Location", f"{self.third_party}/picture")])
            return []
        if authorization != f"Bearer {TOKEN}":
            start_response("401 Unauthorized", [])
            return [b"{}"]
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({"name": "alice"}).encode()]


@pytest.fixture
def outsider() -> Iterator[Party]:
    """Run a server that is not listed as a destination."""
    with party() as one:
        yield one


@pytest.fixture
def profile_service(outsider: Party) -> ProfileService:
    """Return the profile-service that user-service calls."""
    return ProfileService(outsider.url)


@pytest.fixture
def billing(outsider: Party) -> ProfileService:
    """Return a billing service with the same responses, because an exchange changes only the token that it receives."""
    return ProfileService(outsider.url)


@contextmanager
def started(profile_service: ProfileService, outsider: Party, billing: ProfileService) -> Iterator[TestClient]:
    """Run user-service with the relay enabled for profile-service and billing-service."""
    with (
        pytest.MonkeyPatch.context() as patched,
        serve_wsgi(profile_service) as port,
        serve_wsgi(billing) as billing_port,
    ):
        patched.setenv("PROFILE_SERVICE", f"http://127.0.0.1:{port}")
        patched.setenv("BILLING_SERVICE", f"http://127.0.0.1:{billing_port}")
        patched.setenv("THIRD_PARTY", outsider.url)
        patched.delitem(sys.modules, MODULE, raising=False)
        install(Settings(destinations=[f"http://127.0.0.1:{port}", f"http://127.0.0.1:{billing_port}"]))
        module = importlib.import_module(MODULE)
        with TestClient(module.app) as client:
            yield client
            assert client.portal is not None
            client.portal.call(module.client.aclose)
        del sys.modules[MODULE]


def test_only_the_listed_service_gets_the_token_of_the_caller(
    profile_service: ProfileService, outsider: Party, billing: ProfileService
) -> None:
    """The third party gets no token in a direct request or after a redirect from the listed service."""
    with started(profile_service, outsider, billing) as client:
        response = client.get("/me", headers={"Authorization": f"Bearer {TOKEN}"})

    assert (response.status_code, response.json()) == (200, {"name": "alice", "billed": "alice"})
    assert billing.requests == [("/invoices", f"Bearer {TOKEN}")]
    assert profile_service.requests == [("/profile", f"Bearer {TOKEN}"), ("/picture", f"Bearer {TOKEN}")]
    assert [(seen.target, seen.authorization) for seen in outsider.requests] == [
        ("/weather", None),
        ("/picture", None),
    ]


def test_an_anonymous_call_after_another_users_call_sends_no_token(
    profile_service: ProfileService, outsider: Party, billing: ProfileService
) -> None:
    """An anonymous call sends no token, although all requests share a client and its connections."""
    with started(profile_service, outsider, billing) as client:
        client.get("/me", headers={"Authorization": f"Bearer {TOKEN}"})
        profile_service.requests.clear()
        response = client.get("/me")

    assert response.json() == {"name": None, "billed": None}
    assert billing.requests[1:] == [("/invoices", None)]
    assert profile_service.requests == [("/profile", None), ("/picture", None)]
    outsider.assert_saw_no(TOKEN)


def test_a_caller_whom_the_profile_service_rejects_has_no_name(
    profile_service: ProfileService, outsider: Party, billing: ProfileService
) -> None:
    """If profile-service rejects the caller, user-service still calls the other services."""
    with started(profile_service, outsider, billing) as client:
        response = client.get("/me", headers={"Authorization": "Bearer another-token"})

    assert (response.status_code, response.json()) == (200, {"name": None, "billed": None})
    assert len(outsider.requests) == 2
