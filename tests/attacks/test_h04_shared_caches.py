"""h04: a cache in the client never returns one user's response to another user."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from aiohttp_client_cache import CacheBackend, CachedSession
from hishel.httpx import AsyncCacheClient

from otel_token_relay import Settings, as_service, install, uninstall, use_token
from tests.support.caches import (
    ANONYMOUS,
    CACHES,
    ETAG,
    VARIANTS,
    Call,
    MemoryStorage,
    Row,
    Server,
    personal_server,
    send_aiohttp,
    send_httpx,
)
from tests.support.token_endpoint import SECRET, Endpoint, verified

pytestmark = pytest.mark.usefixtures("serving_process")

ALICE, BOB = "alice-has-this-token-0123456789", "bob-has-another-token-9876543210"

# The storage of these caches is thread-safe.
THREADED = ("CacheControl", "CacheControl, OneDayCache", "requests-cache", "requests-cache above CacheControl")

every_cache = pytest.mark.parametrize("row", CACHES, ids=lambda row: row.name)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with personal_server() as running:
        yield running


@pytest.fixture(scope="module")
def other_server() -> Iterator[Server]:
    with personal_server() as running:
        yield running


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    uninstall()


def user(token: str | None) -> AbstractContextManager[Any]:
    return nullcontext() if token is None else use_token(token)


def crossings(
    call: Call,
    url: str,
    callers: dict[str, Callable[[], AbstractContextManager[Any]]],
    variants: Iterable[str] = tuple(VARIANTS),
) -> list[str]:
    """Call the same URLs as each caller in several orders, and return the responses that belong to a different caller.

    Args:
        callers: Maps what the server receives from each caller to a context manager that acts as that caller.
    """
    found = []
    first, *others = callers
    orders = [[first, *others, first], [*reversed(callers), *others]]
    for variant in variants:
        for number, order in enumerate(orders):
            for expected in order:
                with callers[expected]():
                    one = call(f"{url}/{number}/{variant}")
                if (one.status, one.body) != (200, expected):
                    found.append(f"{variant}: {one.status} {one.body} instead of {expected}")
    return found


@every_cache
def test_no_relayed_token_s_response_crosses_users(row: Row, server: Server, tmp_path: Path) -> None:
    """No cache returns a relayed token's response to a different caller, regardless of the response headers."""
    install(Settings(destinations=(server.url,)))
    callers: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        ALICE: lambda: use_token(ALICE),
        BOB: lambda: use_token(BOB),
        ANONYMOUS: nullcontext,
    }
    with row.opening(tmp_path) as call:
        assert crossings(call, server.url, callers) == []


@every_cache
def test_no_exchanged_or_own_token_s_response_crosses_users(
    row: Row, server: Server, endpoint: Endpoint, tmp_path: Path
) -> None:
    """No cache returns the response of an exchanged token, or of the service's own token, to a different caller."""
    install(
        Settings(
            destinations=(f"{server.url};audience=billing;without-user=client",),
            token_endpoint=endpoint.url,
            client_id="user-service",
            client_secret=SECRET,
        )
    )
    callers: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        f"{ALICE}.for.billing": lambda: use_token(verified(ALICE)),
        f"{BOB}.for.billing": lambda: use_token(verified(BOB)),
        "service.for.billing": as_service,
        ANONYMOUS: nullcontext,
    }
    with row.opening(tmp_path) as call:
        assert crossings(call, server.url, callers, ("public", "stale")) == []


@every_cache
def test_the_table_finds_what_the_protection_prevents(row: Row, server: Server, tmp_path: Path) -> None:
    """With ``PROTECT_CACHES=false``, each cache returns Alice's response to Bob."""
    install(Settings(destinations=(server.url,), protect_caches=False))
    with row.opening(tmp_path) as call:
        bodies = []
        for caller in (ALICE, BOB):
            with use_token(caller):
                bodies.append(call(f"{server.url}/unprotected/public").body)

    assert bodies == [ALICE, ALICE]


@every_cache
def test_the_application_sees_what_it_sees_without_the_package(row: Row, server: Server, tmp_path: Path) -> None:
    """The first response to each user, and every response without a token, is the same as without the package."""
    server.seen.clear()
    variants, explicit = ("private", "silent", "two-lines", "stale"), {"Authorization": "Bearer mine"}

    def answers(run: str, token: str | None) -> list[tuple[int, dict[str, str]]]:
        (own := tmp_path / run).mkdir()
        with row.opening(own) as call, user(token):
            seen = [call(f"{server.url}/{run}/{variant}") for variant in variants]
        hidden = ("content-length", "x-hishel-stored", "expires", "age")  # the last two depend on the current time
        return [(one.status, {k: v for k, v in one.headers.items() if k not in hidden}) for one in seen]

    def unchanged(run: str) -> list[tuple[int, str]]:
        (own := tmp_path / run).mkdir()
        with row.opening(own) as call:
            calls = [(variant, headers) for variant in variants for headers in ({}, explicit, {})]
            return [
                (one.status, one.body)
                for variant, headers in calls
                for one in (call(f"{server.url}/{run}/{variant}", headers),)
            ]

    expected, expected_program = answers("without", None), unchanged("program-without")
    install(Settings(destinations=(server.url,)))

    assert answers("with", ALICE) == expected
    if "while_revalidate" in row.name:  # the responses depend on the current time
        return
    assert unchanged("program-with") == expected_program
    assert paths(server, "program-with") == paths(server, "program-without")


