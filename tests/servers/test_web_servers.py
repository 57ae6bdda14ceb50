"""Each server's own place: real server processes with applications that no hook for a framework covers.

`make test` runs each server once. All configurations run if FULL_MATRIX is set, as in `make matrix`.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import httpx
import pytest

from otel_token_relay import install
from otel_token_relay.installation import hook_states
from tests.support.enforcement import settings_for
from tests.support.issuers import Issuer, wait_until
from tests.support.tokens import AUDIENCE, claims, make_token
from tests.support.unknown_servers import (
    CONFIGURATIONS,
    NOTHING,
    Configuration,
    Destination,
    destination,
    unknown_server,
)

ROWS = [
    pytest.param(configuration, id=name)
    for name, configuration in CONFIGURATIONS.items()
    if os.environ.get("FULL_MATRIX") or configuration.is_short
]
TIMEOUT_SECONDS = 60
# To import all instrumentation takes most of a start, and makes no difference to what a server covers.
INSTRUMENTATION = {} if os.environ.get("FULL_MATRIX") else {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*"}


@pytest.fixture
def listed() -> Iterator[Destination]:
    """The only listed destination."""
    with destination() as running:
        yield running


class Caller:
    """A client of one server, and what the destination received for each of its requests."""

    def __init__(self, host: str, issuer: Issuer, listed: Destination, *, is_http2: bool) -> None:
        self.host = host
        self._issuer = issuer
        self._listed = listed
        self._is_http2 = is_http2
        self._numbers = count()
        self.served: dict[str, str] = {}
        self.refused: list[str] = []

    def token(self, user: str) -> str:
        """Return a valid token of a user."""
        return make_token(claims(self._issuer.url, sub=user))

    def client(self) -> httpx.Client:
        """Return a client that keeps one connection."""
        limits = httpx.Limits(max_connections=1, keepalive_expiry=60)
        return httpx.Client(
            base_url=f"http://{self.host}",
            http1=not self._is_http2,
            http2=self._is_http2,
            limits=limits,
            timeout=TIMEOUT_SECONDS,
            trust_env=False,
        )

    def get(self, client: httpx.Client, token: str | None, path: str = "/") -> int:
        """Send a request. If it is served, remember the token that all of its hops must have."""
        number = f"{next(self._numbers)}"
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        response = client.get(path, params={"n": number}, headers=headers)
        if response.status_code == 200:
            expected = NOTHING if path == "/open" else str(token)
            self.served[number] = expected
            assert response.text.split() == [expected, expected]
        else:
            self.refused.append(number)
        return response.status_code


@pytest.mark.parametrize("configuration", ROWS)
def test_a_server_covers_every_application(configuration: Configuration, issuer: Issuer, listed: Destination) -> None:
    """Every application gets its own caller's token, until the response ends, and no unverified request."""
    environ = {
        "OTEL_PYTHON_TOKEN_RELAY_VERIFY": "enforce",
        "OTEL_PYTHON_TOKEN_RELAY_ISSUERS": issuer.url,
        "OTEL_PYTHON_TOKEN_RELAY_AUDIENCE": AUDIENCE,
        "OTEL_PYTHON_TOKEN_RELAY_VERIFY_EXCLUDE": "/open",
        "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS": listed.url,
        "ECHO": listed.url,
        **INSTRUMENTATION,
    }
    with unknown_server(configuration, environ) as (host, process):
        caller = Caller(host, issuer, listed, is_http2=configuration.is_http2)
        try:
            check_one_connection(caller)
            check_concurrent_requests(caller, is_http2=configuration.is_http2)
            check_after_the_response(caller, listed)
            if configuration.has_sockets:
                check_websockets(caller, listed)
        except Exception as error:
            error.add_note(process.log)
            raise


def check_one_connection(caller: Caller) -> None:
    """On one connection, each request is served with its own token or none, or refused."""
    token = caller.token("a")
    with caller.client() as client:
        assert caller.get(client, token) == 200
        assert caller.get(client, None, "/open") == 200
        assert caller.get(client, None) == 401
        assert caller.get(client, f"{token[:-8]}AAAAAAAA") == 401
        assert caller.get(client, caller.token("b")) == 200


def check_concurrent_requests(caller: Caller, *, is_http2: bool) -> None:
    """Six requests at once are each served with their own token."""
    shared = caller.client()

    def call(user: int) -> int:
        if is_http2:
            return caller.get(shared, caller.token(f"user-{user}"))
        with caller.client() as client:
            return caller.get(client, caller.token(f"user-{user}"))

    with shared, ThreadPoolExecutor(6) as pool:
        assert [*pool.map(call, range(6))] == [200] * 6


def check_after_the_response(caller: Caller, listed: Destination) -> None:
    """The leases have ended, and no application was called for a refused request."""
    wait_until(lambda: listed.has("wait", *caller.served), TIMEOUT_SECONDS)
    assert {number: listed.received["wait", number] for number in caller.served} == caller.served
    time.sleep(0.5)  # a server ends the lease when it has sent the last byte, which the client may see before
    listed.released.set()
    wait_until(lambda: listed.has("late", *caller.served), TIMEOUT_SECONDS)
    assert {listed.received["late", number] for number in caller.served} == {NOTHING}
    assert {number for step, number in listed.received if step == "before"} == set(caller.served)


def check_websockets(caller: Caller, listed: Destination) -> None:
    """A handshake needs a token, which the conversation then uses."""
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    url = f"ws://{caller.host}/socket"
    token = caller.token("a")
    for refused in (None, f"{token[:-8]}AAAAAAAA"):
        headers = {} if refused is None else {"Authorization": f"Bearer {refused}"}
        with pytest.raises(InvalidStatus) as raised:
            connect(url, additional_headers=headers, proxy=None)
        assert raised.value.response.status_code in (401, 403)
    with connect(url, additional_headers={"Authorization": f"Bearer {token}"}, proxy=None) as socket:
        for number in ("socket-1", "socket-2"):
            socket.send(number)
            assert socket.recv(TIMEOUT_SECONDS) == token


def test_a_server_whose_attribute_was_renamed_is_reported(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says that its requests are not verified, and the state names the attribute."""
    module = types.ModuleType("daphne.server")
    module.Server = type("Server", (), {"__init__": lambda self, app: setattr(self, "app", app)})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "daphne.server", module)

    install(settings_for(issuer))

    assert hook_states()["daphne.server"] == "AttributeError: Server has no application"
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert messages == [
        "token relay cannot hook daphne.server, which is left unchanged: Server has no application",
        "token relay: requests to daphne.server servers are NOT verified",
    ]
