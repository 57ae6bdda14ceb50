"""Streamed responses from real servers end when the token of their request expires."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import tornado.httpserver
import tornado.web
import tornado.websocket
import websockets
import websockets.sync.client
from aiohttp import web
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from otel_token_relay.configured_authenticator import build_authenticator
from otel_token_relay.settings import Settings
from otel_token_relay.stream_limits import Limit, is_event_stream, seconds_left
from tests.support.enforcement import bearer, settings_for
from tests.support.issuers import Issuer, wait_until
from tests.support.protected_servers import _running, installed, run_tornado
from tests.support.served import Server
from tests.support.servers import serve_asgi, serve_wsgi

ended: list[str] = []


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A limit whose clock is ahead, so that it soon ends the stream of a token that is valid for an hour."""
    ahead = 3600 + Settings().leeway - 1.0
    monkeypatch.setattr(seconds_left, "__defaults__", (lambda: time.time() + ahead,))
    build_authenticator.cache_clear()
    ended.clear()
    yield
    build_authenticator.cache_clear()


def token_of(issuer: Issuer, seconds: float = 3600) -> dict[str, str]:
    """Return the header for a token that ends its stream after about half a second, or much later."""
    return {"Authorization": bearer(issuer, exp=time.time() + seconds - 0.5).decode().strip()}


async def _events(path: str) -> AsyncIterator[bytes]:
    """Yield events indefinitely, or yield one event and then wait indefinitely."""
    try:
        yield b"data: 1\n\n"
        while True:
            await (asyncio.Event().wait() if path == "/silent" else asyncio.sleep(0.02))
            yield b"data: 2\n\n"
    finally:
        ended.append(path)


@contextmanager
def starlette() -> Iterator[Server]:
    async def stream(request: Any) -> StreamingResponse:
        kind = "text/plain" if request.url.path == "/plain" else "Text/Event-Stream; charset=utf-8"
        return StreamingResponse(_events(request.url.path), media_type=kind)

    async def talk(connection: WebSocket) -> None:
        await connection.accept()
        try:
            async for message in connection.iter_text():
                await connection.send_text(message)
        except WebSocketDisconnect:
            pass
        finally:
            ended.append("/ws")

    with serve_asgi(
        Starlette(routes=[WebSocketRoute("/ws", talk), Route("/{name}", stream)]), ws="websockets-sansio"
    ) as port:
        yield Server("starlette", port)


