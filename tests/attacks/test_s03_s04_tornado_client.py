"""s03, s04: the token does not affect whether Tornado sends a request, and leaves no objects behind."""

from __future__ import annotations

import asyncio
import functools
import gc
import socket
import sys
import types
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import tornado
from tornado import simple_httpclient
from tornado.httpclient import HTTPRequest
from tornado.httputil import HTTPHeaders
from tornado.netutil import Resolver
from tornado.simple_httpclient import SimpleAsyncHTTPClient
from tornado.websocket import websocket_connect

from otel_token_relay import Settings, install, uninstall, use_token
from tests.support.clients import Client, every_client
from tests.support.loopback import Party, Status

TOKEN = "s03-canary-token-0001"
LINE = f"Authorization: Bearer {TOKEN}".encode()

# An outcome contains the lines that the server received, and the exception.
Outcome = tuple[list[bytes], str]


class Recorder:
    """A server that records the raw head of each request and sends empty responses."""

    def __init__(self) -> None:
        self.port = 0
        self.heads: list[bytes] = []
        self.answers = [b""]

    async def __aenter__(self) -> Recorder:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            extra = self.answers.pop(0) if self.answers else b""
            status = b"307 Away" if extra else b"200 OK"
            writer.write(b"HTTP/1.1 " + status + b"\r\n" + extra + b"Content-Length: 0\r\n\r\n")
            await writer.drain()
        writer.close()


def outcome(
    build: Callable[[str], HTTPRequest], *, token: str | None, redirects: bool = False, **settings: Any
) -> tuple[Outcome, list[tuple[str, str]]]:
    """Send a request with Tornado, and return the outcome and the request's headers afterward."""

    async def run() -> tuple[Outcome, list[tuple[str, str]]]:
        async with Recorder() as server:
            url = f"http://127.0.0.1:{server.port}"
            uninstall()
            if token is not None:
                install(Settings(destinations=[url], **settings))
            if redirects:
                server.answers[0] = f"Location: {url}/last\r\n".encode()
            client = SimpleAsyncHTTPClient(force_instance=True)
            request, error = build(url), ""
            try:
                with use_token(token):
                    await client.fetch(request)
            except Exception as raised:
                error = f"{type(raised).__name__}: {raised}"
            finally:
                client.close()
            lines = [line for head in server.heads for line in head.split(b"\r\n") if not line.startswith(b"Host:")]
            return (lines, error), list(request.headers.get_all())

    return asyncio.run(run())


def _get(headers: Any) -> Callable[[str], HTTPRequest]:
    return lambda url: HTTPRequest(url, headers=headers)


def _repeated() -> HTTPHeaders:
    headers = HTTPHeaders()
    headers.add("X-Many", "a")
    headers.add("X-Many", "b")
    headers["X-Odd"] = " c"
    return headers


ODD = {
    "leading space": {"X-User": " Zofie"},
    "trailing space": {"X-User": "Zofie "},
    "tab": {"X-User": "\tZofie"},
    "control character": {"X-User": "a\x01b"},
    "NUL": {"X-User": "a\x00b"},
    "delete": {"X-User": "a\x7fb"},
    "empty": {"X-User": ""},
    "Latin-1": {"X-User": "Zo\xeb"},
    "bytes": {"X-User": b"Zofie "},
    "name with a space": {"X User": "Zofie"},
    "name with a colon": {"X:User": "Zofie"},
    "empty name": {"": "Zofie"},
    "CR LF": {"X-User": "a\r\nX-Other: b"},
    "LF": {"X-User": "a\nb"},
    "CR": {"X-User": "a\rb"},
    "not Latin-1": {"X-User": "Zofi\u0119"},
    "not Latin-1 name": {"X-Us\u0119r": "Zofie"},
    "number": {"X-User": 7},
    "repeated": _repeated(),
    "none": None,
}


# Before version 6.6, Tornado never completes a redirect if its copy of the headers rejects a value.
_REDIRECTED = pytest.param(
    True, id="redirected", marks=pytest.mark.skipif(tornado.version_info < (6, 6), reason="Tornado would not end")
)
with_and_without_redirects = pytest.mark.parametrize("redirects", [pytest.param(False, id="direct"), _REDIRECTED])


