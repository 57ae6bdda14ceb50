"""The table of clients, which state their own limitations. Each row sends a request as the library's users do.

Tests select clients from the lists at the end of this module.
"""

from __future__ import annotations

import asyncio
import contextvars
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar
from urllib.parse import SplitResult, urlsplit

import aiohttp
import grpc
import grpc.aio
import httpx
import httpx2
import pytest
import requests
import urllib3
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcInstrumentorClient
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor, HTTPXClientInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.instrumentation.tornado import TornadoInstrumentor
from opentelemetry.instrumentation.urllib import URLLibInstrumentor
from opentelemetry.instrumentation.urllib3 import URLLib3Instrumentor
from tornado.httpclient import HTTPRequest
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from tests.support.loopback import Party, certificate, grpc_party, party, trust

Headers = Mapping[str, str]
Body = Sequence[bytes]
"""Body that a generator sends in chunks."""

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """The response, and the headers of the sent requests, as the application sees them."""

    status: int
    body: bytes
    shown: list[tuple[str, str]]

    def shows(self, header: str) -> bool:
        return any(name.lower() == header for name, _ in self.shown)


Send = Callable[[], bytes]
AsyncSend = Callable[[], Awaitable[bytes]]

Protocol = Literal["http", "grpc"]
PARTIES: dict[Protocol, Callable[..., AbstractContextManager[Party]]] = {"http": party, "grpc": grpc_party}


@dataclass(frozen=True)
class Client:
    """A way to send requests.

    Attributes:
        call: ``call(url, method=, headers=, body=, proxy=)`` sends a request with a new session and follows
            redirects. For gRPC, the headers are metadata, and the method is ignored.
        reusing: ``with reusing(url) as send`` yields a function that sends the same request object on each call and
            returns the response body.
        instrumentor: The library's OpenTelemetry instrumentor.
        opening: The equivalent of ``reusing`` for an asynchronous client in a running event loop.
        protocol: The protocol that the client's server must support.
        redirects: The redirects that the client follows.
        repeats_posts: Whether the client repeats a POST request after a 307 or 308 redirect.
        proxies: Whether the client supports proxies, with ``GET`` for http and ``CONNECT`` for https, or always
            with ``CONNECT``.
        exclusion: The variable that excludes requests from instrumentation, and a value that excludes all requests
            of these tests; ``None`` if the variable does not exist.
        uninstruments_alone: Whether `uninstrument` keeps patches that were applied after `instrument`.
        hooks_sessions: Whether the hook patches the creation of a session instead of the method that sends requests.
            If so, `install` affects only sessions that are opened later.
        sees_failures: Whether the error of a failed request propagates through the hop.
    """

    name: str
    call: Callable[..., Answer]
    reusing: Callable[[str], AbstractContextManager[Send]]
    instrumentor: Callable[[], Any]
    opening: Callable[[str], AbstractAsyncContextManager[AsyncSend]] | None = None
    protocol: Protocol = "http"
    redirects: Literal["anywhere", "own origin", "none"] = "anywhere"
    repeats_posts: bool = True
    proxies: Literal["usual", "tunnels", "none"] = "usual"
    exclusion: tuple[str, str] | None = ("OTEL_PYTHON_EXCLUDED_URLS", ".*")
    uninstruments_alone: bool = True
    hooks_sessions: bool = False
    sees_failures: bool = True

    @property
    def party(self) -> Callable[..., AbstractContextManager[Party]]:
        """Return a context manager that runs a server for this client."""
        return PARTIES[self.protocol]


@contextmanager
def each_party() -> Iterator[dict[Protocol, Party]]:
    """Run one server for each protocol, for tests that use every client."""
    with ExitStack() as stack:
        yield {protocol: stack.enter_context(run()) for protocol, run in PARTIES.items()}


def asynchronous(
    name: str,
    call: Callable[..., Answer],
    opening: Callable[[str], AbstractAsyncContextManager[AsyncSend]],
    instrumentor: Callable[[], Any],
    **capabilities: Any,
) -> Client:
    """Return the table row for an asynchronous client."""

    @contextmanager
    def reusing(url: str) -> Iterator[Send]:
        with asyncio.Runner() as runner:
            session = opening(url)
            send = runner.run(session.__aenter__())

            async def once() -> bytes:
                return await send()

            yield lambda: runner.run(once(), context=contextvars.copy_context())
            runner.run(session.__aexit__(None, None, None))

    return Client(name, call, reusing, instrumentor, opening, **capabilities)


