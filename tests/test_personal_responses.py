"""Every client forbids unknown caches, and no other ones, to store a personal response."""

from __future__ import annotations

import asyncio
import logging
import urllib.request
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
import requests.adapters
import urllib3
from hishel.httpx import CacheTransport
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from otel_token_relay import Settings, install, uninstall, use_token
from otel_token_relay.personal_responses import mark_urllib3, marker
from tests.support.caches import Server, in_memory, personal_server

ALICE, BOB = "alice-has-this-token-0123456789", "bob-has-another-token-9876543210"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with personal_server() as running:
        yield running


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    uninstall()


def by_urllib(url: str) -> list[str]:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url) as response:
        return response.headers.get_all("Cache-Control", [])


def by_requests(url: str) -> list[str]:
    with requests.Session() as session:
        session.trust_env = False
        response = session.get(url)
        assert response.headers.get("cache-control") == response.raw.headers.get("cache-control")
        return response.raw.headers.getlist("cache-control")


def by_urllib3(url: str) -> list[str]:
    with urllib3.PoolManager() as pool:
        return pool.request("GET", url).headers.getlist("cache-control")


def by_httpx(library: Any) -> Callable[[str], list[str]]:
    def send(url: str) -> list[str]:
        with library.Client(trust_env=False, verify=False) as client:
            return client.get(url).headers.get_list("cache-control")

    return send


def by_async_httpx(library: Any) -> Callable[[str], list[str]]:
    async def send(url: str) -> list[str]:
        async with library.AsyncClient(trust_env=False, verify=False) as client:
            return (await client.get(url)).headers.get_list("cache-control")

    return lambda url: asyncio.run(send(url))


def by_aiohttp(url: str) -> list[str]:
    async def send() -> list[str]:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            raw = [value.decode() for name, value in response.raw_headers if name.lower() == b"cache-control"]
            assert response.headers.getall("cache-control", []) == raw
            return raw

    return asyncio.run(send())


def by_tornado(url: str) -> list[str]:
    async def send() -> list[str]:
        client = SimpleAsyncHTTPClient(force_instance=True)
        try:
            return (await client.fetch(url)).headers.get_list("Cache-Control")
        finally:
            client.close()

    return asyncio.run(send())


CLIENTS: dict[str, Callable[[str], list[str]]] = {
    "urllib": by_urllib,
    "requests": by_requests,
    "urllib3": by_urllib3,
    "httpx": by_httpx(httpx),
    "httpx2": by_httpx(httpx2),
    "httpx async": by_async_httpx(httpx),
    "httpx2 async": by_async_httpx(httpx2),
    "aiohttp": by_aiohttp,
    "tornado": by_tornado,
}


@pytest.mark.parametrize("client", CLIENTS)
def test_only_a_response_to_a_request_with_a_token_says_no_store(client: str, server: Server) -> None:
    """Only the response to a request with a token contains ``no-store``, with zero, one, or two ``Cache-Control``
    lines.
    """
    send = CLIENTS[client]
    urls = [f"{server.url}/client/{variant}" for variant in ("silent", "private", "two-lines")]
    expected = [send(url) for url in urls]
    assert expected == [[], ["private, max-age=60"], ["public", "max-age=60"]]

    install(Settings(destinations=(server.url,)))
    assert [send(url) for url in urls] == expected
    with use_token(ALICE):
        assert [send(url) for url in urls] == [["no-store"]] * 3

    install(Settings(destinations=(server.url,), protect_caches=False))
    with use_token(ALICE):
        assert [send(url) for url in urls] == expected


class OwnTransport(httpx.BaseTransport):
    """An application's own cache, which follows RFC 9111 only for ``no-store``."""

    def __init__(self, transport: httpx.BaseTransport) -> None:
        self.transport = transport
        self.entries: dict[str, tuple[bytes, list[tuple[bytes, bytes]]]] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        key = str(request.url)
        if key not in self.entries:
            response = self.transport.handle_request(request)
            if "no-store" in response.headers.get("cache-control", ""):
                return response
            self.entries[key] = response.read(), response.headers.raw
        body, headers = self.entries[key]
        return httpx.Response(200, content=body, headers=headers)

    def close(self) -> None:
        self.transport.close()


STACKS: dict[str, Callable[[httpx.BaseTransport], httpx.BaseTransport]] = {
    "unknown": OwnTransport,
    "known above unknown": lambda next_one: CacheTransport(OwnTransport(next_one), in_memory()),
    "unknown above known": lambda next_one: OwnTransport(CacheTransport(next_one, in_memory())),
    "unknown above known, RFC mode": lambda next_one: OwnTransport(CacheTransport(next_one, in_memory(), rfc=True)),
}


@pytest.mark.parametrize("stack", STACKS)
def test_a_cache_of_the_application_s_own(stack: str, server: Server) -> None:
    """An application's own cache stores no personal response, alone and above or below a known cache."""
    install(Settings(destinations=(server.url,)))
    url, bodies = f"{server.url}/{stack.replace(' ', '')}/public", []

    with httpx.Client(transport=STACKS[stack](httpx.HTTPTransport(verify=False))) as client:
        for token in (ALICE, BOB, ALICE):
            with use_token(token):
                bodies.append(client.get(url).text)

    assert bodies == [ALICE, BOB, ALICE]


def test_a_response_that_cannot_be_marked_reaches_the_application(caplog: pytest.LogCaptureFixture) -> None:
    """A response that cannot be marked is returned to the application, and the log contains only its class."""
    response = SimpleNamespace(body=ALICE)

    with caplog.at_level(logging.ERROR, logger="otel_token_relay"):
        assert marker(True, mark_urllib3)(response) is response

    assert caplog.messages == [
        "token relay: a SimpleNamespace is not marked, so a cache might store it: AttributeError"
    ]
