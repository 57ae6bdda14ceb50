"""Envoy protects the destination and rejects both the caller's token and requests without a token.

Users sign in at the demo's authorization server, whose keys Envoy fetches. The server's token endpoint verifies the
caller's token and the service's credential, and issues a token for billing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import flask
import grpc
import httpx
import jwt
import pytest

from otel_token_relay import Settings, install, uninstall
from otel_token_relay.configured_exchange import build_token_source
from otel_token_relay.exchange.engine import ExchangeEngine
from tests.support import envoy_server
from tests.support.authorization_server import AuthorizationServer, authorizing
from tests.support.clients import CLIENTS, PARTIES, Client, Protocol, each_party, every_client
from tests.support.issuers import wait_until
from tests.support.loopback import Party
from tests.support.processes import RELAY, instrumentations, service, uvicorn
from tests.support.servers import get, script, serve_wsgi

SERVICE, SECRET = "user-service", "user-service-secret"
BILLING = "billing-api"


class Mesh(NamedTuple):
    """The authorization server, Envoy, and the services behind Envoy.

    Attributes:
        issuer: The authorization server.
        url: Envoy's URL.
        billing: The services behind Envoy, by protocol.
    """

    issuer: AuthorizationServer
    url: str
    billing: dict[Protocol, Party]

    def log_in(self, user: str, audience: str = SERVICE) -> str:
        return self.issuer.log_in(user, audience=audience)

    def settings(self, parameters: str = f";audience={BILLING}") -> Settings:
        """Return the settings of the service that calls billing, whose issuer publishes its endpoints as metadata."""
        return Settings(
            destinations=(self.url + parameters,),
            verify="enforce",
            issuers=(self.issuer.issuer,),
            audience=(SERVICE,),
            client_id=SERVICE,
            client_secret=SECRET,
        )


@pytest.fixture(scope="module")
def running() -> Iterator[Mesh]:
    with authorizing() as issuer, each_party() as billing:
        behind = {name: billing[name].url for name in PARTIES}
        with envoy_server.protecting(**behind, issuer=issuer.issuer, audience=BILLING) as url:
            yield Mesh(issuer, url, billing)


@pytest.fixture
def mesh(running: Mesh, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mesh]:
    """Provide the mesh without cached tokens or recorded requests, and allow exchanges more time."""
    build_token_source.cache_clear()
    monkeypatch.setitem(ExchangeEngine.__init__.__kwdefaults__, "timeout", 60.0)
    for party in running.billing.values():
        party.requests.clear()
    yield running
    build_token_source.cache_clear()


_STATUSES = {grpc.StatusCode.UNAUTHENTICATED: 401, grpc.StatusCode.PERMISSION_DENIED: 403}


def status_of(client: Client, url: str, token: str | None = None) -> int:
    """Return the status of a request, or the HTTP status that corresponds to a gRPC status."""
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    try:
        return client.call(url, headers=headers).status
    except grpc.RpcError as error:
        return _STATUSES[error.code()]


@contextmanager
def user_service(settings: Settings, call: Callable[[], object]) -> Iterator[int]:
    """Serve an application that responds with the result of a call, and yield the port."""
    app = flask.Flask("user_service")
    app.add_url_rule("/", view_func=lambda: str(call()))
    install(settings)
    try:
        with serve_wsgi(app, threads=True) as port:
            yield port
    finally:
        uninstall()


def received(party: Party) -> list[dict[str, Any]]:
    """Return the claims of the token in each request that Envoy has forwarded."""
    found = []
    for line in party.lines():
        [value] = line
        found.append(jwt.decode(value.removeprefix("Bearer "), options={"verify_signature": False}))
    return found


@every_client
def test_envoy_accepts_the_exchanged_token_of_each_client(client: Client, mesh: Mesh) -> None:
    """Envoy accepts the exchanged token from each client, and the token identifies the caller."""
    alice, bob = mesh.log_in("alice"), mesh.log_in("bob")
    behind = mesh.billing[client.protocol]
    assert status_of(client, mesh.url) == 401
    assert status_of(client, mesh.url, alice) == 403
    assert behind.requests == []
    exchanges = mesh.issuer.count("/token")

    with user_service(mesh.settings(), lambda: status_of(client, mesh.url)) as port:
        answers = [get(port, "/", token) for token in (alice, alice, bob)]
        assert [(answer.status, answer.text) for answer in answers] == [(200, "200")] * 3
        assert get(port, "/").status == 401

    claims = received(behind)
    assert [claim["sub"] for claim in claims] == ["alice", "alice", "bob"]
    assert {(claim["aud"], claim["client_id"]) for claim in claims} == {(BILLING, SERVICE)}
    assert mesh.issuer.count("/token") == exchanges + 2  # one exchange for each user


def call_with_httpx(mesh: Mesh) -> int:
    return status_of(CLIENTS[0], mesh.url)


def test_envoy_refuses_the_callers_own_token(mesh: Mesh) -> None:
    """Envoy rejects the caller's own token, which the relay sends to a destination without an audience."""
    with user_service(mesh.settings(parameters=""), lambda: call_with_httpx(mesh)) as port:
        assert get(port, "/", mesh.log_in("alice")).text == "403"