def in_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a new event loop, in the caller's context."""
    return asyncio.run(coroutine)


async def _drip(body: Body) -> AsyncIterator[bytes]:
    for chunk in body:
        yield chunk
        await asyncio.sleep(0)


def _httpx_call(module: ModuleType) -> Callable[..., Answer]:
    def call(
        url: str,
        method: str = "GET",
        headers: Headers | None = None,
        body: Body | None = None,
        proxy: str | None = None,
    ) -> Answer:
        with module.Client(follow_redirects=True, verify=trust(), trust_env=False, proxy=proxy) as client:
            response = client.request(method, url, headers=headers, content=body and iter(body))
            return _httpx_answer(response)

    return call


def _httpx_async_call(module: ModuleType) -> Callable[..., Answer]:
    def call(
        url: str,
        method: str = "GET",
        headers: Headers | None = None,
        body: Body | None = None,
        proxy: str | None = None,
    ) -> Answer:
        async def run() -> Answer:
            options = {"follow_redirects": True, "verify": trust(), "trust_env": False, "proxy": proxy}
            async with module.AsyncClient(**options) as client:
                response = await client.request(method, url, headers=headers, content=body and _drip(body))
                return _httpx_answer(response)

        return in_loop(run())

    return call


def _httpx_answer(response: Any) -> Answer:
    sent = [one.request for one in (*response.history, response)]
    return Answer(response.status_code, response.content, [pair for one in sent for pair in one.headers.items()])


def _httpx_reusing(module: ModuleType) -> Callable[[str], AbstractContextManager[Send]]:
    @contextmanager
    def reusing(url: str) -> Iterator[Send]:
        with module.Client(trust_env=False, verify=trust()) as client:
            request = module.Request("GET", url)
            yield lambda: client.send(request).content

    return reusing


def _httpx_opening(module: ModuleType) -> Callable[[str], AbstractAsyncContextManager[AsyncSend]]:
    @asynccontextmanager
    async def opening(url: str) -> AsyncIterator[AsyncSend]:
        async with module.AsyncClient(trust_env=False, verify=trust()) as client:
            request = module.Request("GET", url)

            async def send() -> bytes:
                content: bytes = (await client.send(request)).content
                return content

            yield send

    return opening


def _requests_call(
    url: str,
    method: str = "GET",
    headers: Headers | None = None,
    body: Body | None = None,
    proxy: str | None = None,
) -> Answer:
    with requests.Session() as session:
        session.verify = certificate()
        session.trust_env = False
        proxies = {"http": proxy, "https": proxy} if proxy else None
        response = session.request(method, url, headers=headers, data=body and iter(body), proxies=proxies)
        sent = [one.request for one in (*response.history, response)]
        return Answer(response.status_code, response.content, [p for one in sent for p in one.headers.items()])


@contextmanager
def _requests_reusing(url: str) -> Iterator[Send]:
    with requests.Session() as session:
        prepared = session.prepare_request(requests.Request("GET", url))
        yield lambda: session.send(prepared).content


def _urllib3_call(
    url: str,
    method: str = "GET",
    headers: Headers | None = None,
    body: Body | None = None,
    proxy: str | None = None,
) -> Answer:
    with (
        urllib3.ProxyManager(proxy, ssl_context=trust()) if proxy else urllib3.PoolManager(ssl_context=trust())
    ) as manager:
        response = manager.request(method, url, headers=headers, body=body and iter(body))
        return Answer(response.status, response.data, [])


@contextmanager
def _urllib3_reusing(url: str) -> Iterator[Send]:
    headers = {"x-shared": "yes"}
    with urllib3.PoolManager(headers=headers) as manager:
        yield lambda: manager.request("GET", url).data


def _pool_call(url: str, method: str = "GET", headers: Headers | None = None, body: Body | None = None) -> Answer:
    parts = urllib3.util.parse_url(url)
    options = {"ssl_context": trust()} if parts.scheme == "https" else {}
    with urllib3.connectionpool.connection_from_url(url, **options) as pool:
        response = pool.urlopen(method, parts.request_uri, headers=headers, body=body and iter(body))
        return Answer(response.status, response.data, [])


