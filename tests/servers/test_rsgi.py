"""The RSGI boundary binds tokens and sends error responses in place of the application."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry.context import Context, get_current

from otel_token_relay import Settings, current_token, install, uninstall
from otel_token_relay.servers.rsgi import EnclosedApp
from tests.support import apps
from tests.support.apps import NONE
from tests.support.enforcement import FaultyAuthenticator, bearer, settings_for
from tests.support.issuers import Issuer
from tests.support.processes import unused_port
from tests.support.servers import TIMEOUT_SECONDS, get, looping
from tests.support.telemetry import recording
from tests.support.unknown_servers import skip_without

pytestmark = pytest.mark.usefixtures("forget")

A, B = "token-of-a", "token-of-b"


class Headers:
    """Request headers with the method that the boundary calls (RSGI 1.6, "Headers")."""

    def __init__(self, *lines: tuple[str, str]) -> None:
        self._lines = lines

    def get_all(self, name: str) -> list[str]:
        return [value for key, value in self._lines if key == name]


class Scope:
    """A request scope (RSGI 1.6, "Scope")."""

    def __init__(self, *authorization: str, proto: str = "http", method: str = "GET", path: str = "/") -> None:
        self.headers = Headers(*(("authorization", value) for value in authorization))
        self.proto, self.method, self.path, self.scheme = proto, method, path, "https"


class Protocol:
    """A protocol that records what is sent (RSGI 1.6, "HTTP protocol" and "Websocket protocol")."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.sent.append((status, dict(headers), body))

    def close(self, status: int | None = None) -> None:
        self.sent.append(("close", status))


class Application:
    """An application that records each request's token."""

    name = "an attribute of the application"

    def __init__(self) -> None:
        self.saw: list[str] = []

    async def __call__(self, scope: Any, protocol: Any) -> str:
        self.saw.append(apps.seen())
        apps.keep()
        return "result"


@pytest.fixture(autouse=True)
def _clean() -> None:
    apps.kept.clear()


def call(app: Any, *scopes: Scope) -> list[Any]:
    """Serve the requests one after the other in one task. Return the recorded responses."""
    protocol = Protocol()

    async def serve() -> None:
        for scope in scopes:
            try:
                await app(scope, protocol)
            finally:
                assert get_current() == Context(), "a context is still attached"

    asyncio.run(serve())
    return protocol.sent


def test_each_request_has_its_own_token_until_it_ends() -> None:
    """Each request has its own token, which cannot be used after the request ends."""
    install(Settings())
    app = Application()

    call(EnclosedApp(app), Scope(f"Bearer {A}"), Scope(), Scope(f"Bearer {B}"), Scope(f"Bearer {A}", f"Bearer {B}"))

    assert app.saw == [A, NONE, B, NONE]
    assert apps.report() == "[" + ", ".join(['["none", "lease_ended"]', '["none", "no_token"]'] * 2) + "]"


def test_an_exception_ends_the_lease_and_is_propagated_unchanged() -> None:
    """An exception ends the lease and is propagated unchanged to the server."""
    install(Settings())
    error = apps.Boom()

    async def app(scope: Any, protocol: Any) -> None:
        apps.keep()
        raise error

    with pytest.raises(apps.Boom) as raised:
        call(EnclosedApp(app), Scope(f"Bearer {A}"))

    assert raised.value is error
    assert apps.report() == '[["none", "lease_ended"]]'


def test_the_boundary_follows_what_is_installed() -> None:
    """The boundary follows the installed settings, because the server keeps the wrapped application permanently."""
    app = Application()
    enclosed = EnclosedApp(app)
    both = Scope(f"Bearer {A}")
    both.headers = Headers(("authorization", f"Bearer {A}"), ("x-token", B))

    call(enclosed, both)
    install(Settings())
    call(enclosed, both)
    install(Settings(source_headers=("x-token",)))
    call(enclosed, both)
    uninstall()
    call(enclosed, both)

    assert app.saw == [NONE, A, B, NONE]


def test_attributes_and_results_are_those_of_the_application() -> None:
    """The wrapped application has the original's attributes and return values, which Granian reads."""
    install(Settings())
    app = Application()
    enclosed = EnclosedApp(app)

    assert enclosed.name == app.name
    assert asyncio.run(enclosed(Scope(), Protocol())) == "result"
    with pytest.raises(AttributeError):
        _ = enclosed.missing


