"""h04: a cache between the application and the client never serves one user's response to another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from otel_token_relay import Settings, as_service, context, install, uninstall, use_token
from otel_token_relay.configured_exchange import build_token_source
from tests.support.caches import CACHES, ETAG, NOBODY, VARIANTS, Call, Row, Server, personal_server
from tests.support.token_endpoint import SECRET, Endpoint, serving, verified

ALICE, BOB = "alice-has-this-token-0123456789", "bob-has-another-token-9876543210"

every_cache = pytest.mark.parametrize("row", CACHES, ids=lambda row: row.name)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with personal_server() as running:
        yield running


@pytest.fixture(scope="module")
def other_server() -> Iterator[Server]:
    with personal_server() as running:
        yield running


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    build_token_source.cache_clear()
    monkeypatch.setattr(context, "has_served", True)
    with serving() as running:
        yield running
    build_token_source.cache_clear()


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
    """Let all *callers* call the same URLs in several orders, and return each response that is another's.

    Args:
        callers: How to become each caller, by what the server sees of it.
    """
    found = []
    first, *others = callers
    orders = [[first, *others, first], [*reversed(callers), *others]]
    for variant in variants:
        for number, order in enumerate(orders):
            for expected in order:
                with callers[expected]():
                    answer = call(f"{url}/{number}/{variant}")
                if (answer.status, answer.body) != (200, expected):
                    found.append(f"{variant}: {answer.status} {answer.body} instead of {expected}")
    return found


@every_cache
def test_no_relayed_token_s_response_crosses_users(row: Row, server: Server, tmp_path: Path) -> None:
    """Alice, Bob and a call without a user, whatever the destination says."""
    install(Settings(destinations=(server.url,)))
    callers: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        ALICE: lambda: use_token(ALICE),
        BOB: lambda: use_token(BOB),
        NOBODY: nullcontext,
    }
    with row.opening(tmp_path) as call:
        assert crossings(call, server.url, callers) == []


@every_cache
def test_no_exchanged_or_own_token_s_response_crosses_users(
    row: Row, server: Server, endpoint: Endpoint, tmp_path: Path
) -> None:
    """Nor does the response to the service's own call reach a user."""
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
        NOBODY: nullcontext,
    }
    with row.opening(tmp_path) as call:
        assert crossings(call, server.url, callers, ("public", "stale")) == []


@every_cache
def test_the_table_finds_what_the_protection_prevents(row: Row, server: Server, tmp_path: Path) -> None:
    """With ``PROTECT_CACHES=false``, each cache serves Alice's response to Bob."""
    install(Settings(destinations=(server.url,), protect_caches=False))
    with row.opening(tmp_path) as call:
        bodies = []
        for caller in (ALICE, BOB):
            with use_token(caller):
                bodies.append(call(f"{server.url}/unprotected/public").body)

    assert bodies == [ALICE, ALICE]
