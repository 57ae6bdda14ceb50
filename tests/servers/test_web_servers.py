"""Real server processes serve applications that no framework hook covers.

All configurations run if FULL_MATRIX is set, as in `make matrix`; `make test` runs each server once.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import socket
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import replace
from itertools import count
from typing import Any

import httpx
import pytest

from otel_token_relay import Settings, install, uninstall
from otel_token_relay.installation import hook_states
from otel_token_relay.patching import Patches
from otel_token_relay.runtime import Runtime
from otel_token_relay.servers import web_servers
from tests.support.apps import NONE, seen
from tests.support.enforcement import settings_for
from tests.support.issuers import Issuer, wait_until
from tests.support.servers import SERVERS, Client, get, listening_socket, looping, serve_asgi, serve_wsgi
from tests.support.tokens import AUDIENCE, claims, make_token
from tests.support.unknown_servers import (
    APPS,
    CONFIGURATIONS,
    NOTHING,
    Configuration,
    Destination,
    destination,
    skip_without,
    unknown_server,
)

ROWS = [
    pytest.param(configuration, id=name)
    for name, configuration in CONFIGURATIONS.items()
    if os.environ.get("FULL_MATRIX") or configuration.is_short
]
TIMEOUT_SECONDS = 60
# Importing all instrumentation takes most of a start and does not affect what a server covers.
INSTRUMENTATION = {} if os.environ.get("FULL_MATRIX") else {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*"}


@pytest.fixture
def listed() -> Iterator[Destination]:
    """The only destination that is listed in the settings."""
    with destination() as running:
        yield running


class Caller:
    """A server's client that records what the destination received for each request."""

    def __init__(self, host: str, issuer: Issuer, listed: Destination, *, is_http2: bool) -> None:
        self.host = host
        self._issuer = issuer
        self._listed = listed
        self._is_http2 = is_http2
        self._numbers = count()
        self.served: dict[str, str] = {}
        self.refused: list[str] = []

    def token(self, user: str) -> str:
        """Return a valid token for a user."""
        return make_token(claims(self._issuer.url, sub=user))

    def client(self) -> httpx.Client:
        """Return a client that keeps one connection open."""
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
        """Send a request. If the request is served, record the token that all its hops must have."""
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


def variables(issuer: Issuer, listed: Destination) -> dict[str, str]:
    """Return the settings of a server that relays tokens and enforces verification."""
    return {
        "OTEL_PYTHON_TOKEN_RELAY_VERIFY": "enforce",
        "OTEL_PYTHON_TOKEN_RELAY_ISSUERS": issuer.url,
        "OTEL_PYTHON_TOKEN_RELAY_AUDIENCE": AUDIENCE,
        "OTEL_PYTHON_TOKEN_RELAY_VERIFY_EXCLUDE": "/open",
        "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS": listed.url,
        "ECHO": listed.url,
        **INSTRUMENTATION,
    }


@pytest.mark.parametrize("configuration", ROWS)
def test_a_server_covers_every_application(configuration: Configuration, issuer: Issuer, listed: Destination) -> None:
    """Each server gives every application its own caller's token until the response ends, and rejects unverified
    requests.
    """
    with unknown_server(configuration, variables(issuer, listed)) as (host, process):
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
    """Check that each request on one connection is served with its own token or none, or is rejected."""
    token = caller.token("a")
    with caller.client() as client:
        assert caller.get(client, token) == 200
        assert caller.get(client, None, "/open") == 200
        assert caller.get(client, None) == 401
        assert caller.get(client, f"{token[:-8]}AAAAAAAA") == 401
        assert caller.get(client, caller.token("b")) == 200


def check_concurrent_requests(caller: Caller, *, is_http2: bool) -> None:
    """Check that six concurrent requests are each served with their own token."""
    shared = caller.client()

    def call(user: int) -> int:
        if is_http2:
            return caller.get(shared, caller.token(f"user-{user}"))
        with caller.client() as client:
            return caller.get(client, caller.token(f"user-{user}"))

    with shared, ThreadPoolExecutor(6) as pool:
        assert [*pool.map(call, range(6))] == [200] * 6


