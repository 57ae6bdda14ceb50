"""Every client forbids unknown caches, and no other ones, to store a personal response."""

from __future__ import annotations

import asyncio
import logging
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from otel_token_relay.personal_responses import (
    hide,
    is_personal,
    is_personal_httpx,
    mark_urllib3,
    marker,
    restore,
    restore_httpx,
)
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


@contextmanager
def requests_session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


def lines_of(response: Any) -> list[str]:
    """Return the `Cache-Control` lines of the urllib3 response in a requests response."""
    lines: list[str] = response.raw.headers.getlist("cache-control")
    return lines


ORIGINAL_LINES = {"silent": [], "private": ["private, max-age=60"], "two-lines": ["public", "max-age=60"]}


@pytest.mark.parametrize("variant", ORIGINAL_LINES)
def test_a_hook_restores_and_hides_the_headers_of_a_personal_response(variant: str, server: Server) -> None:
    """A cache's hook recognizes a personal response, restores its original headers, and can hide them again."""
    install(Settings(destinations=(server.url,)))
    original = ORIGINAL_LINES[variant]
    with requests_session() as session:
        with use_token(ALICE):
            response = session.get(f"{server.url}/hook/{variant}")
        assert is_personal(response)
        assert (response.headers["cache-control"], lines_of(response)) == ("no-store", ["no-store"])

        assert restore(response) is response
        assert response.headers.get("cache-control", "") == ", ".join(original)
        assert lines_of(response) == original
        assert is_personal(response)

        assert hide(response) is response
        assert (response.headers["cache-control"], lines_of(response)) == ("no-store", ["no-store"])


def test_a_response_to_a_request_without_a_token_is_left_alone(server: Server) -> None:
    """A response to a request without a token is not personal, and its headers are neither restored nor hidden."""
    install(Settings(destinations=(server.url,)))
    with requests_session() as session:
        response = session.get(f"{server.url}/hook/private")
        assert not is_personal(response)
        for change in (restore, hide):
            assert change(response).headers["cache-control"] == "private, max-age=60"
            assert lines_of(response) == ["private, max-age=60"]


def test_a_response_after_a_personal_redirect_is_personal(server: Server) -> None:
    """A response that another server sends after a personal redirect is personal, and only the redirect's headers are
    changed.
    """
    install(Settings(destinations=(server.url,)))
    unlisted = server.url.replace("127.0.0.1", "localhost")
    with requests_session() as session:
        with use_token(ALICE):
            response = session.get(f"{server.url}/302/hook?to={unlisted}/hook/public")
        (redirect,) = response.history
        assert response.text == "anonymous"
        assert is_personal(response)
        for change, expected in ((restore, "max-age=60"), (hide, "no-store")):
            assert change(response) is response
            assert redirect.headers["cache-control"] == expected
            assert lines_of(redirect) == [expected]
            assert response.headers["cache-control"] == "public, max-age=60"


def test_a_value_that_another_layer_has_set_is_kept(server: Server) -> None:
    """A `Cache-Control` value that another layer has set in the meantime is kept."""
    install(Settings(destinations=(server.url,)))
    with urllib3.PoolManager() as pool, use_token(ALICE):
        changed, unchanged = (pool.request("GET", f"{server.url}/hook/two-lines") for _ in range(2))
    changed.headers["Cache-Control"] = "max-age=5"

    assert restore(changed).headers.getlist("cache-control") == ["max-age=5"]
    assert restore(unchanged).headers.getlist("cache-control") == ["public", "max-age=60"]


@pytest.mark.parametrize("variant", ORIGINAL_LINES)
@pytest.mark.parametrize("library", [httpx, httpx2])
def test_a_hook_restores_the_headers_of_a_personal_httpx_response(library: Any, variant: str, server: Server) -> None:
    """A cache's hook recognizes a personal httpx response and restores its original lines, unless another layer has set
    a value.
    """
    install(Settings(destinations=(server.url,)))
    with library.Client(trust_env=False, verify=False) as client:
        anonymous = client.get(f"{server.url}/hook/{variant}")
        with use_token(ALICE):
            personal, changed = (client.get(f"{server.url}/hook/{variant}") for _ in range(2))
    changed.headers["Cache-Control"] = "max-age=5"

    assert not is_personal_httpx(anonymous)
    assert is_personal_httpx(personal)
    assert restore_httpx(personal).headers.get_list("cache-control") == ORIGINAL_LINES[variant]
    assert restore_httpx(changed).headers.get_list("cache-control") == ["max-age=5"]
    assert restore_httpx(anonymous).headers.get_list("cache-control") == ORIGINAL_LINES[variant]
