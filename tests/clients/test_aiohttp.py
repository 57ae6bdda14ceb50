"""Tests for aiohttp's connections, tracing, and headers; `test_all_clients.py` covers all clients."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import aiohttp
import aiohttp.web
import multidict
import pytest
import yarl

from otel_token_relay import Settings, install, use_token
from tests.support.clients import in_loop
from tests.support.loopback import PLACEHOLDER, Party, Proxy, Status, party, trust
from tests.support.rejecting_tokens import Guarded, check_one_retry
from tests.support.token_endpoint import Endpoint, Response, verified

TOKEN = "aiohttp-sample-token"
LINE = [f"Bearer {TOKEN}"]


def test_a_websocket_handshake_is_a_hop() -> None:
    """A ws:// URL matches the http:// entry, and only the WebSocket handshake carries the token."""
    seen: list[list[str]] = []

    async def respond(request: aiohttp.web.Request) -> aiohttp.web.WebSocketResponse:
        seen.append(request.headers.getall("authorization", []))
        socket = aiohttp.web.WebSocketResponse()
        await socket.prepare(request)
        await socket.close()
        return socket

    async def run() -> None:
        app = aiohttp.web.Application()
        app.router.add_get("/", respond)
        runner = aiohttp.web.AppRunner(app)
        await runner.setup()
        site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        install(Settings(destinations=[f"http://127.0.0.1:{port}"]))
        async with aiohttp.ClientSession() as session:
            for user in (TOKEN, None):
                with use_token(user):
                    socket = await session.ws_connect(f"ws://127.0.0.1:{port}/")
                    await socket.close()
        await runner.cleanup()

    in_loop(run())

    assert seen == [LINE, []]


@pytest.mark.parametrize("through_proxy", [True, False], ids=["proxied", "direct"])
@pytest.mark.parametrize("path", ["http://evil.example/x", "@evil.example/x"])
def test_an_unchecked_aiohttp_url_gets_no_token(path: str, through_proxy: bool, listed: Party, between: Proxy) -> None:
    """A request carries no token if its encoded path, which yarl does not check, is a complete URL."""
    url = yarl.URL.build(scheme="http", host="127.0.0.1", port=listed.port, path=path, encoded=True)

    async def run() -> None:
        via = between.url if through_proxy else None
        async with aiohttp.ClientSession() as session, session.get(url, proxy=via):
            pass

    with use_token(TOKEN):
        in_loop(run())

    # A proxy gets the complete URL, whose path begins with a slash.
    assert listed.lines() == [LINE if through_proxy else []]


class _UnixThroughTcp(aiohttp.TCPConnector):
    """A TCP connector whose connections lead to a Unix socket."""

    path: str

    async def _wrap_create_connection(self, *args: Any, **_: Any) -> Any:
        return await self._loop.create_unix_connection(args[0], self.path)


def _unix_through_tcp(path: str) -> aiohttp.BaseConnector:
    connector = _UnixThroughTcp()
    connector.path = path
    return connector


@pytest.mark.parametrize("connector", [aiohttp.UnixConnector, _unix_through_tcp], ids=["UnixConnector", "TCPConnector"])
def test_an_aiohttp_connector_to_a_unix_socket_gets_no_token(
    connector: Callable[[str], aiohttp.BaseConnector], served: tuple[Party, str]
) -> None:
    """A connection to a Unix socket carries no token, even if the connector's class is a TCP connector."""
    one, path = served

    async def run() -> None:
        async with aiohttp.ClientSession(connector=connector(path)) as session:
            for _ in range(2):
                async with session.get(f"{PLACEHOLDER}/x") as response:
                    assert response.status == 200

    with use_token(TOKEN):
        in_loop(run())

    assert one.lines() == [[], []]


def test_peers_of_uvloop_are_read_like_those_of_asyncio(served: tuple[Party, str]) -> None:
    """Connections of uvloop are recognized in the same way as connections of asyncio."""
    uvloop = pytest.importorskip("uvloop")
    one, path = served

    async def run(listed: Party) -> None:
        for connector in (aiohttp.UnixConnector(path), aiohttp.TCPConnector(ssl=trust())):
            url = PLACEHOLDER if isinstance(connector, aiohttp.UnixConnector) else listed.url
            async with aiohttp.ClientSession(connector=connector) as session, session.get(f"{url}/x"):
                pass

    with party(tls=True) as listed, use_token(TOKEN):
        install(Settings(destinations=[PLACEHOLDER, listed.url]))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(listed))

    assert one.lines() == [[]]
    assert listed.lines() == [LINE]