def check_after_the_response(caller: Caller, listed: Destination) -> None:
    """Check that all leases have ended and that no rejected request called an application."""
    wait_until(lambda: listed.has("wait", *caller.served), TIMEOUT_SECONDS)
    assert {number: listed.received["wait", number] for number in caller.served} == caller.served
    time.sleep(0.5)  # a server ends the lease after it sends the last byte, which the client can receive earlier
    listed.released.set()
    wait_until(lambda: listed.has("late", *caller.served), TIMEOUT_SECONDS)
    assert {listed.received["late", number] for number in caller.served} == {NOTHING}
    assert {number for step, number in listed.received if step == "before"} == set(caller.served)


def check_websockets(caller: Caller, listed: Destination) -> None:
    """Check that a WebSocket handshake requires a token, which its messages then use."""
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
    """If a server lacks the hooked attribute, the hook's state contains its name, and the log reports unverified
    requests.
    """
    module = types.ModuleType("daphne.server")
    module.Server = type("Server", (), {"__init__": lambda self, app: setattr(self, "app", app)})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "daphne.server", module)

    install(settings_for(issuer))

    assert hook_states()["daphne.server"] == "AttributeError: Server has no application"
    first, second = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert first == "token relay cannot hook daphne.server, which remains unchanged: Server has no application"
    assert "requests to daphne.server " in second


LATE = {
    "uvicorn": "uvicorn h11",
    "uvicorn --workers": "uvicorn --workers",
    "hypercorn": "hypercorn asyncio",
    "hypercorn wsgi": "hypercorn wsgi",
    "daphne": "daphne",
    "granian asgi": "granian asgi",
    "granian wsgi": "granian wsgi",
    "granian rsgi": "granian rsgi",
    "gunicorn sync": "gunicorn sync",
    "gunicorn gthread --preload": "gunicorn gthread --preload",
    "gunicorn gevent": "gunicorn gevent",
    "gunicorn asgi": "gunicorn asgi",
    "gunicorn uvicorn_worker": "gunicorn uvicorn_worker",
    "waitress": "waitress-serve",
    "sanic": "sanic --workers",
}
SHORT_LATE = ("uvicorn",)


@pytest.mark.parametrize("name", LATE if os.environ.get("FULL_MATRIX") else SHORT_LATE)
def test_an_application_that_installs_the_package_itself_is_covered(
    issuer: Issuer, listed: Destination, name: str
) -> None:
    """An application that installs the package itself, without the launcher, is covered, even while the server imports
    it.
    """
    configuration = CONFIGURATIONS[LATE[name]]
    late = replace(configuration, command=configuration.command.replace(APPS, "tests.support.late_apps"))
    with unknown_server(late, variables(issuer, listed), launcher=()) as (host, process):
        caller = Caller(host, issuer, listed, is_http2=False)
        try:
            check_one_connection(caller)
            check_after_the_response(caller, listed)
        except Exception as error:
            error.add_note(process.log)
            raise


# These servers run in a thread and start before the package is installed.


async def show_asgi(scope: Any, receive: Any, send: Any) -> None:
    """Respond with the caller's token."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": seen().encode()})


def show_wsgi(environ: Any, start_response: Any) -> list[bytes]:
    """Respond with the caller's token."""
    body = seen().encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


