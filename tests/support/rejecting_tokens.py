"""A server that rejects tokens until a test accepts them, and the clients that send requests to the server."""

from __future__ import annotations

import io
import json
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, NamedTuple

import aiohttp
import httpx
import httpx2
import requests
import urllib3
from tornado.httpclient import HTTPRequest
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from otel_token_relay import Settings, install, use_token
from tests.support.clients import in_loop
from tests.support.loopback import Party
from tests.support.token_endpoint import SECRET, Endpoint, verified

INVALID = 'Bearer realm="r", error="invalid_token"'
CONTENT = b'{"a": 1}'

RETRYING = ";audience=billing;retry=idempotent"

Kind = Literal["none", "bytes", "json", "generator", "file"]
KINDS: tuple[Kind, ...] = ("none", "bytes", "json", "generator", "file")
IN_MEMORY = ("none", "bytes", "json")


class Seen(NamedTuple):
    method: str
    authorization: list[str]
    body: bytes


class Answer(NamedTuple):
    status: int
    body: bytes


class Guarded:
    """The server's state. *accepts* is called with the token, and *challenges* are the header lines of a 401
    response.
    """

    def __init__(self) -> None:
        self.url = ""
        self.seen: list[Seen] = []
        self.connections = 0
        self.accepts: Callable[[str], bool] = lambda token: token.endswith(".2")
        self.challenges: list[str] = [INVALID]
        self.is_chunked = False
        self.hangs_up = False
        self.closes = False
        self.error_body = b"rejected"
        self.before: Callable[[str], None] = lambda token: None

    @property
    def tokens(self) -> list[str]:
        return [line.removeprefix("Bearer ") for seen in self.seen for line in seen.authorization]


@contextmanager
def guarded() -> Iterator[Guarded]:
    """Run the server until the block ends."""
    state = Guarded()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            state.connections += 1
            super().setup()

        def respond(self) -> None:
            lines = self.headers.get_all("Authorization", [])
            body = self.read_body()
            token = lines[0].removeprefix("Bearer ") if lines else ""
            state.before(token)
            state.seen.append(Seen(self.command, lines, body))
            is_accepted = bool(token) and state.accepts(token)
            self.send_response(200 if is_accepted else 401)
            content = body if is_accepted else state.error_body
            for challenge in () if is_accepted else state.challenges:
                self.send_header("WWW-Authenticate", challenge)
            if state.closes:
                self.send_header("Connection", "close")
            if state.hangs_up:
                self.close_connection = True
            if state.is_chunked and self.command != "HEAD":
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content) if content else b"0\r\n\r\n")
            else:
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content if self.command != "HEAD" else b"")

        def read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        do_GET = do_HEAD = do_OPTIONS = do_PUT = do_DELETE = do_POST = do_PATCH = respond

        def log_message(self, *args: object) -> None:
            """Do not log requests."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            """Do not log errors from clients that disconnect."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def turn_on(endpoint: Endpoint, billing: Guarded | Party, parameters: str = RETRYING, **others: Any) -> None:
    """List the server as a destination whose tokens the endpoint issues."""
    install(
        Settings(
            destinations=(billing.url + parameters,),
            token_endpoint=endpoint.url,
            client_id="user-service",
            client_secret=SECRET,
            **others,
        )
    )


def chunks() -> Iterator[bytes]:
    yield CONTENT[:3]
    yield CONTENT[3:]


async def async_chunks() -> AsyncIterator[bytes]:
    for chunk in chunks():
        yield chunk


def _httpx_options(kind: Kind, *, is_async: bool) -> dict[str, Any]:
    return {
        "none": {},
        "bytes": {"content": CONTENT},
        "json": {"json": json.loads(CONTENT)},
        "generator": {"content": async_chunks() if is_async else chunks()},
        "file": {"files": {"f": io.BytesIO(CONTENT)}},
    }[kind]


def _httpx(module: Any) -> Callable[[str, str, Kind], Answer]:
    def send(url: str, method: str, kind: Kind) -> Answer:
        with module.Client(trust_env=False) as client:
            request = client.build_request(method, url, **_httpx_options(kind, is_async=False))
            before = dict(request.headers)
            response = client.send(request)
            assert dict(request.headers) == before
            return Answer(response.status_code, response.content)

    return send


def _httpx_async(module: Any) -> Callable[[str, str, Kind], Answer]:
    async def send(url: str, method: str, kind: Kind) -> Answer:
        async with module.AsyncClient(trust_env=False) as client:
            request = client.build_request(method, url, **_httpx_options(kind, is_async=True))
            before = dict(request.headers)
            response = await client.send(request)
            assert dict(request.headers) == before
            return Answer(response.status_code, response.content)

    return lambda url, method, kind: in_loop(send(url, method, kind))