@contextmanager
def _pool_reusing(url: str) -> Iterator[Send]:
    headers = urllib3.HTTPHeaderDict({"x-shared": "yes"})
    with urllib3.connectionpool.connection_from_url(url, maxsize=4) as pool:
        yield lambda: pool.urlopen("GET", "/", headers=headers).data


def _urllib_call(
    url: str,
    method: str = "GET",
    headers: Headers | None = None,
    body: Body | None = None,
    proxy: str | None = None,
) -> Answer:
    request = urllib.request.Request(url, data=body and iter(body), headers=dict(headers or {}), method=method)
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({"http": proxy, "https": proxy} if proxy else {}),
        urllib.request.HTTPSHandler(context=trust()),
    )
    try:
        with opener.open(request, timeout=10) as response:
            return Answer(response.status, response.read(), request.header_items())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read(), request.header_items())


@contextmanager
def _urllib_reusing(url: str) -> Iterator[Send]:
    request = urllib.request.Request(url)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def send() -> bytes:
        with opener.open(request, timeout=10) as response:
            content: bytes = response.read()
            return content

    yield send


def _aiohttp_call(
    url: str,
    method: str = "GET",
    headers: Headers | None = None,
    body: Body | None = None,
    proxy: str | None = None,
) -> Answer:
    async def run() -> Answer:
        connector = aiohttp.TCPConnector(ssl=trust())
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, url, headers=headers, data=body and _drip(body), proxy=proxy) as response,
        ):
            shown = [p for one in (*response.history, response) for p in one.request_info.headers.items()]
            return Answer(response.status, await response.read(), shown)

    return in_loop(run())


@asynccontextmanager
async def _aiohttp_opening(url: str) -> AsyncIterator[AsyncSend]:
    async with aiohttp.ClientSession(headers={"x-shared": "yes"}) as session:

        async def send() -> bytes:
            async with session.get(url) as response:
                return await response.read()

        yield send


def _tornado_call(url: str, method: str = "GET", headers: Headers | None = None, body: Body | None = None) -> Answer:
    async def produce(write: Callable[[bytes], Awaitable[None]]) -> None:
        for chunk in body or ():
            await write(chunk)

    async def run() -> Answer:
        options: dict[str, Any] = {"body_producer": produce} if body else {"body": b"" if method == "POST" else None}
        request = HTTPRequest(url, method=method, headers=dict(headers or {}), ca_certs=certificate(), **options)
        client = SimpleAsyncHTTPClient(force_instance=True)
        try:
            response = await client.fetch(request, raise_error=False)
            if response.code == 599:  # no response
                response.rethrow()
            return Answer(response.code, response.body, [*request.headers.items(), *response.request.headers.items()])
        finally:
            client.close()

    return in_loop(run())


@asynccontextmanager
async def _tornado_opening(url: str) -> AsyncIterator[AsyncSend]:
    client = SimpleAsyncHTTPClient(force_instance=True)
    request = HTTPRequest(url)

    async def send() -> bytes:
        return (await client.fetch(request)).body

    yield send
    client.close()


