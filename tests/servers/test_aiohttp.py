"""Behavior of the aiohttp.web boundary that the shared server tests do not cover."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import WSMsgType, web
from aiohttp.test_utils import TestClient, TestServer

from otel_token_relay import Settings, current_token
from otel_token_relay.authentication import RequestPath
from otel_token_relay.configured_authenticator import build_authenticator
from otel_token_relay.servers.aiohttp import TokenRelayMiddleware
from otel_token_relay.stream_limits import seconds_left
from otel_token_relay.verification import TokenVerifier
from otel_token_relay.verification.authenticator import BearerAuthenticator
from tests.servers.connections import (
    check_an_open_connection_binds_no_token_after_uninstall,
    check_each_request_has_its_own_token,
)
from tests.support.enforcement import application_reached, bearer, settings_for
from tests.support.issuers import Issuer
from tests.support.protected_servers import HOOKED, ROWS, installed, serve_aiohttp
from tests.support.servers import SERVERS, Server
from tests.support.telemetry import recording
from tests.support.tokens import AUDIENCE

A = "token-of-a"

pytestmark = pytest.mark.usefixtures("forget")

every_server = pytest.mark.parametrize(
    "server", [row for row in SERVERS if row.name.startswith("aiohttp.web")], ids=lambda server: server.name
)


@every_server
def test_each_request_of_a_connection_has_its_own_token(server: Server) -> None:
    """The handler and the stream that it returns see the token of their own request, or none."""
    check_each_request_has_its_own_token(server)


def test_after_uninstall_an_open_connection_binds_no_token() -> None:
    """A connection that was accepted before `uninstall` binds no token after it."""
    (server,) = (row for row in SERVERS if row.name == "aiohttp.web")
    check_an_open_connection_binds_no_token_after_uninstall(server)


@pytest.mark.parametrize(
    "replaced", [None, [], ["Bearer another"], ["Bearer another", "Bearer third"]], ids=["same", "none", "one", "two"]
)
def test_an_inner_boundary_reads_credentials_that_a_middleware_replaced(replaced: list[str] | None) -> None:
    """Middlewares share a boundary if the credentials are the same; replaced ones are read again, and two lines bind no
    token.
    """
    seen: list[str | None] = []

    @web.middleware
    async def exchange(request: web.Request, handler: Callable[[web.Request], Awaitable[Any]]) -> Any:
        if replaced is None:
            return await handler(request)
        headers = request.headers.copy()
        del headers["Authorization"]
        for value in replaced:
            headers.add("Authorization", value)
        return await handler(request.clone(headers=headers))

    async def handle(request: web.Request) -> web.Response:
        token = current_token()
        seen.append(token and token.reveal())
        return web.Response()

    async def run() -> None:
        app = web.Application(
            middlewares=[TokenRelayMiddleware(Settings()), exchange, TokenRelayMiddleware(Settings())]
        )
        app.router.add_get("/", handle)
        async with TestClient(TestServer(app)) as client:
            for _ in range(2):
                async with client.get("/", headers={"Authorization": f"Bearer {A}"}) as response:
                    assert response.status == 200

    asyncio.run(run())

    expected = A if replaced is None else "another" if len(replaced) == 1 else None
    assert seen == [expected] * 2


@pytest.mark.parametrize("row", ["aiohttp.web", "aiohttp.web by hand"])
def test_encoded_slash_does_not_make_an_excluded_path(issuer: Issuer, row: str) -> None:
    """The ``/a%2Fb`` path is not treated as the excluded path ``/a/b``, because aiohttp routes it as one segment."""
    with ROWS[row](settings_for(issuer, verify_exclude=("/a/b",)), None) as server:
        assert server.send(target="/a/b").status == 200
        assert server.send(target="/a%2Fb").status == 401
        assert server.send(target="/a%2fb").status == 401


def test_request_that_cannot_be_parsed_is_no_matter_of_tokens(issuer: Issuer) -> None:
    """aiohttp rejects a malformed request with status 400 and without a challenge, which would mislead the client."""
    with HOOKED["aiohttp.web"](settings_for(issuer), None) as server:
        reply = server.send_raw(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nbroken\r\n\r\n")

    assert reply.status == 400
    assert "www-authenticate" not in reply.headers
    assert application_reached() == []


def test_by_hand_within_the_hooked_boundary_is_one_check(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The aiohttp middleware joins the surrounding boundary, so the token is checked once."""
    settings = settings_for(issuer)
    authenticator = build_authenticator(settings)
    checked: list[str] = []
    check_async = authenticator.check_async  # type: ignore[union-attr]

    async def count(reading: Any, path: RequestPath) -> Any:
        checked.append(path.routed)
        return await check_async(reading, path)

    monkeypatch.setattr(authenticator, "check_async", count)
    with installed(settings), serve_aiohttp(TokenRelayMiddleware(settings)) as server:
        assert server.send(bearer(issuer)).status == 200

    assert checked == ["/"]


