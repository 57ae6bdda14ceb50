"""h19: an aiohttp client middleware sends one request twice at the same time, for example, as a hedge.

Each send is decided separately and does not see the other send's header.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, ClassVar

import aiohttp
import multidict
import pytest

import otel_token_relay.runtime
from otel_token_relay import Reason, Settings, install, use_token
from tests.support.clients import in_loop
from tests.support.loopback import Party, party

ALICE = "alice-token-0001"
BOB = "bob-token-0000001"


def lines(*tokens: str | None) -> list[list[str]]:
    """Return the expected header lines, one list for each token, in sorted order."""
    return sorted([] if token is None else [f"Bearer {token}"] for token in tokens)


class Twice:
    """A middleware that sends each request for several users at the same time and records the request's headers."""

    def __init__(self, *users: str | None) -> None:
        self.users = users
        self.before: multidict.CIMultiDict[str] | None = None
        self.after: multidict.CIMultiDict[str] | None = None
        self.responses: list[aiohttp.ClientResponse] = []
        self.last: object = None

    async def __call__(self, request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
        async def send(user: str | None) -> aiohttp.ClientResponse:
            with use_token(user):
                response: aiohttp.ClientResponse = await handler(request)
                await response.read()
                return response

        self.before = request.headers.copy()
        self.responses = list(await asyncio.gather(*map(send, self.users)))
        self.after = request.headers.copy()
        self.last = request.response
        return self.responses[0]


@pytest.fixture
def listed() -> Iterator[Party]:
    """Run a server that is listed as a destination."""
    with party() as one:
        install(Settings(destinations=[one.url]))
        yield one


@pytest.fixture
def reasons(listed: Party) -> list[Reason]:
    """Return a list that collects the reasons recorded for hops to the listed server."""
    runtime = otel_token_relay.runtime.installed
    assert runtime is not None
    found: list[Reason] = []
    record = runtime.relay._record

    def observed(reason: Reason, *args: Any, **kwargs: Any) -> None:
        found.append(reason)
        record(reason, *args, **kwargs)

    runtime.relay._record = observed  # type: ignore[method-assign]
    return found


def waiting_trace() -> tuple[aiohttp.TraceConfig, list[Any]]:
    """Return a trace that delays each send until all decisions have been made, and the headers it receives."""
    trace, seen = aiohttp.TraceConfig(), list[Any]()

    async def wait(session: object, context: object, params: Any) -> None:
        seen.append(params.headers)
        await asyncio.sleep(0.05)

    trace.on_request_headers_sent.append(wait)
    return trace, seen


def send(url: str, twice: Twice, *, traced: bool, method: str = "GET", **options: Any) -> list[Any]:
    trace, seen = waiting_trace()

    async def run() -> None:
        traces = [trace] if traced else []
        async with (
            aiohttp.ClientSession(middlewares=[twice], trace_configs=traces) as session,
            session.request(method, url, **options) as response,
        ):
            assert response.status == 200

    in_loop(run())
    return seen


@pytest.mark.parametrize("traced", [False, True], ids=["at once", "interleaved"])
@pytest.mark.parametrize(
    "users",
    [(ALICE, ALICE), (ALICE, BOB), (ALICE, BOB, None), (None, ALICE)],
    ids=["one user", "two users", "two users and none", "none first"],
)
def test_each_send_of_one_request_carries_its_own_token(
    users: tuple[str | None, ...], traced: bool, listed: Party, reasons: list[Reason]
) -> None:
    """Each send of a request carries its own user's token, and the request's headers are restored afterward."""
    twice = Twice(*users)
    seen = send(listed.url, twice, traced=traced)

    assert sorted(listed.lines()) == lines(*users)
    relayed = [Reason.RELAYED for user in users if user is not None]
    assert [reason for reason in reasons if reason is not Reason.NO_TOKEN] == relayed
    assert twice.after == twice.before
    assert all("authorization" not in response.request_info.headers for response in twice.responses)
    assert len(seen) == (len(users) if traced else 0)
    assert all("authorization" not in headers for headers in seen)


@pytest.mark.parametrize("traced", [False, True], ids=["at once", "interleaved"])
def test_a_replaced_header_is_restored_for_each_send(traced: bool, listed: Party) -> None:
    """With ON_CONFLICT=replace, the application always sees its own header lines."""
    install(Settings(destinations=[listed.url], on_conflict="replace"))
    own = {"Authorization": "Own a"}
    twice = Twice(ALICE, BOB)
    seen = send(listed.url, twice, traced=traced, headers=own)

    assert sorted(listed.lines()) == lines(ALICE, BOB)
    assert twice.after == twice.before
    shown = [twice.after, *(response.request_info.headers for response in twice.responses), *seen]
    assert all(headers is not None and headers.getall("authorization") == ["Own a"] for headers in shown)


def test_what_aiohttp_adds_is_seen_on_the_request(listed: Party) -> None:
    """After a send, the request has the default content type and its response, just as without the relay."""
    twice = Twice(ALICE)
    send(listed.url, twice, traced=False, method="POST")

    assert twice.after is not None
    assert twice.after["Content-Type"] == "application/octet-stream"
    assert listed.requests[0].header_lines("content-type") == ["application/octet-stream"]
    assert twice.responses[0].request_info.headers == twice.after
    assert twice.last is twice.responses[0]


class Custom(aiohttp.ClientRequest):
    """A custom request class that counts its writes."""

    written: ClassVar[list[int]] = []

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        response = await super().send(conn)
        self.sent_by = type(self)
        return response

    async def write_bytes(self, *args: Any, **kwargs: Any) -> None:
        self.written.append(1)
        await super().write_bytes(*args, **kwargs)


class Underivable(aiohttp.ClientRequest):
    """A request class that cannot be subclassed without an argument."""

    def __init_subclass__(cls, *, purpose: str) -> None:
        super().__init_subclass__()


@pytest.mark.parametrize(("kind", "user"), [(Custom, ALICE), (Underivable, None)])
def test_a_request_class_of_the_application(kind: Any, user: str | None, listed: Party) -> None:
    """A custom request class keeps its methods, and carries no token if it cannot be subclassed."""

    async def run() -> None:
        async with (
            aiohttp.ClientSession(request_class=kind) as session,
            session.post(listed.url, data=b"body") as response,
        ):
            assert response.status == 200

    Custom.written.clear()
    with use_token(ALICE):
        in_loop(run())

    assert listed.lines() == lines(user)
    assert listed.requests[0].body == b"body"
    assert len(Custom.written) == (kind is Custom)
