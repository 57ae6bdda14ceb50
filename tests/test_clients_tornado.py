"""Tornado's client, promise by promise; what is the same for every client is in their table."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry.instrumentation.tornado import TornadoInstrumentor
from tornado.httpclient import HTTPRequest
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from otel_token_relay import Settings, install, uninstall, use_token
from otel_token_relay.errors import TokenUnavailable
from otel_token_relay.testing import third_party
from tests.support.more_clients import ROWS

ALICE = "alice-token-0001"
BOB = "bob-token-0000001"

(TORNADO,) = ROWS


@pytest.fixture(autouse=True)
def _clean():
    yield
    uninstall()


@pytest.fixture
def listed():
    """A server that is on the list."""
    with third_party() as party:
        yield party


@pytest.fixture
def outsider():
    """A server that is not."""
    with third_party() as party:
        yield party


def seen(party):
    """Give the one Authorization line of each request."""
    return [request.authorization for request in party.requests]


@pytest.fixture(params=["plain", "instrumented first", "instrumented later"])
def relay(request, listed):
    """The relay is on for the listed server, and instrumentation is on or off."""
    instrumentor = TornadoInstrumentor()
    if request.param == "instrumented first":
        instrumentor.instrument()
    install(Settings(destinations=[listed.url]))
    if request.param == "instrumented later":
        instrumentor.instrument()
    yield
    if request.param != "plain":
        instrumentor.uninstrument()


def test_each_hop_is_decided_by_itself(relay, listed, outsider):
    """To the list and away from it, and back again."""
    away = listed.redirecting_to(outsider.redirecting_to(listed.url + "/end"))
    with use_token(ALICE):
        answer = TORNADO.call(away)

    assert answer.status == 200
    assert seen(listed) == [f"Bearer {ALICE}"] * 2
    assert seen(outsider) == [None]
    outsider.assert_saw_no(ALICE)
    assert all(name.lower() != "authorization" for name, _ in answer.shown)


def test_nothing_goes_to_a_server_that_is_not_listed(relay, outsider):
    """Nor without a token to one that is."""
    with use_token(ALICE):
        TORNADO.call(outsider.url)

    outsider.assert_saw_no(ALICE)
    assert seen(outsider) == [None]


def test_a_request_used_again_carries_who_sends_it_now(relay, listed):
    """One request object for alice, bob, nobody and alice."""
    with TORNADO.reusing(listed.url) as send:
        for user in (ALICE, BOB, None, ALICE):
            with use_token(user):
                send()

    assert seen(listed) == [f"Bearer {ALICE}", f"Bearer {BOB}", None, f"Bearer {ALICE}"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"headers": {"Authorization": "Basic b3du"}}, id="header"),
        pytest.param({"headers": {"authorization": "Basic b3du"}}, id="header in lower case"),
        pytest.param({"auth_username": "own", "auth_password": "own"}, id="auth_username"),
    ],
)
def test_an_explicit_credential_wins(relay, listed, options):
    """And stays the only one."""

    async def run():
        client = SimpleAsyncHTTPClient(force_instance=True)
        await client.fetch(HTTPRequest(listed.url, **options))
        client.close()

    with use_token(ALICE):
        asyncio.run(run())

    assert [line.split()[0] for line in seen(listed)] == ["Basic"]
    listed.assert_saw_no(ALICE)


def test_a_credential_in_the_url_wins(relay, listed):
    """It is the caller's, too."""
    with use_token(ALICE):
        TORNADO.call(listed.url.replace("//", "//own:own@"))

    assert [line.split()[0] for line in seen(listed)] == ["Basic"]


def test_a_request_that_has_waited_goes_out_with_its_own_token(relay, listed):
    """The client starts it from whichever request is done, in that one's context."""

    async def run():
        client = SimpleAsyncHTTPClient(force_instance=True, max_clients=1)

        async def fetch(user):
            with use_token(user):
                await client.fetch(f"{listed.url}/{user}", request_timeout=30)

        await asyncio.gather(*(asyncio.create_task(fetch(user)) for user in (ALICE, BOB, None, BOB, ALICE)))
        client.close()

    asyncio.run(run())

    assert len(listed.requests) == 5
    for request in listed.requests:
        user = request.target.removeprefix("/")
        assert request.authorization == (None if user == "None" else f"Bearer {user}")


def test_a_redirect_of_a_request_that_has_waited_carries_its_own_token(relay, listed):
    """The second hop starts a fetch of its own."""

    async def run():
        client = SimpleAsyncHTTPClient(force_instance=True, max_clients=1)

        async def fetch(user):
            with use_token(user):
                await client.fetch(listed.redirecting_to(f"{listed.url}/{user}"), request_timeout=30)

        await asyncio.gather(*(asyncio.create_task(fetch(user)) for user in (ALICE, BOB, None, BOB)))
        client.close()

    asyncio.run(run())

    ends = [request for request in listed.requests if not request.target.startswith("/redirect")]
    assert len(ends) == 4
    for request in ends:
        user = request.target.removeprefix("/")
        assert request.authorization == (None if user == "None" else f"Bearer {user}")


def test_a_request_that_has_waited_past_the_lease_carries_nothing(relay, listed):
    """Its request is over by then."""

    async def run():
        client = SimpleAsyncHTTPClient(force_instance=True)
        with use_token(ALICE):
            fetch = client.fetch(listed.url)
        await fetch
        client.close()

    asyncio.run(run())

    assert seen(listed) == [None]


def test_a_required_token_that_is_missing_stops_the_call(listed):
    """Before a byte leaves."""
    install(Settings(destinations=[f"{listed.url};required"]))

    with pytest.raises(TokenUnavailable):
        TORNADO.call(listed.url)

    assert listed.requests == []


def test_after_uninstall_nothing_is_relayed(relay, listed):
    """Also by a connection that is being opened."""
    with use_token(ALICE):
        uninstall()
        TORNADO.call(listed.url)

    assert seen(listed) == [None]