def test_inner_authenticator_runs_within_the_hooked_boundary(issuer: Issuer) -> None:
    """The inner authenticator runs even if the outer boundary has a more permissive authenticator, or none."""
    authenticator = BearerAuthenticator(TokenVerifier([issuer.url], AUDIENCE), required_scopes=("admin",))
    for settings in (Settings(), settings_for(issuer)):
        with installed(settings), serve_aiohttp(TokenRelayMiddleware(Settings(), authenticator)) as server:
            assert server.send().status == 401
            assert server.send(bearer(issuer)).status == 403
            assert server.send(bearer(issuer, scope="admin")).status == 200


@pytest.mark.parametrize("row", ["aiohttp.web", "aiohttp.web by hand"])
def test_a_rejected_request_is_recorded_as_the_server_received_it(
    issuer: Issuer, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The span of a rejected request has its path as it was sent, without the query, and continues the caller's
    trace.
    """
    traceparent = b"traceparent: 00-aaaabbbbccccddddeeeeffff00001111-2222333344445555-01"
    with recording(monkeypatch) as telemetry:
        with ROWS[row](settings_for(issuer), None) as server:
            assert server.send(target="/a%2Fb?user=alice", headers=(traceparent,)).status == 401
        (span,) = telemetry.server_spans

    assert (span.name, span.attributes["url.path"]) == ("GET", "/a%2Fb")
    assert (span.attributes["http.scheme"], span.attributes["http.status_code"]) == ("http", 401)
    assert f"{span.context.trace_id:x}" == "aaaabbbbccccddddeeeeffff00001111"


@pytest.mark.parametrize("is_nested", [False, True], ids=["one boundary", "two boundaries"])
def test_a_long_lived_response_ends_when_its_token_expires(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, is_nested: bool
) -> None:
    """When the token expires, an event stream is completed and a WebSocket is closed with the code for a policy
    violation, but other responses continue.
    """
    monkeypatch.setattr(seconds_left, "__defaults__", (lambda: time.time() + 7200,))
    canceled: list[str] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        kind = "text/plain" if request.path == "/plain" else "Text/Event-Stream; charset=utf-8"
        is_socket = request.path == "/ws"
        response = web.WebSocketResponse() if is_socket else web.StreamResponse(headers={"Content-Type": kind})
        await response.prepare(request)
        if request.path == "/plain":
            await asyncio.sleep(0.01)
            await response.write(b"complete")
            return response
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 20)
        except asyncio.CancelledError:
            canceled.append(request.path)
            raise
        return response

    async def run() -> None:
        settings = settings_for(issuer, verify_streams="exp")
        app = web.Application(middlewares=[TokenRelayMiddleware(settings)] * (1 + is_nested))
        app.router.add_get("/{name}", handle)
        headers = {"Authorization": bearer(issuer).decode().strip()}
        async with TestClient(TestServer(app), headers=headers) as client:
            async with client.get("/plain") as response:
                assert await response.read() == b"complete"
            async with client.get("/events") as response:
                assert (response.status, await response.read()) == (200, b"")
            async with client.ws_connect("/ws") as connection:
                message = await connection.receive(20)
                assert (message.type, message.data) == (WSMsgType.CLOSE, 1008)

    asyncio.run(run())
    assert canceled == ["/events", "/ws"]
