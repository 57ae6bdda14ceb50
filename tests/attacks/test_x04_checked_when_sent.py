"""x04: every kind of token is checked again after a request has waited, just before the request is sent."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import requests

from otel_token_relay import Settings, as_service, context, install, use_token
from otel_token_relay.boundary import Boundary
from tests.support.carrying import PATIENCE
from tests.support.loopback import Party, grpc_party, party
from tests.support.token_endpoint import ACCESS_TOKEN, SECRET, Endpoint, unsigned_jwt, verified

pytestmark = pytest.mark.usefixtures("serving_process")

ALICE = "alice-has-this-token-0123456789"


def install_for(endpoint: Endpoint, url: str) -> None:
    install(
        Settings(
            destinations=(f"{url};audience=billing;without-user=client",),
            token_endpoint=endpoint.url,
            client_id="user-service",
            client_secret=SECRET,
        )
    )


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def send_queued(billing: Party, endpoint: Endpoint, event: Callable[[], object]) -> None:
    """Send a request, run *event* while the request waits for the only connection, and then free the connection."""
    limits = httpx.Limits(max_connections=1)
    with httpx.Client(limits=limits, timeout=PATIENCE, trust_env=False) as client:
        with client.stream("GET", f"{billing.url}/holder", headers={"authorization": "Bearer mine"}):
            thread = threading.Thread(target=contextvars.copy_context().run, args=(client.get, billing.url))
            thread.start()
            until(lambda: bool(client._transport._pool._requests[1:]))  # type: ignore[attr-defined]
            event()
        thread.join(PATIENCE)


def test_a_block_of_as_service_that_ends_while_a_request_waits(endpoint: Endpoint) -> None:
    with party() as billing:
        install_for(endpoint, billing.url)
        block = as_service()
        block.__enter__()
        send_queued(billing, endpoint, partial(block.__exit__, None, None, None))
        assert billing.lines() == [["Bearer mine"], []]


def test_a_process_that_begins_to_serve_while_a_request_waits(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "has_served", False)
    with party() as billing:
        install_for(endpoint, billing.url)
        send_queued(billing, endpoint, lambda: Boundary(None, lambda name: [], Settings()).close())
        assert billing.lines() == [["Bearer mine"], []]


def test_a_grpc_call_that_waits_until_its_server_is_ready(endpoint: Endpoint) -> None:
    """With both kinds of channels, a gRPC call is checked again when its server becomes ready."""
    with grpc_party() as gone:
        address = gone.url.removeprefix("http://")
    install_for(endpoint, gone.url)
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 200)]

    async def call_aio() -> None:
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            await channel.unary_unary("/tests.Party/call")(b"", timeout=PATIENCE, wait_for_ready=True)

    def call() -> None:
        with grpc.insecure_channel(address, options=options) as channel:
            channel.unary_unary("/tests.Party/call")(b"", timeout=PATIENCE, wait_for_ready=True)

    calls: list[Callable[[], Any]] = [call, lambda: asyncio.run(call_aio())]
    with as_service():
        threads = [threading.Thread(target=contextvars.copy_context().run, args=(one,)) for one in calls]
        for thread in threads:
            thread.start()
        until(lambda: len(endpoint.forms) == 1)
        time.sleep(0.2)  # both calls have been decided
    with grpc_party(address=address) as billing:
        for thread in threads:
            thread.join(PATIENCE)
        assert billing.lines() == [[], []]


def issued(**members: Any) -> dict[str, Any]:
    return {"issued_token_type": ACCESS_TOKEN, "token_type": "Bearer", "access_token": "opaque-result"} | members


def test_an_exchanged_token_that_expires_while_a_request_waits(endpoint: Endpoint) -> None:
    """A request does not carry an exchanged token that expires while the request waits."""
    endpoint.respond = lambda form: (200, issued(expires_in=1))
    with party() as billing:
        install_for(endpoint, billing.url)
        with use_token(verified(ALICE)):
            send_queued(billing, endpoint, lambda: time.sleep(1.2))
        assert billing.lines() == [["Bearer mine"], []]


@pytest.mark.parametrize(
    "members",
    [{"expires_in": 0}, {"expires_in": -5}, {"access_token": unsigned_jwt(aud="billing", exp=1_000_000_000)}],
    ids=["0 seconds", "negative", "exp"],
)
def test_a_result_that_has_expired_is_not_sent(endpoint: Endpoint, members: dict[str, Any]) -> None:
    """A result that has already expired is not used, and the failure is remembered for a moment."""
    endpoint.respond = lambda form: (200, issued(**members))
    with party() as billing:
        install_for(endpoint, billing.url)
        with use_token(verified(ALICE)):
            requests.get(billing.url)
            requests.get(billing.url)
        assert billing.lines() == [[], []]
    assert len(endpoint.forms) == 1