@contextmanager
def in_thread(run: Callable[[], Any], stop: Callable[[], Any]) -> Iterator[None]:
    """Run a server in a thread."""
    thread = threading.Thread(target=contextvars.Context().run, args=(run,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join(TIMEOUT_SECONDS)


@contextmanager
def serve_waitress() -> Iterator[int]:
    """Serve with waitress."""
    skip_without("waitress")
    import waitress

    server = waitress.create_server(show_wsgi, host="127.0.0.1", port=0)

    def run() -> None:
        with suppress(OSError):  # the server waits for a socket that is closed in the meantime
            server.run()

    with in_thread(run, server.close):
        yield server.effective_port


@contextmanager
def serve_werkzeug() -> Iterator[int]:
    """Serve with Werkzeug."""
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, show_wsgi, threaded=True)
    with in_thread(server.serve_forever, server.shutdown):
        yield server.server_port
    server.server_close()


@contextmanager
def serve_cheroot() -> Iterator[int]:
    """Serve with Cheroot."""
    skip_without("cheroot")
    from cheroot.wsgi import Server

    server = Server(("127.0.0.1", 0), show_wsgi)
    server.prepare()
    with in_thread(server.serve, server.stop):
        yield server.bind_addr[1]


@contextmanager
def serve_tornado() -> Iterator[int]:
    """Run a Tornado server with a callback."""
    from tornado.httpserver import HTTPServer
    from tornado.httputil import HTTPHeaders, ResponseStartLine

    def show(request: Any) -> None:
        body = seen().encode()
        headers = HTTPHeaders({"Content-Length": str(len(body))})
        request.connection.write_headers(ResponseStartLine("HTTP/1.1", 200, "OK"), headers, body)
        request.connection.finish()

    async def start(listener: socket.socket) -> HTTPServer:
        server = HTTPServer(show)
        server.add_sockets([listener])
        return server

    async def stop(server: HTTPServer) -> None:
        server.stop()
        await server.close_all_connections()

    with looping() as loop, listening_socket() as listener:
        listener.setblocking(False)
        server = asyncio.run_coroutine_threadsafe(start(listener), loop).result(TIMEOUT_SECONDS)
        try:
            yield listener.getsockname()[1]
        finally:
            asyncio.run_coroutine_threadsafe(stop(server), loop).result(TIMEOUT_SECONDS)


def serve_row(name: str) -> AbstractContextManager[int]:
    """Run a server from the table, which responds to ``/token`` with the caller's token."""
    (row,) = (row for row in SERVERS if row.name == name)
    return row.serve(Settings(), {})


RUNNING: dict[str, Callable[[], AbstractContextManager[int]]] = {
    "uvicorn h11": lambda: serve_asgi(show_asgi),
    "uvicorn httptools": lambda: serve_asgi(show_asgi, "uvicorn-httptools-asyncio"),
    "hypercorn": lambda: serve_asgi(show_asgi, "hypercorn"),
    "wsgiref": lambda: serve_wsgi(show_wsgi, threads=True),
    "waitress": serve_waitress,
    "werkzeug": serve_werkzeug,
    "cheroot": serve_cheroot,
    "aiohttp web.Server": lambda: serve_row("aiohttp.web Server"),
    "tornado": lambda: serve_row("tornado"),
    "tornado callback": serve_tornado,
}


@pytest.mark.parametrize("name", RUNNING)
def test_a_running_server_follows_the_settings_in_force(issuer: Issuer, name: str) -> None:
    """New connections, and those that were accepted while the package was installed, follow the current settings."""
    token = make_token(claims(issuer.url))
    both = [("X-Token", "token-of-b")]
    with RUNNING[name]() as port, closing(Client(port)) as kept:
        assert get(port, "/token", token).text == NONE
        install(Settings())
        assert get(port, "/token", token).text == token
        assert kept.call("/token", token).text == token
        install(settings_for(issuer))
        assert [kept.call("/token").status, get(port, "/token").status] == [401, 401]
        assert [kept.call("/token", token).text, get(port, "/token", token).text] == [token, token]
        install(Settings(source_headers=("x-token",)))
        assert kept.call("/token", token, headers=both).text == get(port, "/token", headers=both).text == "token-of-b"
        uninstall()
        assert kept.call("/token", token).text == get(port, "/token", token).text == NONE
        install(settings_for(issuer))
        # Tornado chooses the receiver of a connection's next request when it starts to wait for that request.
        assert kept.call("/token").status in ((200, 401) if name == "tornado callback" else (401,))
        assert [kept.call("/token").status, get(port, "/token").status] == [401, 401]
        assert kept.call("/token", token).text == get(port, "/token", token).text == token


def test_granians_applications_are_enclosed_before_they_are_adapted() -> None:
    """Granian's own functions receive the enclosed application and return their own result."""
    module = types.ModuleType("granian.server.mp")
    for name in web_servers._GRANIAN_ADAPTERS:
        setattr(module, name, lambda callback, target: (callback, target))
    patches = Patches()
    web_servers.patch_granian(module, Runtime(Settings()), patches)

    def app(*_: object) -> None: ...

    for name in web_servers._GRANIAN_ADAPTERS:
        enclosed, target = getattr(module, name)(app, "target")
        assert (type(enclosed).__name__, target) == ("EnclosedApp", "target")
    patches.undo()
    assert getattr(module, name)(app, "target") == (app, "target")
