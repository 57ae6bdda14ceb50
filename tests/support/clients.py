"""The one table of HTTP clients: each row sends a request the way that its users do."""

from __future__ import annotations

import asyncio
import contextvars
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

import aiohttp
import httpx
import httpx2
import pytest
import requests
import urllib3
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor, HTTPXClientInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.instrumentation.urllib import URLLibInstrumentor
from opentelemetry.instrumentation.urllib3 import URLLib3Instrumentor

from tests.support.loopback import certificate, trust

Headers = Mapping[str, str]
Body = Sequence[bytes]
"""A body that is sent chunk by chunk from a generator."""

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What came back, and the headers of the sent requests as the application can see them."""

    status: int
    body: bytes
    shown: list[tuple[str, str]]

    def shows(self, header: str) -> bool:
        return any(name.lower() == header for name, _ in self.shown)


Send = Callable[[], bytes]


@dataclass(frozen=True)
class Client:
    """One way to send.

    Attributes:
        call: ``call(url, method=, headers=, body=, proxy=)`` sends with a session of its own and
            follows redirects.
        reusing: ``with reusing(url) as send`` gives a function that sends one and the same request
            object again and again, and gives the answer's body.
        instrumentor: Contrib's, for this library.
        spans_each_hop: Whether contrib makes a span for each redirect.
        follows: Whether it follows a redirect to another origin.
    """

    name: str
    call: Callable[..., Answer]
    reusing: Callable[[str], AbstractContextManager[Send]]
    instrumentor: Callable[[], Any]
    is_async: bool = False
    follows: bool = True


def in_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a loop of its own, in the caller's context."""
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


def _httpx_async_reusing(module: ModuleType) -> Callable[[str], AbstractContextManager[Send]]:
    @contextmanager
    def reusing(url: str) -> Iterator[Send]:
        client = module.AsyncClient(trust_env=False, verify=trust())
        request = module.Request("GET", url)

        async def send() -> bytes:
            content: bytes = (await client.send(request)).content
            return content

        with asyncio.Runner() as runner:
            yield lambda: runner.run(send(), context=contextvars.copy_context())
            runner.run(client.aclose())

    return reusing


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


@contextmanager
def _aiohttp_reusing(url: str) -> Iterator[Send]:
    with asyncio.Runner() as runner:

        async def open_session() -> aiohttp.ClientSession:
            return aiohttp.ClientSession(headers={"x-shared": "yes"})

        session = runner.run(open_session())

        async def send() -> bytes:
            async with session.get(url) as response:
                return await response.read()

        yield lambda: runner.run(send(), context=contextvars.copy_context())
        runner.run(session.close())


CLIENTS = [
    Client("httpx", _httpx_call(httpx), _httpx_reusing(httpx), HTTPXClientInstrumentor),
    Client(
        "httpx-async", _httpx_async_call(httpx), _httpx_async_reusing(httpx), HTTPXClientInstrumentor, is_async=True
    ),
    Client("httpx2", _httpx_call(httpx2), _httpx_reusing(httpx2), HTTPX2ClientInstrumentor),
    Client(
        "httpx2-async",
        _httpx_async_call(httpx2),
        _httpx_async_reusing(httpx2),
        HTTPX2ClientInstrumentor,
        is_async=True,
    ),
    Client("requests", _requests_call, _requests_reusing, RequestsInstrumentor),
    Client("urllib3", _urllib3_call, _urllib3_reusing, URLLib3Instrumentor),
    Client("urllib3-pool", _pool_call, _pool_reusing, URLLib3Instrumentor, follows=False),
    Client("urllib", _urllib_call, _urllib_reusing, URLLibInstrumentor),
    Client("aiohttp", _aiohttp_call, _aiohttp_reusing, AioHttpClientInstrumentor, is_async=True),
]

FOLLOWING = [client for client in CLIENTS if client.follows]

every_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
every_following_client = pytest.mark.parametrize("client", FOLLOWING, ids=lambda client: client.name)