def test_without_the_token_endpoint_envoy_gets_no_token(mesh: Mesh) -> None:
    """If the token endpoint fails, Envoy receives no token at all."""
    token = mesh.log_in("alice")
    with user_service(mesh.settings(), lambda: call_with_httpx(mesh)) as port, mesh.issuer.failing("/token"):
        assert get(port, "/", token).text == "401"
    assert mesh.billing["http"].requests == []


def test_only_a_token_that_is_valid_here_is_exchanged(mesh: Mesh) -> None:
    """The service rejects a token with a wrong audience or signature before it exchanges the token."""
    token = mesh.log_in("alice")
    exchanges = mesh.issuer.count("/token")
    with user_service(mesh.settings(), lambda: call_with_httpx(mesh)) as port:
        assert get(port, "/", f"{token[:-8]}AAAAAAAA").status == 401
        assert mesh.issuer.count("/token") == exchanges
        assert get(port, "/", mesh.log_in("alice", audience=BILLING)).status == 401
        assert mesh.issuer.count("/token") == exchanges + 1  # the sign-in


PROGRAM = """
import os

import httpx
from fastapi import FastAPI

app = FastAPI()


@app.get("/async")
async def call_in_task() -> int:
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(os.environ["BILLING"])).status_code


@app.get("/sync")
def call_in_thread() -> int:
    with httpx.Client(trust_env=False) as client:
        return client.get(os.environ["BILLING"]).status_code
"""


def is_accepted(client: httpx.Client, path: str, token: str) -> bool:
    """Return whether Envoy accepts the service's call for a token that the service itself accepts."""
    response = client.get(path, headers={"Authorization": f"Bearer {token}"})
    assert response.status_code == 200
    return response.text == "200"


def test_environment_variables_alone_are_enough(mesh: Mesh, tmp_path: Path) -> None:
    """A program without relay code exchanges tokens when ``opentelemetry-instrument`` starts it."""
    (tmp_path / "program.py").write_text(PROGRAM)
    secret_file = tmp_path / "secret"
    secret_file.write_text(f"{SECRET}\n")
    settings = {
        "DESTINATIONS": f"{mesh.url};audience={BILLING}",
        "VERIFY": "enforce",
        "ISSUERS": mesh.issuer.issuer,
        "AUDIENCE": SERVICE,
        "CLIENT_ID": SERVICE,
        "CLIENT_SECRET_FILE": str(secret_file),
    }
    environ = {
        **RELAY,
        **instrumentations("fastapi", "httpx"),
        **{f"OTEL_PYTHON_TOKEN_RELAY_{name}": value for name, value in settings.items()},
        "BILLING": mesh.url,
    }
    command = script("opentelemetry-instrument"), *uvicorn("program:app", "--app-dir", str(tmp_path))
    alice, bob = mesh.log_in("alice"), mesh.log_in("bob")

    with service(*command, environ=environ) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        for path in ("/async", "/sync"):
            assert client.get(path).status_code == 401
            for token in (alice, bob):
                # On a busy machine, an exchange can take longer than a hop's timeout.
                wait_until(lambda path=path, token=token: is_accepted(client, path, token), 60)

    claims = received(mesh.billing["http"])
    assert [claim["sub"] for claim in claims] == ["alice", "bob"] * 2
    assert {(claim["aud"], claim["client_id"]) for claim in claims} == {(BILLING, SERVICE)}