def aiohttp_web() -> AbstractContextManager[Server]:
    async def handle(request: web.Request) -> web.StreamResponse:
        if request.path == "/ws":
            connection = web.WebSocketResponse()
            await connection.prepare(request)
            try:
                async for message in connection:
                    await connection.send_str(message.data)
            finally:
                ended.append("/ws")
            return connection
        kind = "text/plain" if request.path == "/plain" else "text/event-stream"
        response = web.StreamResponse(headers={"Content-Type": kind})
        await response.prepare(request)
        async for event in _events(request.path):
            await response.write(event)
        return response

    async def begin(listener: Any) -> Callable[[], Awaitable[Any]]:
        app = web.Application()
        app.router.add_route("*", "/{name:.*}", handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        return runner.cleanup

    return _running("aiohttp.web", begin)


def tornado_server() -> AbstractContextManager[Server]:
    class Stream(tornado.web.RequestHandler):
        async def get(self) -> None:
            self.set_header("Content-Type", "text/plain" if self.request.path == "/plain" else "text/event-stream")
            async for event in _events(self.request.path):
                self.write(event)
                await self.flush()

    class Socket(tornado.websocket.WebSocketHandler):
        async def on_message(self, message: str | bytes) -> None:
            with contextlib.suppress(tornado.websocket.WebSocketClosedError):
                await self.write_message(message)

        def on_close(self) -> None:
            ended.append("/ws")

    return run_tornado(tornado.web.Application([("/ws", Socket), ("/.*", Stream)]))


SERVERS: dict[str, Callable[[], AbstractContextManager[Server]]] = {
    "Starlette": starlette,
    "aiohttp.web": aiohttp_web,
    "Tornado": tornado_server,
}
every_server = pytest.mark.parametrize("serve", SERVERS.values(), ids=SERVERS)


def read_all(port: int, path: str, headers: dict[str, str]) -> bytes:
    """Return the body of a response that ends as HTTP requires, rather than with a lost connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        assert response.status == 200
        return response.read()
    finally:
        connection.close()


def begins(port: int, path: str, headers: dict[str, str], seconds: float) -> None:
    """Fail unless the response is still open after *seconds*."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            assert response.read1(100) != b""
    finally:
        connection.close()


@every_server
@pytest.mark.parametrize("path", ["/events", "/silent"])
def test_an_event_stream_ends(issuer: Issuer, serve: Any, path: str, caplog: pytest.LogCaptureFixture) -> None:
    """When the limit ends an event stream, the generator is closed, the response is complete, and no
    error is logged.
    """
    with installed(settings_for(issuer, verify_streams="exp")), serve() as server:
        body = read_all(server.port, path, token_of(issuer))
        wait_until(lambda: path in ended)

    assert body.startswith(b"data: 1")
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@every_server
def test_other_responses_last(issuer: Issuer, serve: Any) -> None:
    """Responses of other types, with unexpired tokens, or with the default settings continue."""
    with installed(settings_for(issuer, verify_streams="exp")), serve() as server:
        begins(server.port, "/plain", token_of(issuer), 1.0)
        begins(server.port, "/events", token_of(issuer, 7200), 1.0)
    build_authenticator.cache_clear()
    with installed(settings_for(issuer)), serve() as server:
        begins(server.port, "/events", token_of(issuer), 1.0)
    with installed(settings_for(issuer, "optional", verify_streams="exp")), serve() as server:
        begins(server.port, "/events", {}, 0.2)


def talk(connection: Any, is_busy: bool) -> None:
    """Send and receive messages indefinitely, or wait for a message that never arrives."""
    while is_busy:
        connection.send("a")
        connection.recv(5)
    connection.recv(10)


@every_server
@pytest.mark.parametrize("is_busy", [True, False], ids=["busy", "idle"])
def test_a_websocket_is_closed(issuer: Issuer, serve: Any, is_busy: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A WebSocket is closed with code 1008, even if no message arrives."""
    with installed(settings_for(issuer, verify_streams="exp")), serve() as server:
        url = f"ws://127.0.0.1:{server.port}/ws"
        with websockets.sync.client.connect(url, additional_headers=token_of(issuer)) as connection:
            connection.send("a")
            assert connection.recv(5) == "a"
            with pytest.raises(websockets.ConnectionClosed) as closed:
                talk(connection, is_busy)
        wait_until(lambda: "/ws" in ended)

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_an_event_stream_of_wsgi_ends_with_its_next_event(issuer: Issuer) -> None:
    """A WSGI event stream ends and is closed at its next event, because a waiting generator cannot be interrupted."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        def events() -> Iterator[bytes]:
            try:
                while True:
                    yield b"data: 1\n\n"
                    time.sleep(0.02)
            finally:
                ended.append("events")

        kind = "text/plain" if environ["PATH_INFO"] == "/plain" else "text/event-stream"
        if environ["PATH_INFO"] != "/late":
            start_response("200 OK", [("Content-Type", kind)])
            return events()

        def late() -> Iterator[bytes]:
            start_response("200 OK", [("Content-Type", kind)])
            yield from events()

        return late()

    from otel_token_relay.servers.wsgi import enclose

    with installed(settings_for(issuer, verify_streams="exp")), serve_wsgi(enclose(app), threads=True) as port:
        for path in ("/events", "/late"):
            assert read_all(port, path, token_of(issuer)).startswith(b"data: 1")
            wait_until(lambda: ended == ["events"])
            ended.clear()
        begins(port, "/plain", token_of(issuer), 1.0)


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream ; charset=utf-8", True),
        ("text/event-streams", False),
        ("application/json", False),
        ("", False),
        (None, False),
    ],
)
def test_an_event_stream_is_recognized_by_its_type(content_type: str | None, expected: bool) -> None:
    """An event stream is recognized by its media type, regardless of parameters and case."""
    assert is_event_stream(content_type) is expected


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_limit_works_on_both_loops(backend: str) -> None:
    """On both event loops, nothing is canceled before `start` or after `stop`, and the call's own errors are
    propagated.
    """
    import anyio

    async def scenario() -> None:
        limit = Limit(0.0)

        async def last() -> None:
            await anyio.sleep(0.05)
            limit.start()
            await anyio.sleep(10)

        assert await limit.run(last) == (True, None)
        other = Limit(0.1)

        async def complete() -> str:
            other.start()
            other.stop()
            await anyio.sleep(0.2)
            return "result"

        assert await other.run(complete) == (False, "result")

        async def fail() -> None:
            raise ValueError("the application's own")

        with pytest.raises(ValueError, match="own"):
            await Limit(1.0).run(fail)

    anyio.run(scenario, backend=backend)