def test_aiohttp_does_not_show_the_token(one: Party) -> None:
    """The token is not visible to aiohttp's tracing callbacks, errors, or middleware on any hop."""
    told: list[object] = []

    async def tell(session: object, context: object, params: Any) -> None:
        told.append(dict(getattr(params, "headers", {})))

    trace = aiohttp.TraceConfig()
    for name in ("request_start", "request_headers_sent", "request_redirect", "request_end", "request_chunk_sent"):
        getattr(trace, f"on_{name}").append(tell)

    async def run() -> None:
        async with aiohttp.ClientSession(trace_configs=[trace]) as session:
            with pytest.raises(aiohttp.ClientResponseError) as caught:
                await session.post(one.redirecting_to(f"{one.url}/last", status=307), raise_for_status=True, data=b"x")
            told.extend([repr(caught.value), dict(caught.value.request_info.headers)])
            told.extend(dict(r.request_info.headers) for r in caught.value.history)
            await asyncio.sleep(0)

    install(Settings(destinations=[one.url]))
    one_redirect, error = Status(307, (("Location", f"{one.url}/last"),)), Status(500)
    one.answers += [one_redirect, error]
    with use_token(TOKEN):
        in_loop(run())

    assert one.lines() == [[f"Bearer {TOKEN}"]] * 2
    assert len(told) > 6
    assert TOKEN not in str(told)


@pytest.mark.parametrize("own", [["Own a"], ["Own a", "Own b"]], ids=["one line", "two lines"])
def test_a_replaced_header_is_shown_to_tracing_and_remains_on_the_request(own: list[str], listed: Party) -> None:
    """With ON_CONFLICT=replace, only the relay's line is sent, and the application sees only its own lines."""
    install(Settings(destinations=[listed.url], on_conflict="replace"))
    seen: list[list[str]] = []

    async def see(session: object, context: object, params: Any) -> None:
        seen.append(params.headers.getall("authorization"))

    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(see)

    async def run() -> None:
        headers = multidict.CIMultiDict(("Authorization", value) for value in own)
        async with (
            aiohttp.ClientSession(trace_configs=[trace]) as session,
            session.get(listed.url, headers=headers) as response,
        ):
            seen.append(response.request_info.headers.getall("authorization"))
            seen.append(headers.getall("authorization"))

    with use_token(TOKEN):
        in_loop(run())

    assert listed.lines() == [LINE]
    assert seen == [own] * 3


def test_a_connect_request_to_a_listed_proxy_carries_no_token(between: Proxy) -> None:
    """A CONNECT request, which is sent in plain text, carries no token; the request in the tunnel does."""
    with party(tls=True) as one:
        install(Settings(destinations=[one.url, between.url]))

        async def run() -> None:
            async with (
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust())) as session,
                session.get(one.url, proxy=between.url),
            ):
                pass

        with use_token(TOKEN):
            in_loop(run())

    assert [request.method for request in between.requests] == ["CONNECT"]
    assert not any(request.holds(TOKEN) for request in between.requests)
    assert one.lines() == [LINE]


def test_a_request_that_already_has_the_header_is_sent_as_it_is(listed: Party) -> None:
    """The application's own header is recognized regardless of its case and is sent unchanged."""

    async def run() -> None:
        async with aiohttp.ClientSession() as session, session.get(listed.url, headers={"aUTHORIZATION": "Own a"}):
            pass

    with use_token(TOKEN):
        in_loop(run())

    assert listed.lines() == [["Own a"]]


def test_a_rejected_request_is_sent_once_more(rejecting: Guarded) -> None:
    """The application sees only the second response, or the first response if the second token is rejected too."""
    check_one_retry("aiohttp", rejecting)


def test_no_cache_stores_a_personal_response(listed: Party) -> None:
    """A response to a request with the token is marked ``no-store``, in both forms that aiohttp keeps its headers."""

    async def get() -> tuple[list[str], list[bytes]]:
        async with aiohttp.ClientSession() as session, session.get(listed.url) as response:
            raw = [value for name, value in response.raw_headers if name.lower() == b"cache-control"]
            return response.headers.getall("Cache-Control", []), raw

    with use_token(TOKEN):
        assert in_loop(get()) == (["no-store"], [b"no-store"])
    assert in_loop(get()) == ([], [])


def test_a_request_that_waits_for_an_exchange_occupies_no_connection(numbered: Endpoint, rejecting: Guarded) -> None:
    """While the only exchange waits, a second caller's request uses the only connection."""
    may_issue, rejecting.accepts = threading.Event(), lambda token: True

    def respond(form: dict[str, str]) -> Response:
        if form["subject_token"] == "slow-alice":
            may_issue.wait(30)
        return numbered.issue_numbered(form)

    numbered.respond = respond

    async def run() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:

            async def get(caller: str) -> int:
                with use_token(verified(caller)):
                    async with session.get(rejecting.url) as response:
                        return response.status

            slow = asyncio.create_task(get("slow-alice"))
            while not numbered.forms:
                await asyncio.sleep(0.01)
            assert await asyncio.wait_for(get("bob"), 20) == 200
            may_issue.set()
            assert await slow == 200

    in_loop(run())
