"""A caller's block runs like a request that has arrived with the caller's token."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from otel_token_relay import current_token, uninstall
from otel_token_relay.testkit.callers import Caller, CallerRefused
from otel_token_relay.testkit.installations import installed_relay
from otel_token_relay.token import BearerToken
from tests.support.issuers import Issuer
from tests.support.tokens import AUDIENCE, claims, make_token

ALICE, BOB = Caller("alice", BearerToken("alice-1")), Caller("bob", BearerToken("bob-1"))


@pytest.fixture
def relay() -> Iterator[None]:
    with installed_relay(destinations=["https://billing.example"]):
        yield


def bound() -> str | None:
    token = current_token()
    return None if token is None else token.reveal()


@pytest.mark.usefixtures("relay")
def test_the_token_is_bound_until_the_block_ends() -> None:
    """An inner block is the request of another caller."""
    with ALICE as alice:
        assert alice is ALICE
        token = current_token()
        with BOB:
            assert bound() == "bob-1"
        assert bound() == "alice-1"
    assert bound() is None
    assert token is not None
    assert not token.is_usable


@pytest.mark.usefixtures("relay")
def test_a_block_that_raises_ends_like_any_other() -> None:
    """The exception is the test's."""
    with pytest.raises(ArithmeticError), ALICE:
        raise ArithmeticError
    assert bound() is None


@pytest.mark.usefixtures("relay")
def test_concurrent_blocks_of_one_caller_do_not_mix() -> None:
    """Each task and each thread has a request of its own."""

    async def call(caller: Caller) -> list[str | None]:
        found = []
        async with caller as entered:
            assert entered is caller
            for _ in range(3):
                found.append(bound())
                await asyncio.sleep(0)
        return [*found, bound()]

    async def call_all() -> list[list[str | None]]:
        return await asyncio.gather(*(call(caller) for caller in (ALICE, BOB, ALICE)))

    expected = [[name] * 3 + [None] for name in ("alice-1", "bob-1", "alice-1")]
    assert asyncio.run(call_all()) == expected
    found: list[str | None] = []
    with ALICE:
        thread = threading.Thread(target=lambda: BOB.__enter__() and found.append(bound()))
        thread.start()
        thread.join(20)
        assert bound() == "alice-1"
    assert found == ["bob-1"]


def test_the_header_of_the_settings_is_read() -> None:
    """A gateway may send the token in a header of its own."""
    with installed_relay(destinations=["https://billing.example"], source_headers=["x-forwarded-access-token"]), ALICE:
        assert bound() == "alice-1"


def test_a_rejected_token_is_a_failure_without_a_boundary(issuer: Issuer) -> None:
    """The message names the caller and the reason, and not the token."""
    good, bad = (
        Caller("alice", BearerToken(make_token(claims(issuer.url, aud=audience)))) for audience in (AUDIENCE, "other")
    )

    async def enter() -> None:
        async with bad:
            raise AssertionError("the block is not run")

    with installed_relay(
        destinations=["https://billing.example"], verify="enforce", issuers=[issuer.url], audience=[AUDIENCE]
    ):
        with good:
            token = current_token()
            assert token is not None
            assert token.verification is not None
        for attempt in (bad.__enter__, lambda: asyncio.run(enter())):
            with pytest.raises(CallerRefused) as refused:
                attempt()
            assert str(refused.value) == "alice's token is not accepted: wrong_audience, claim aud (status 401)"
            assert bound() is None


def test_a_caller_needs_a_relay() -> None:
    """Without one, the block would silently run without a token."""
    uninstall()
    with pytest.raises(RuntimeError, match="no relay is installed: use the token_relay fixture or installed_relay"):
        ALICE.__enter__()


def test_no_text_contains_the_token() -> None:
    """pytest shows the variables of a failed test."""
    assert ALICE.headers == {"Authorization": "Bearer alice-1"}
    assert repr(ALICE.headers) == "<Headers Authorization>"
    assert repr(ALICE) == "<Caller alice>"
