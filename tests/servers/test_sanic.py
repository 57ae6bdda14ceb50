"""Behavior of the boundary for Sanic's own server that the shared server tests do not cover."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from otel_token_relay import Settings, install, uninstall
from tests.support import apps
from tests.support.apps import NONE
from tests.support.enforcement import FaultyAuthenticator, bearer, settings_for
from tests.support.issuers import Issuer, wait_until
from tests.support.servers import TIMEOUT_SECONDS, Client, get, listening_socket, looping, raw_connection
from tests.support.telemetry import recording

sanic = pytest.importorskip("sanic")
pytestmark = pytest.mark.usefixtures("forget")

A, B = "token-of-a", "token-of-b"
called: list[str] = []
signaled: list[str] = []


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    called.clear()
    signaled.clear()
    apps.kept.clear()
    sanic.Sanic._app_registry.clear()
    yield
    sanic.Sanic._app_registry.clear()


def create_app() -> Any:
    """Return an application that records which of its functions run."""
    app = sanic.Sanic("tests", configure_logging=False)
    # Sanic compiles its methods from source once in a process, and `test_web_servers.py` covers the compiled methods.
    app.config.TOUCHUP = False

    @app.on_request
    async def on_request(request: Any) -> None:
        called.append("request middleware")

    @app.on_response
    async def on_response(request: Any, response: Any) -> None:
        called.append("response middleware")

    @app.exception(Exception)
    async def on_error(request: Any, exception: Exception) -> Any:
        called.append(f"error handler, {apps.seen()}")
        return sanic.text("from the error handler", 500)

    @app.signal("http.lifecycle.request")
    async def on_signal(request: Any) -> None:
        signaled.append(apps.seen())

    @app.route("/token", methods=["GET", "POST", "HEAD"], ignore_body=False)
    async def token(request: Any) -> Any:
        called.append("handler")
        apps.keep()
        return sanic.text(apps.seen())

    @app.get("/stream")
    async def stream(request: Any) -> None:
        response = await request.respond(content_type="text/plain")
        for _ in range(3):
            await response.send(apps.seen() + "\n")
            await asyncio.sleep(0)

    @app.get("/boom")
    async def boom(request: Any) -> None:
        raise apps.Boom

    @app.get("/peek")
    async def peek(request: Any) -> Any:
        return sanic.text(apps.peek())

    return app


@contextmanager
def serving() -> Iterator[int]:
    """Run Sanic's own server in a thread, and yield its port."""

    async def start(listener: socket.socket) -> Callable[[], Awaitable[Any]]:
        server = await create_app().create_server(sock=listener, return_asyncio_server=True, access_log=False)
        await server.startup()
        await server.start_serving()

        async def stop() -> None:
            for connection in list(server.connections):
                connection.abort()
            server.close()
            await server.wait_closed()

        return stop

    with looping() as loop, listening_socket() as listener:
        listener.setblocking(False)
        stop = asyncio.run_coroutine_threadsafe(start(listener), loop).result(TIMEOUT_SECONDS)
        try:
            yield listener.getsockname()[1]
        finally:
            asyncio.run_coroutine_threadsafe(stop(), loop).result(TIMEOUT_SECONDS)


def test_each_request_of_a_connection_has_its_own_token_until_it_ends() -> None:
    """Handlers, streams, and error handlers see the token of their own request, or none."""
    install(Settings())
    with serving() as port, closing(Client(port)) as client:
        for user in (A, None, B, None):
            assert client.call("/token", user).text == (user or NONE)
            assert client.call("/stream", user).text.split() == [user or NONE] * 3
            assert client.call("/boom", user).status == 500
        wait_until(lambda: all(entry[0] == NONE for entry in json.loads(client.call("/peek").text)))

    assert [entry for entry in called if entry.startswith("error")] == [
        f"error handler, {user}" for user in (A, NONE, B, NONE)
    ]


def test_what_precedes_the_next_request_of_a_connection_has_no_token() -> None:
    """Sanic sends signals in a connection's task before the boundary gets the next request, and they have no token."""
    install(Settings(linger=60))
    with serving() as port, closing(Client(port)) as client:
        assert [client.call("/token", user).text for user in (A, None, B)] == [A, NONE, B]

    assert signaled == [NONE] * 3


def test_the_boundary_follows_install_and_uninstall_while_the_server_runs() -> None:
    """After `install` and `uninstall`, open and new connections are handled in the same way."""
    with serving() as port, closing(Client(port)) as client:
        assert client.call("/token", A).text == NONE
        install(Settings())
        assert (client.call("/token", A).text, get(port, "/token", A).text) == (A, A)
        install(Settings(source_headers=("x-token",)))
        assert client.call("/token", A, headers=[("X-Token", B)]).text == B
        uninstall()
        assert (client.call("/token", A).text, get(port, "/token", A).text) == (NONE, NONE)