@pytest.mark.parametrize("kind", ODD)
@with_and_without_redirects
def test_s03_tornado_sends_or_rejects_the_same_headers_as_without_the_token(kind: str, redirects: bool) -> None:
    """With a token, Tornado sends the same header lines, or raises the same exception, as without a token."""
    without, _ = outcome(_get(ODD[kind]), token=None, redirects=redirects)
    (lines, error), _ = outcome(_get(ODD[kind]), token=TOKEN, redirects=redirects)

    assert ([line for line in lines if line != LINE], error) == without
    assert lines.count(LINE) == sum(line.startswith(b"GET") for line in lines)


def _post(url: str) -> HTTPRequest:
    async def produce(write: Callable[[bytes], Awaitable[None]]) -> None:
        await write(b"chunk")

    return HTTPRequest(url, method="POST", body_producer=produce, headers={"X-User": "Zofie "})


@pytest.mark.parametrize(
    "build",
    [_post, lambda url: HTTPRequest(url, method="POST", body=b"body"), _get({"X-User": "Zofie "})],
    ids=["chunks", "body", "no body"],
)
@with_and_without_redirects
def test_s03_headers_that_tornado_adds_to_a_request_remain_there(
    build: Callable[[str], HTTPRequest], redirects: bool
) -> None:
    """Headers that Tornado adds while sending remain on the request, just as without a token."""
    (_, error), without = outcome(build, token=None, redirects=redirects)
    (lines, same_error), shown = outcome(build, token=TOKEN, redirects=redirects)

    def portless(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return [(name, value) for name, value in headers if name != "Host"]

    assert LINE in lines
    assert portless(shown) == portless(without)
    assert same_error == error


def test_s03_a_replaced_header_remains_on_the_request() -> None:
    """With ON_CONFLICT=replace, only the relay's line is sent, and the request keeps its own headers."""
    headers = HTTPHeaders()
    headers.add("authorization", "Bearer own-1")
    headers.add("authorization", "Bearer own-2")
    (lines, error), shown = outcome(_get(headers), token=TOKEN, on_conflict="replace")

    assert error == ""
    assert [line for line in lines if line.lower().startswith(b"authorization")] == [LINE]
    assert [value for name, value in shown if name == "Authorization"] == ["Bearer own-1", "Bearer own-2"]


def test_s03_our_header_is_only_in_the_written_lines() -> None:
    """Code that inspects the headers while Tornado writes them never sees the relay's header."""
    seen: list[Any] = []

    with pytest.MonkeyPatch.context() as patched:
        original = simple_httpclient.HTTP1Connection.write_headers

        def write_headers(self: Any, start_line: Any, headers: Any, *args: Any) -> Any:
            seen.append((dict(headers), list(headers), "Authorization" in headers, repr(headers), vars(headers)))
            assert isinstance(headers, HTTPHeaders)
            return original(self, start_line, headers, *args)

        patched.setattr(simple_httpclient.HTTP1Connection, "write_headers", write_headers)
        (lines, _), _ = outcome(_get({"X-User": "Zofie "}), token=TOKEN)

    assert LINE in lines
    assert len(seen) == 1
    assert TOKEN not in str(seen)


class _NeverAnswers(Resolver):
    def initialize(self) -> None: ...

    async def resolve(self, host: str, port: int, family: int = 0) -> Any:
        await asyncio.sleep(30)


@contextmanager
def _silent_port() -> Iterator[int]:
    """Listen on a port that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def _fetch(url: str, resolver: Resolver | None = None, **options: Any) -> None:
    client = SimpleAsyncHTTPClient(force_instance=True, resolver=resolver)
    try:
        await client.fetch(url, **options)
    except Exception:  # the tests compare only the remaining objects
        pass
    finally:
        client.close()


async def _websocket(url: str) -> None:
    with suppress(Exception):  # the server supports only plain HTTP
        await websocket_connect(url.replace("http", "ws"))


async def _concurrently(one: Party) -> None:
    await asyncio.gather(*(_fetch(one.url) for _ in range(5)))


async def _post_chunks(one: Party) -> None:
    async def produce(write: Callable[[bytes], Awaitable[None]]) -> None:
        await write(b"chunk")

    await _fetch(one.url, method="POST", body_producer=produce)


async def _after_an_error(one: Party) -> None:
    one.answers.append(Status(500))
    await _fetch(one.url)


async def _timed_out(one: Party) -> None:
    with _silent_port() as port:
        await _fetch(f"http://127.0.0.1:{port}", request_timeout=0.05)


SCENARIOS: dict[str, Callable[[Party], Awaitable[None]]] = {
    "success": lambda one: _fetch(one.url),
    "five at once": _concurrently,
    "redirected": lambda one: _fetch(one.redirecting_to(one.redirecting_to(f"{one.url}/last"))),
    "redirected away": lambda one: _fetch(one.redirecting_to(f"http://localhost:{one.port}/last")),
    "server error": _after_an_error,
    "posted": _post_chunks,
    "refused": lambda one: _fetch(f"http://127.0.0.1:{_closed_port()}"),
    "timed out": _timed_out,
    "never connected": lambda one: _fetch(one.url, resolver=_NeverAnswers(), connect_timeout=0.05),
    "invalid header": lambda one: _fetch(one.url, headers={"X": "a\r\nb"}),
    "unknown method": lambda one: _fetch(one.url, method="BREW"),
    "unlisted": lambda one: _fetch(f"http://localhost:{one.port}"),
    "WebSocket": lambda one: _websocket(one.url),
}


def _collected(run: Callable[[], Awaitable[None]]) -> list[Any]:
    """Return the objects that *run* leaves to the garbage collector."""

    async def settle() -> None:
        await run()
        for _ in range(3):
            await asyncio.sleep(0.01)

    async def watched() -> list[Any]:
        await settle()  # populate the caches
        with _saving() as found:
            await settle()
        return found

    return asyncio.run(watched())


@contextmanager
def _saving() -> Iterator[list[Any]]:
    """Yield a list that contains, after the block, the objects that only the garbage collector could free."""
    found: list[Any] = []
    gc.freeze()  # exclude the objects of earlier tests
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.unfreeze()
        gc.enable()


def _types(found: list[Any]) -> Counter[str]:
    # Before Python 3.13, reading an object's `__dict__` creates a separate dictionary, which is not counted.
    counted = [one for one in found if type(one) is not dict or sys.version_info >= (3, 13)]
    return Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in counted)


@pytest.mark.parametrize("user", [TOKEN, None], ids=["token", "no token"])
@pytest.mark.parametrize(
    ("scenario", "required"),
    # The exception of a failed WebSocket is part of a reference cycle in Tornado.
    [
        (name, required)
        for name in SCENARIOS
        for required in ("", ";required")
        if (name, required) != ("WebSocket", ";required")
    ],
)
def test_s04_a_tornado_request_leaves_nothing_to_the_garbage_collector(
    scenario: str, required: str, user: str | None, one: Party
) -> None:
    """A Tornado request leaves no more objects in reference cycles than without the package."""

    async def run() -> None:
        with use_token(user):
            await SCENARIOS[scenario](one)

    without = _types(_collected(run))
    install(Settings(destinations=[f"{one.url}{required}", f"http://127.0.0.1:*{required}"]))
    found = _collected(run)

    # A failed request's response, which is part of Tornado's own reference cycle, has an additional Cache-Control line.
    added = Counter({"builtins.list": 1}) if without and user is not None else Counter()
    assert _types(found) - without - added == Counter()
    assert not [left for left in found if _is_ours(left)]


def _is_ours(found: Any) -> bool:
    """Return whether *found* is a function or a class of the package."""
    return isinstance(found, type | types.FunctionType) and str(found.__module__).startswith("otel_token_relay")


@every_client
@pytest.mark.parametrize("user", [TOKEN, None], ids=["token", "no token"])
def test_s04_no_client_leaves_a_class_or_function_of_ours(client: Client, user: str | None, one: Party) -> None:
    """After a session is closed, no reference cycle contains a function or a class of the package."""
    install(Settings(destinations=[one.url]))
    with use_token(user):
        client.call(one.url)
        with _saving() as found:
            client.call(one.url)

    assert not [left for left in found if _is_ours(left)]


def test_s04_the_wrapper_is_removed_when_the_headers_are_written(one: Party) -> None:
    """The wrapper on a connection is removed when the connection writes the headers."""
    connections: list[Any] = []
    install(Settings(destinations=[one.url]))
    with pytest.MonkeyPatch.context() as patched:
        original = vars(simple_httpclient._HTTPConnection)["_create_connection"]

        @functools.wraps(original)
        def _create_connection(self: Any, stream: Any) -> Any:
            connections.append(original(self, stream))
            assert "write_headers" in vars(connections[-1])
            return connections[-1]

        patched.setattr(simple_httpclient._HTTPConnection, "_create_connection", _create_connection)
        with use_token(TOKEN):
            asyncio.run(_fetch(one.url))

    assert one.lines() == [[LINE.decode().partition(": ")[2]]]
    assert "write_headers" not in vars(connections[0])