def _requests(url: str, method: str, kind: Kind) -> Answer:
    options: dict[Kind, dict[str, Any]] = {
        "none": {},
        "bytes": {"data": CONTENT},
        "json": {"json": json.loads(CONTENT)},
        "generator": {"data": chunks()},
        "file": {"data": io.BytesIO(CONTENT)},
    }
    with requests.Session() as session:
        session.trust_env = False
        headers = {"X-Own": "1"}
        response = session.request(method, url, headers=headers, timeout=10, **options[kind])
        assert headers == {"X-Own": "1"}
        assert "authorization" not in {name.lower() for name in response.request.headers}
        assert response.history == []
        return Answer(response.status_code, response.content)


def _urllib3(*, preload: bool) -> Callable[[str, str, Kind], Answer]:
    def send(url: str, method: str, kind: Kind) -> Answer:
        options: dict[Kind, dict[str, Any]] = {
            "none": {},
            "bytes": {"body": CONTENT},
            "json": {"json": json.loads(CONTENT)},
            "generator": {"body": chunks()},
            "file": {"body": io.BytesIO(CONTENT)},
        }
        with urllib3.PoolManager(maxsize=1, block=True) as pools:
            headers = {"X-Own": "1"}
            response = pools.request(method, url, headers=headers, preload_content=preload, **options[kind])
            body = response.data if preload else response.read()
            response.release_conn()
            assert headers == {"X-Own": "1"}
            (pool,) = [pools.pools[key] for key in pools.pools.keys()]  # noqa: SIM118  # not a dict
            assert pool.pool.qsize() == 1, "the connection is back in the pool"
            return Answer(response.status, body)

    return send


def _urllib(url: str, method: str, kind: Kind) -> Answer:
    data: dict[Kind, Any] = {
        "none": None,
        "bytes": CONTENT,
        "json": CONTENT,
        "generator": chunks(),
        "file": io.BytesIO(CONTENT),
    }
    request = urllib.request.Request(url, data=data[kind], method=method, headers={"Content-Type": "x/y"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as response:
            answer = Answer(response.status, response.read())
    except urllib.error.HTTPError as error:
        with error:
            answer = Answer(error.code, error.read())
    assert not request.has_header("Authorization")
    return answer


async def _aiohttp_once(url: str, method: str, kind: Kind) -> Answer:
    options: dict[Kind, dict[str, Any]] = {
        "none": {},
        "bytes": {"data": CONTENT},
        "json": {"json": json.loads(CONTENT)},
        "generator": {"data": async_chunks()},
        "file": {"data": io.BytesIO(CONTENT)},
    }
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session,
        session.request(method, url, **options[kind]) as response,
    ):
        assert "Authorization" not in response.request_info.headers
        return Answer(response.status, await response.read())


async def _tornado_once(url: str, method: str, kind: Kind) -> Answer:
    async def produce(write: Callable[[bytes], Awaitable[None]]) -> None:
        for chunk in chunks():
            await write(chunk)

    options: dict[Kind, dict[str, Any]] = {
        "none": {"allow_nonstandard_methods": True},
        "bytes": {"body": CONTENT},
        "json": {"body": CONTENT.decode()},
        "generator": {"body_producer": produce},
        "file": {"body_producer": produce},
    }
    client = SimpleAsyncHTTPClient(force_instance=True)
    request = HTTPRequest(url, method=method, **{"allow_nonstandard_methods": True, **options[kind]})
    response = await client.fetch(request, raise_error=False)
    client.close()
    if response.error is not None and response.code == 599:
        raise response.error
    assert "Authorization" not in request.headers
    return Answer(response.code, response.body)


SENDERS: dict[str, Callable[[str, str, Kind], Answer]] = {
    "httpx": _httpx(httpx),
    "httpx-async": _httpx_async(httpx),
    "httpx2": _httpx(httpx2),
    "httpx2-async": _httpx_async(httpx2),
    "requests": _requests,
    "urllib3": _urllib3(preload=True),
    "urllib3-stream": _urllib3(preload=False),
    "urllib": _urllib,
    "aiohttp": lambda url, method, kind: in_loop(_aiohttp_once(url, method, kind)),
    "tornado": lambda url, method, kind: in_loop(_tornado_once(url, method, kind)),
}


def check_one_retry(sender: str, rejecting: Guarded) -> None:
    """Check that the application sees only the second response, or the first response if a retry is not possible or
    fails too.

    Args:
        sender: A key of `SENDERS`.
        rejecting: A listed server that rejects the first token that is issued for it.
    """
    send = SENDERS[sender]
    with use_token(verified("alice-token")):
        assert send(rejecting.url, "PUT", "bytes") == (200, CONTENT)
    assert rejecting.tokens == ["alice-token.1", "alice-token.2"]
    assert [seen.body for seen in rejecting.seen] == [CONTENT, CONTENT]

    rejecting.accepts = lambda token: False
    with use_token(verified("bob-token")):
        assert send(rejecting.url, "PUT", "bytes") == (401, rejecting.error_body)
    with use_token(verified("carol-token")):
        assert send(rejecting.url, "POST", "bytes") == (401, rejecting.error_body)
    assert rejecting.tokens[2:] == ["bob-token.3", "bob-token.4", "carol-token.5"]
