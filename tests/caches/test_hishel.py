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