def paths(server: Server, run: str) -> list[tuple[str, str | None]]:
    seen = [(path, token, tag) for path, token, tag in server.seen if path.startswith(f"/{run}/")]
    return [(f"{path.rpartition('/')[2]} {token}", tag) for path, token, tag in seen]


@every_cache
def test_a_validator_of_the_user_s_own_is_not_served_from_another_entry(
    row: Row, server: Server, tmp_path: Path
) -> None:
    """A user's conditional request never gets another user's cached entry, even one from before installation."""
    with row.opening(tmp_path) as call:
        call(f"{server.url}/old/etag", {"Authorization": f"Bearer {ALICE}"})
        call(f"{server.url}/old/stale", {"Authorization": f"Bearer {ALICE}"})
        install(Settings(destinations=(server.url,)))
        with use_token(BOB):
            found = [
                call(f"{server.url}/old/{name}", headers)
                for name in ("etag", "stale")
                for headers in ({}, {"If-None-Match": ETAG}, {"Cache-Control": "max-age=0"})
            ]

    assert {(one.status, one.body) for one in found} == {(200, BOB), (304, "")}


@every_cache
def test_redirects_between_a_listed_and_an_unlisted_host(
    row: Row, server: Server, other_server: Server, tmp_path: Path
) -> None:
    """No cache returns one user's redirect, or the response that follows the redirect, to a different user."""
    install(Settings(destinations=(server.url,)))
    away = [f"{server.url}/{status}?to={other_server.url}/{status}/public" for status in (301, 302, 307)]
    back = [f"{other_server.url}/{status}?to={server.url}/back{status}/public" for status in (301, 302, 307)]
    server.seen.clear()
    with row.opening(tmp_path) as call:
        for caller in (ALICE, None, BOB, ALICE):
            with user(caller):
                assert [call(url).body for url in away] == [ANONYMOUS] * 3
                assert [call(url).body for url in back] == [caller or ANONYMOUS] * 3

    redirected = [token for path, token, _ in server.seen if path.startswith("/302?")]
    assert [token for token in redirected if token != ANONYMOUS] == [ALICE, BOB, ALICE]
    assert ANONYMOUS in redirected  # the anonymous caller did not get Alice's redirect


@pytest.mark.parametrize("row", [row for row in CACHES if row.name in THREADED], ids=lambda row: row.name)
def test_users_at_once(row: Row, server: Server, tmp_path: Path) -> None:
    """Threads with different users share a cache, and each user gets only their own responses."""
    install(Settings(destinations=(server.url,)))
    tokens = [f"user-{number}-has-this-token-0123456789" for number in range(6)]

    with row.opening(tmp_path) as call:

        def run(token: str) -> list[str]:
            found = []
            for number in range(5):
                with use_token(token):
                    found.append(call(f"{server.url}/threads{number}/public").body)
            return found

        with ThreadPoolExecutor(len(tokens)) as pool:
            assert list(pool.map(run, tokens)) == [[token] * 5 for token in tokens]


@pytest.mark.parametrize("kind", ["aiohttp", "hishel default", "hishel RFC mode"])
def test_users_at_once_on_one_loop(kind: str, server: Server) -> None:
    """Concurrent requests of different users never share a response, even if the cache combines equal requests."""
    install(Settings(destinations=(server.url,)))
    tokens = [f"user-{number}-has-this-token-0123456789" for number in range(8)]

    def client() -> Any:
        if kind == "aiohttp":
            return CachedSession(cache=CacheBackend())
        return AsyncCacheClient(storage=MemoryStorage(), rfc=kind.endswith("RFC mode"), trust_env=False, verify=False)

    async def one(opened: Any, token: str) -> list[str]:
        send = send_aiohttp if kind == "aiohttp" else send_httpx
        with use_token(token):
            answers = [await send(opened, f"{server.url}/loop{number}/public", {}) for number in range(3)]
        return [answer.body for answer in answers]

    async def run() -> list[list[str]]:
        async with client() as opened:
            return await asyncio.gather(*(one(opened, token) for token in tokens))

    assert asyncio.run(run()) == [[token] * 3 for token in tokens]
