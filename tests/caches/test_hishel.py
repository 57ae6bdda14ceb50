"""Tests for hishel only; `tests/attacks/test_h04_shared_caches.py` tests all caches."""

from __future__ import annotations

import httpx
import pytest
import requests
from hishel.httpx import AsyncCacheTransport, CacheClient, CacheTransport
from hishel.requests import CacheAdapter

from otel_token_relay import use_token
from tests.support.caches import MemoryStorage, Server, in_memory
from tests.support.clients import in_loop

ALICE = "alice-has-this-token-0123456789"
GIVEN = "private, max-age=60"


class OwnClient(httpx.Client):
    """A custom client class, which might be a cache."""


class OwnCacheClient(CacheClient):
    """A custom subclass of hishel's client, which might be a cache."""


class OwnAsyncClient(httpx.AsyncClient):
    """A custom asynchronous client class, which might be a cache."""


class OwnSession(requests.Session):
    """A custom session class, which might be a cache."""


@pytest.mark.parametrize("rfc", [False, True], ids=["default", "RFC mode"])
@pytest.mark.parametrize(("kind", "expected"), [(httpx.Client, GIVEN), (OwnClient, "no-store")])
def test_only_the_librarys_own_client_sees_the_servers_headers(
    kind: type[httpx.Client], expected: str, rfc: bool, server: Server
) -> None:
    """Responses to a custom client class are marked ``no-store``, because the class might be a cache."""
    transport = CacheTransport(httpx.HTTPTransport(), in_memory(), rfc=rfc)
    with kind(transport=transport) as client, use_token(ALICE):
        assert client.get(f"{server.url}/private").headers["Cache-Control"] == expected


@pytest.mark.parametrize(("kind", "expected"), [(CacheClient, GIVEN), (OwnCacheClient, "no-store")])
def test_hishels_client_is_not_a_cache_of_the_applications_own(
    kind: type[CacheClient], expected: str, server: Server
) -> None:
    """Responses to a subclass of hishel's client are marked ``no-store``, and those to the client itself are not."""
    with kind(storage=in_memory(), trust_env=False) as client, use_token(ALICE):
        assert client.get(f"{server.url}/private").headers["Cache-Control"] == expected


@pytest.mark.parametrize(("kind", "expected"), [(httpx.AsyncClient, GIVEN), (OwnAsyncClient, "no-store")])
def test_the_asynchronous_client(kind: type[httpx.AsyncClient], expected: str, server: Server) -> None:
    """Responses to a custom asynchronous client class are marked ``no-store``."""

    async def send() -> str:
        transport = AsyncCacheTransport(httpx.AsyncHTTPTransport(), MemoryStorage())
        async with kind(transport=transport) as client:
            response = await client.get(f"{server.url}/private")
            value: str = response.headers["Cache-Control"]
            return value

    with use_token(ALICE):
        assert in_loop(send()) == expected


@pytest.mark.parametrize(("kind", "expected"), [(requests.Session, GIVEN), (OwnSession, "no-store")])
def test_the_adapter_for_requests(kind: type[requests.Session], expected: str, server: Server) -> None:
    """Responses to a custom requests session with hishel's adapter are marked ``no-store``."""
    with kind() as session, use_token(ALICE):
        session.trust_env = False
        session.mount("http://", CacheAdapter(storage=in_memory()))
        response = session.get(f"{server.url}/private")

    assert response.headers["Cache-Control"] == response.raw.headers["Cache-Control"] == expected


class Forwarding(httpx.HTTPTransport):
    """A transport below the cache that sends each request to the listed server, whose URL the cache does not see."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        headers = {name: value for name, value in request.headers.items() if name != "host"}
        return super().handle_request(httpx.Request(request.method, f"{self.url}{request.url.path}", headers=headers))


class AsyncForwarding(httpx.AsyncHTTPTransport):
    """The asynchronous counterpart of `Forwarding`."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        headers = {name: value for name, value in request.headers.items() if name != "host"}
        forwarded = httpx.Request(request.method, f"{self.url}{request.url.path}", headers=headers)
        return await super().handle_async_request(forwarded)


UNLISTED = "http://unlisted.example"
# Anonymous callers store a response. Callers with a token must get neither that response nor each other's.
CALLERS = ("anonymous", ALICE, "bob-has-another-token-9876543210", ALICE, "anonymous")


@pytest.mark.parametrize("rfc", [False, True], ids=["default", "RFC mode"])
@pytest.mark.parametrize("path", ["/private", "/silent"])
def test_a_personal_response_to_an_unlisted_url_bypasses_the_cache(path: str, rfc: bool, server: Server) -> None:
    """The token is relayed below the cache, so only the response reveals that it is personal."""
    transport = CacheTransport(Forwarding(server.url), in_memory(), rfc=rfc)
    with httpx.Client(transport=transport) as client:
        for caller in CALLERS[1:]:
            with use_token(None if caller == "anonymous" else caller):
                assert client.get(f"{UNLISTED}{path}").text == caller


@pytest.mark.parametrize("rfc", [False, True], ids=["default", "RFC mode"])
def test_an_asynchronous_personal_response_bypasses_the_cache(rfc: bool, server: Server) -> None:
    """Asynchronous transports are protected in the same way."""

    async def send() -> list[str]:
        transport = AsyncCacheTransport(AsyncForwarding(server.url), MemoryStorage(), rfc=rfc)
        received = []
        async with httpx.AsyncClient(transport=transport) as client:
            for caller in CALLERS[1:]:
                with use_token(None if caller == "anonymous" else caller):
                    received.append((await client.get(f"{UNLISTED}/private")).text)
        return received

    assert in_loop(send()) == [*CALLERS[1:]]


def test_a_request_that_the_cache_made_conditional_is_repeated_without_the_condition(server: Server) -> None:
    """A 304 response refers to the stored response, which belongs to a different caller."""
    transport = CacheTransport(Forwarding(server.url), in_memory(), rfc=True)
    with httpx.Client(transport=transport) as client:
        for caller in CALLERS:
            with use_token(None if caller == "anonymous" else caller):
                response = client.get(f"{UNLISTED}/stale")
            assert (response.status_code, response.text) == (200, caller)
    assert [condition is not None for _, token, condition in server.seen if token == ALICE] == [True, False] * 2


def test_an_asynchronous_conditional_request_is_repeated_without_the_condition(server: Server) -> None:
    """Asynchronous transports repeat the request in the same way."""

    async def send() -> list[tuple[int, str]]:
        transport = AsyncCacheTransport(AsyncForwarding(server.url), MemoryStorage(), rfc=True)
        received = []
        async with httpx.AsyncClient(transport=transport) as client:
            for caller in CALLERS:
                with use_token(None if caller == "anonymous" else caller):
                    response = await client.get(f"{UNLISTED}/stale")
                    received.append((response.status_code, response.text))
        return received

    assert in_loop(send()) == [(200, caller) for caller in CALLERS]