class _GrpcInstrumentor(GrpcInstrumentorClient):  # type: ignore[misc]  # it has no types
    """The contrib instrumentor, which reads its tracer provider from each channel's arguments."""

    _instance = None  # older releases of contrib would otherwise return an existing object of the base class

    def _instrument(self, **kwargs: Any) -> None:
        self._provider = kwargs.get("tracer_provider")
        super()._instrument(**kwargs)

    def wrapper_fn(self, original: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        channel = original(*args, **kwargs)
        return super().wrapper_fn(lambda **_: channel, instance, (), {"tracer_provider": self._provider})


def _grpc_channel(module: ModuleType, parts: SplitResult, proxy: str | None = None) -> Any:
    options = [("grpc.http_proxy", proxy)] if proxy else [("grpc.enable_http_proxy", 0)]
    if parts.scheme == "https":
        credentials = grpc.ssl_channel_credentials(Path(certificate()).read_bytes())
        return module.secure_channel(parts.netloc, credentials, options=options)
    return module.insecure_channel(parts.netloc, options=options)


def _grpc_call(
    url: str,
    method: str = "GET",
    headers: Headers | None = None,
    body: Body | None = None,
    proxy: str | None = None,
) -> Answer:
    parts = urlsplit(url)
    metadata = [(name.lower(), value) for name, value in (headers or {}).items()]
    with _grpc_channel(grpc, parts, proxy) as channel:
        send = channel.stream_unary if body else channel.unary_unary
        response = send(parts.path or "/tests.Party/call")(iter(body) if body else b"", metadata=metadata, timeout=10)
        return Answer(200, response, metadata)


@contextmanager
def _grpc_reusing(url: str) -> Iterator[Send]:
    with _grpc_channel(grpc, urlsplit(url)) as channel:
        send = channel.unary_unary("/tests.Party/call")
        yield lambda: send(b"", metadata=(("x-shared", "yes"),), timeout=10)


def _grpc_aio_call(
    url: str,
    method: str = "GET",
    headers: Headers | None = None,
    body: Body | None = None,
    proxy: str | None = None,
) -> Answer:
    async def run() -> Answer:
        parts = urlsplit(url)
        metadata = [(name.lower(), value) for name, value in (headers or {}).items()]
        async with _grpc_channel(grpc.aio, parts, proxy) as channel:
            send = channel.stream_unary if body else channel.unary_unary
            request = _drip(body) if body else b""
            response = await send(parts.path or "/tests.Party/call")(request, metadata=metadata, timeout=10)
            return Answer(200, response, metadata)

    return in_loop(run())


@asynccontextmanager
async def _grpc_aio_opening(url: str) -> AsyncIterator[AsyncSend]:
    async with _grpc_channel(grpc.aio, urlsplit(url)) as channel:
        method = channel.unary_unary("/tests.Party/call")

        async def send() -> bytes:
            response: bytes = await method(b"", metadata=(("x-shared", "yes"),), timeout=10)
            return response

        yield send


CLIENTS = [
    Client("httpx", _httpx_call(httpx), _httpx_reusing(httpx), HTTPXClientInstrumentor),
    asynchronous("httpx-async", _httpx_async_call(httpx), _httpx_opening(httpx), HTTPXClientInstrumentor),
    Client("httpx2", _httpx_call(httpx2), _httpx_reusing(httpx2), HTTPX2ClientInstrumentor),
    asynchronous("httpx2-async", _httpx_async_call(httpx2), _httpx_opening(httpx2), HTTPX2ClientInstrumentor),
    Client("requests", _requests_call, _requests_reusing, RequestsInstrumentor),
    Client("urllib3", _urllib3_call, _urllib3_reusing, URLLib3Instrumentor),
    # A connection pool for a single origin does not support proxies.
    Client("urllib3-pool", _pool_call, _pool_reusing, URLLib3Instrumentor, redirects="own origin", proxies="none"),
    Client("urllib", _urllib_call, _urllib_reusing, URLLibInstrumentor, repeats_posts=False),
    asynchronous("aiohttp", _aiohttp_call, _aiohttp_opening, AioHttpClientInstrumentor),
    asynchronous(
        "tornado",
        _tornado_call,
        _tornado_opening,
        TornadoInstrumentor,
        proxies="none",
        exclusion=None,
        sees_failures=False,
    ),
    Client(
        "grpc",
        _grpc_call,
        _grpc_reusing,
        _GrpcInstrumentor,
        protocol="grpc",
        redirects="none",
        proxies="tunnels",
        exclusion=("OTEL_PYTHON_GRPC_EXCLUDED_SERVICES", "tests.Party"),
        hooks_sessions=True,
        sees_failures=False,
    ),
    asynchronous(
        "grpc-aio",
        _grpc_aio_call,
        _grpc_aio_opening,
        GrpcAioInstrumentorClient,
        protocol="grpc",
        redirects="none",
        proxies="tunnels",
        exclusion=("OTEL_PYTHON_GRPC_EXCLUDED_SERVICES", "tests.Party"),
        # This instrumentor restores the functions that it found, even if they were patched later.
        uninstruments_alone=False,
        hooks_sessions=True,
        sees_failures=False,
    ),
]


def rows(clients: Sequence[Client]) -> pytest.MarkDecorator:
    """Run a test for each of these clients."""
    return pytest.mark.parametrize("client", clients, ids=lambda client: client.name)


every_client = rows(CLIENTS)
every_redirected_client = rows([client for client in CLIENTS if client.redirects != "none"])
every_following_client = rows([client for client in CLIENTS if client.redirects == "anywhere"])
every_proxied_client = rows([client for client in CLIENTS if client.proxies != "none"])
every_sync_client = rows([client for client in CLIENTS if client.opening is None])
every_async_client = rows([client for client in CLIENTS if client.opening is not None])
