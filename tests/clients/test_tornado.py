"""Tests for behavior that is specific to Tornado's client; `test_all_clients.py` covers all clients."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry.instrumentation.tornado import TornadoInstrumentor
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from otel_token_relay import Settings, install, use_token
from otel_token_relay.testing import third_party
from tests.support.rejecting_tokens import Guarded, check_one_retry

ALICE = "alice-token-0001"
BOB = "bob-token-0000001"


@pytest.fixture
def listed():
    """Run a server that is listed as a destination."""
    with third_party() as party:
        yield party


@pytest.fixture(params=["plain", "instrumented first", "instrumented later"])
def relay(request, listed):
    """Enable the relay for the listed server, with and without instrumentation."""
    instrumentor = TornadoInstrumentor()
    if request.param == "instrumented first":
        instrumentor.instrument()
    install(Settings(destinations=[listed.url]))
    if request.param == "instrumented later":
        instrumentor.instrument()
    yield
    if request.param != "plain":
        instrumentor.uninstrument()


def test_a_queued_request_carries_its_own_token(relay, listed):
    """A queued request carries its own token, although it starts in the context of an earlier request."""

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


def test_a_redirect_of_a_queued_request_carries_its_own_token(relay, listed):
    """A redirect of a queued request carries the request's own token."""

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


def test_a_queued_request_carries_no_token_after_its_lease_has_ended(relay, listed):
    """A queued request carries no token if its `use_token` block ends before the request is sent."""

    async def run():
        client = SimpleAsyncHTTPClient(force_instance=True)
        with use_token(ALICE):
            fetch = client.fetch(listed.url)
        await fetch
        client.close()

    asyncio.run(run())

    assert [request.authorization for request in listed.requests] == [None]


def test_a_rejected_request_is_sent_once_more(rejecting: Guarded) -> None:
    """The application sees only the second response, or the first response if the second token is rejected too."""
    check_one_retry("tornado", rejecting)
