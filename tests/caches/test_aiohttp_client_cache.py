"""Tests for aiohttp-client-cache only; `tests/attacks/test_h04_shared_caches.py` tests all caches."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp_client_cache import CacheBackend, CachedSession

from otel_token_relay import use_token
from tests.support.caches import Server

ALICE, BOB = "alice-has-this-token-0123456789", "bob-has-another-token-9876543210"


@pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning")
@pytest.mark.parametrize(("is_own", "expected"), [(False, "private, max-age=60"), (True, "no-store")])
def test_only_the_librarys_own_session_sees_the_servers_headers(is_own: bool, expected: str, server: Server) -> None:
    """Responses to a custom session class are marked ``no-store``, because the class might be a cache."""
    kind = type("OwnSession", (CachedSession,), {}) if is_own else CachedSession

    async def send() -> str:
        async with kind(cache=CacheBackend()) as session, session.get(f"{server.url}/private") as response:
            return response.headers["Cache-Control"]

    with use_token(ALICE):
        assert asyncio.run(send()) == expected


def test_a_relative_url_is_not_served_from_the_cache(server: Server) -> None:
    """A response for a relative URL is not served from the cache, because the destination is unknown there."""

    async def send() -> list[str]:
        found = []
        async with CachedSession(server.url, cache=CacheBackend()) as session:
            for token in (ALICE, BOB):
                with use_token(token):
                    async with session.get("/public") as response:
                        found.append(await response.text())
        return found

    assert asyncio.run(send()) == [ALICE, BOB]