def test_a_refused_request_runs_no_code_of_the_application(issuer: Issuer) -> None:
    """A rejected request runs no handler or middleware, and the connection serves the next request."""
    install(settings_for(issuer))
    token = bearer(issuer).decode().removeprefix(" Bearer ")
    with serving() as port, closing(Client(port)) as client:
        refused = [client.call("/token"), client.call("/token", "forged"), client.call("/nowhere")]
        refused.append(client.call("/token", method="POST", body=b"x" * 100_000))
        assert called == []
        served = client.call("/token", token)

    assert [response.status for response in refused] == [401] * 4
    assert {response.headers["www-authenticate"].split()[0] for response in refused} == {"Bearer"}
    assert (served.status, served.text) == (200, token)
    assert called == ["request middleware", "handler", "response middleware"]


def test_a_rejected_request_is_recorded_as_the_server_received_it(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The span of a rejected request has its path without the query, and the connection's scheme instead of the scheme
    in a header.
    """
    install(settings_for(issuer))
    headers = [
        ("X-Forwarded-Proto", "https"),
        ("Traceparent", "00-aaaabbbbccccddddeeeeffff00001111-2222333344445555-01"),
    ]
    with recording(monkeypatch) as telemetry:
        with serving() as port:
            assert get(port, "/token?user=alice", headers=headers).status == 401
        (span,) = telemetry.server_spans

    assert (span.name, span.attributes["url.path"]) == ("GET", "/token")
    assert (span.attributes["http.scheme"], span.attributes["http.status_code"]) == ("http", 401)
    assert f"{span.context.trace_id:x}" == "aaaabbbbccccddddeeeeffff00001111"


def test_the_response_to_a_rejected_head_request_has_no_body(issuer: Issuer) -> None:
    """The response to a rejected HEAD request has the GET response's headers but no body, and the connection remains
    usable.
    """
    install(settings_for(issuer))
    with serving() as port, closing(Client(port)) as client:
        head, following = client.call("/token", method="HEAD"), client.call("/token")

    assert (head.status, head.text) == (following.status, "") == (401, "")
    assert head.headers["content-length"] == following.headers["content-length"] == str(len(following.text))


UNREADABLE = {
    "unknown expectation": b"POST /token HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: nothing\r\n\r\n",
    "no length": b"POST /token HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
    "no request line": b"GET\r\n\r\n",
    "long header": b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_request_that_cannot_be_parsed_reaches_no_code_of_the_application(
    issuer: Issuer, request_bytes: bytes
) -> None:
    """A malformed request does not run the application's middleware or error handlers, which Sanic would run for it."""
    install(settings_for(issuer))
    with serving() as port, raw_connection(port) as connection:
        connection.sendall(request_bytes)
        received = b""
        while piece := connection.recv(65536):
            received += piece

    assert received.startswith(b"HTTP/1.1 401 ")
    assert called == []


def test_without_verification_error_handlers_run_for_such_a_request() -> None:
    """Without verification, Sanic's error handlers run for a malformed request, and no token is bound."""
    install(Settings())
    with serving() as port, raw_connection(port) as connection:
        connection.sendall(UNREADABLE["unknown expectation"])
        received = connection.recv(65536)

    assert received.startswith(b"HTTP/1.1 500 ")
    assert called == ["request middleware", f"error handler, {NONE}", "response middleware"]


def test_an_authenticator_that_raises_refuses(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the authenticator raises an error, the response is 503 and no error handler of the application runs."""
    monkeypatch.setattr("otel_token_relay.runtime.build_authenticator", lambda settings: FaultyAuthenticator())
    install(settings_for(issuer))
    with serving() as port:
        response = get(port, "/token", A)

    assert response.status == 503
    assert called == []


def test_requests_that_need_no_token_are_served(issuer: Issuer) -> None:
    """Preflight requests, resource metadata, and, with optional verification, any request are served without a
    token.
    """
    install(settings_for(issuer, "optional", resource_metadata="https://mcp.example"))
    with serving() as port:
        assert get(port, "/token").status == 200
        assert get(port, "/token", "opaque").status == 401
        document = get(port, "/.well-known/oauth-protected-resource")
        assert '"resource": "https://mcp.example"' in document.text
    uninstall()
    sanic.Sanic._app_registry.clear()
    install(settings_for(issuer, verify_exclude=("/tok/*",)))
    with serving() as port:
        for headers, is_refused in (
            ({"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}, False),
            ({"Origin": "https://a.example"}, True),
        ):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("OPTIONS", "/token", headers=headers)
            assert (connection.getresponse().status == 401) is is_refused
            connection.close()
        assert get(port, "/tok/en").text == "from the error handler"
        for path in ("/tok", "/tok/../token", "/tok/%2e%2e/token", "/tok/..%2ftoken", "/tok%2Fen", "/tok//en"):
            assert get(port, path).status == 401, path


def test_an_excluded_path_is_the_path_that_sanic_routes_by(issuer: Issuer) -> None:
    """Sanic routes by the path as it was sent, so exclusions are compared with that path."""
    install(settings_for(issuer, verify_exclude=("/token",)))
    with serving() as port:
        assert get(port, "/token").status == 200
        assert get(port, "/%74oken").status == 401
        assert get(port, "//token").status == 401
        assert get(port, "/other/../token").status == 401