def test_a_request_that_is_not_accepted_does_not_reach_the_application(issuer: Issuer) -> None:
    """A rejected HTTP request gets the error response, and a rejected handshake gets its status."""
    install(settings_for(issuer))
    app = Application()
    enclosed, token = EnclosedApp(app), bearer(issuer).decode().strip()

    get_response, head_response, forged, close = call(
        enclosed, Scope(), Scope(method="HEAD"), Scope(f"{token[:-8]}AAAAAAAA"), Scope(proto="ws")
    )
    assert app.saw == []
    assert call(enclosed, Scope(token), Scope(token, proto="ws"), Scope(path="/healthz")) == []

    status, headers, body = get_response
    assert (status, headers["WWW-Authenticate"].split()[0]) == (401, "Bearer")
    assert headers["Content-Length"] == str(len(body)) != "0"
    assert head_response == (401, headers, b"")
    assert forged[0] == 401
    assert close == ("close", 401)
    assert app.saw == [token.removeprefix("Bearer ")] * 2 + [NONE]


def test_a_rejected_request_is_recorded_as_the_server_received_it(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The span of a rejected request has its method, path, and scheme, and continues the caller's trace."""
    install(settings_for(issuer))
    scope = Scope(method="DELETE", path="/me")
    scope.headers = Headers(("traceparent", "00-aaaabbbbccccddddeeeeffff00001111-2222333344445555-01"))
    with recording(monkeypatch) as telemetry:
        call(EnclosedApp(Application()), scope)
        (span,) = telemetry.server_spans

    assert (span.name, span.attributes["url.path"]) == ("DELETE", "/me")
    assert (span.attributes["http.scheme"], span.attributes["http.status_code"]) == ("https", 401)
    assert f"{span.context.trace_id:x}" == "aaaabbbbccccddddeeeeffff00001111"


def test_requests_that_need_no_token_reach_the_application(issuer: Issuer) -> None:
    """Preflight requests, open paths, and optional verification need no token, but a handshake is never a preflight
    request.
    """
    preflight = Scope(method="OPTIONS")
    preflight.headers = Headers(("origin", "https://a.example"), ("access-control-request-method", "GET"))
    handshake = Scope(method="OPTIONS", proto="ws")
    handshake.headers = preflight.headers
    install(settings_for(issuer, resource_metadata="https://mcp.example", verify_exclude=("/public/*",)))
    app = Application()

    path = "/.well-known/oauth-protected-resource"
    document, socket, parent = call(
        EnclosedApp(app), Scope(path=path), preflight, handshake, Scope(path="/public/a"), Scope(path="/public/../a")
    )
    assert document[0] == 200
    assert b"https://mcp.example" in document[2]
    assert (socket, parent[0]) == (("close", 401), 401)
    assert app.saw == [NONE, NONE]

    uninstall()
    install(settings_for(issuer, "optional"))
    assert [sent[0] for sent in call(EnclosedApp(app), Scope(), Scope("Bearer opaque"))] == [401]
    assert app.saw == [NONE] * 3


def test_an_authenticator_that_raises_keeps_the_request_from_the_application(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the authenticator raises an error, the server responds with its own error and the application is not
    called.
    """
    monkeypatch.setattr("otel_token_relay.runtime.build_authenticator", lambda settings: FaultyAuthenticator())
    install(settings_for(issuer))
    app = Application()

    with pytest.raises(RuntimeError, match="broken"):
        call(EnclosedApp(app), Scope(f"Bearer {A}"))

    assert app.saw == []


@contextmanager
def granian(app: Any) -> Iterator[int]:
    """Run Granian in a thread, and yield its port."""
    from granian.server.embed import Server

    port = unused_port()
    with looping() as loop:
        server = Server(app, address="127.0.0.1", port=port, interface="rsgi", log_enabled=False)
        serving = asyncio.run_coroutine_threadsafe(server.serve(), loop)
        try:
            yield port
        finally:
            loop.call_soon_threadsafe(server.stop)
            serving.result(TIMEOUT_SECONDS)


def test_granian_passes_every_header_line() -> None:
    """Two credentials are ambiguous, whether Granian receives them in one header line or in two."""
    skip_without("granian")
    from tests.support.issuers import wait_until
    from tests.support.unknown_servers import is_listening

    async def app(scope: Any, protocol: Any) -> None:
        token = current_token()
        protocol.response_str(200, [], NONE if token is None else token.reveal())

    install(Settings())
    with granian(app) as port:
        wait_until(lambda: is_listening(port))
        lines = [("Authorization", f"Bearer {A}"), ("Authorization", f"Bearer {B}")]
        seen = [get(port, "/", headers=headers).text for headers in (lines[:1], lines, lines[1:], [])]

    assert seen == [A, NONE, B, NONE]
