"""h09: a request that waits for a connection in httpx or httpx2 sends no token after the caller's request has ended.

The transport decides before the request waits, and the connection checks the decision again when it sends the request.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from opentelemetry import context as otel_context
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor, HTTPXClientInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_token_relay import Reason, Settings, install, use_token
from otel_token_relay.context import with_token
from otel_token_relay.errors import TokenUnavailable
from otel_token_relay.testing import assert_never_leaked
from otel_token_relay.token import BearerToken, Lease
from tests.support.carrying import PATIENCE
from tests.support.http2 import http2_party
from tests.support.loopback import Party, party, proxy, socks_proxy, trust
from tests.support.queued import (
    LINE,
    TOKEN,
    Caller,
    Event,
    end_request,
    fail_to_check,
    go_on,
    let_it_age,
    let_it_expire,
    revoke,
)

# This token belongs to the caller whose requests use the only connection before and after the tested request.
HOLDER = "holders-token-0001"
HOLDERS_LINE = [f"Bearer {HOLDER}"]


LOSSES = pytest.mark.parametrize(
    ("event", "reason"),
    [
        pytest.param(end_request, Reason.LEASE_ENDED, id="lease ended"),
        pytest.param(let_it_expire, Reason.EXPIRED, id="expired"),
        pytest.param(revoke, Reason.NOT_VERIFIED, id="revoked"),
        pytest.param(let_it_age, Reason.TOO_OLD, id="too old"),
        pytest.param(fail_to_check, Reason.NOT_VERIFIED, id="check fails"),
    ],
)


@dataclass(frozen=True)
class Way:
    """A client with a single connection or stream, which is busy while the tested request waits."""

    module: ModuleType
    is_async: bool
    is_http2: bool = False
    via: str | None = None

    def options(self) -> dict[str, Any]:
        limits = self.module.Limits(max_connections=1)
        return {
            "limits": limits,
            "http1": not self.is_http2,
            "http2": self.is_http2,
            "trust_env": False,
            "verify": trust(),
            "proxy": self.via,
            "timeout": PATIENCE,
        }

    def send_queued(
        self, url: str, caller: Caller, event: Event, method: str = "GET", *, hold: float = 0.0, **options: Any
    ) -> Any:
        """Send a request, run *event* while the request waits, and return the response or the error.

        After *event*, the connection stays busy for *hold* more seconds.
        """
        if self.is_async:
            return asyncio.run(self._send_queued_async(url, caller, event, method, hold, options))
        outcome: list[Any] = []

        def send() -> None:
            with caller.bound():
                try:
                    outcome.append(client.request(method, url, **options))
                except Exception as error:
                    outcome.append(error)

        with self.module.Client(**self.options()) as client, use_token(HOLDER):
            with client.stream("GET", url):
                thread = threading.Thread(target=send, daemon=True)
                thread.start()
                assert caller.decided.wait(PATIENCE)
                event(caller)
                time.sleep(hold)
            thread.join(PATIENCE)
            # The client still works afterward, on the same connection or on a new one.
            assert client.get(url).status_code == 200
        (result,) = outcome
        return result

    async def _send_queued_async(
        self, url: str, caller: Caller, event: Event, method: str, hold: float, options: dict[str, Any]
    ) -> Any:
        async def send() -> Any:
            with caller.bound():
                try:
                    return await client.request(method, url, **options)
                except Exception as error:
                    return error

        async with self.module.AsyncClient(**self.options()) as client:
            attached = otel_context.attach(with_token(BearerToken(HOLDER, lease=Lease())))
            async with client.stream("GET", url):
                task = asyncio.create_task(send())
                with anyio.fail_after(PATIENCE):
                    while not caller.decided.is_set():
                        await asyncio.sleep(0.002)
                event(caller)
                await asyncio.sleep(hold)
            result = await asyncio.wait_for(task, PATIENCE)
            assert (await client.get(url)).status_code == 200
            otel_context.detach(attached)
        return result


WAYS = [
    Way(module, is_async, is_http2)
    for module in (httpx, httpx2)
    for is_async in (False, True)
    for is_http2 in (False, True)
]


def _name(way: Way) -> str:
    return f"{way.module.__name__}{' async' if way.is_async else ''}{' HTTP/2' if way.is_http2 else ''}"


every_way = pytest.mark.parametrize("way", WAYS, ids=_name)
every_http1 = pytest.mark.parametrize("way", [way for way in WAYS if not way.is_http2], ids=_name)


@contextmanager
def serving(way: Way, parameters: str = "", **settings: Any) -> Iterator[Party]:
    """Run a server that supports *way*, and list it as a destination."""
    with http2_party() if way.is_http2 else party() as one:
        install(Settings(destinations=[one.url + parameters], **settings))
        yield one


@every_way
@LOSSES
def test_a_token_that_is_lost_in_the_queue_is_not_sent(way: Way, event: Event, reason: Reason) -> None:
    """A request that loses its token in the queue is sent without the header, and only that decision is recorded."""
    with serving(way) as one:
        caller = Caller(has_lease=event is not let_it_age)
        response = way.send_queued(one.url, caller, event)

    assert response.status_code == 200
    assert one.lines() == [HOLDERS_LINE, [], HOLDERS_LINE]
    assert caller.reasons == [reason]


@every_way
def test_a_caller_that_still_waits_gets_its_token_relayed(way: Way) -> None:
    """A request keeps its token while it waits in the queue, and the decision is recorded once."""
    with serving(way) as one:
        caller = Caller()
        response = way.send_queued(one.url, caller, go_on)

    assert response.status_code == 200
    assert one.lines() == [HOLDERS_LINE, LINE, HOLDERS_LINE]
    assert caller.reasons == [Reason.RELAYED]


@every_way
@pytest.mark.parametrize("event", [end_request, go_on], ids=["ended", "live"])
def test_span_and_counter_contain_the_final_decision(way: Way, event: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """The span and the counter contain only the final decision."""
    reader, spans, tracers = InMemoryMetricReader(), InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", MeterProvider([reader]))
    instrumentor: Any = HTTPXClientInstrumentor() if way.module is httpx else HTTPX2ClientInstrumentor()
    instrumentor.instrument(tracer_provider=tracers)
    try:
        with serving(way) as one:
            way.send_queued(f"{one.url}/x", Caller(), event, "POST")
    finally:
        instrumentor.uninstrument()

    outcome, reason = ("withheld", "lease_ended") if event is end_request else ("relayed", "relayed")
    (span,) = [span for span in spans.get_finished_spans() if span.name == "POST"]
    assert span.attributes is not None
    assert (span.attributes["token_relay.decision"], span.attributes["token_relay.reason"]) == (outcome, reason)
    data = reader.get_metrics_data()
    assert data is not None
    points = {
        (point.attributes or {}).get("token_relay.reason"): point.value  # type: ignore[union-attr]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "token_relay.decisions"
        for point in metric.data.data_points
    }
    assert points == ({"relayed": 2, "lease_ended": 1} if event is end_request else {"relayed": 3})
    assert_never_leaked(TOKEN, list(spans.get_finished_spans()), data.to_json())


@every_way
@pytest.mark.parametrize("event", [end_request, go_on], ids=["ended", "live"])
def test_only_the_header_is_removed(way: Way, event: Event) -> None:
    """If the token is lost in the queue, only its header is removed, and the application's request is unchanged."""
    extensions: dict[str, Any] = {}
    with serving(way) as one:
        response = way.send_queued(
            one.url, Caller(), event, "POST", content=b"x" * 1000, headers={"X-Own": "1"}, extensions=extensions
        )

    queued = one.requests[1]
    assert (queued.method, queued.body, queued.header_lines("x-own")) == ("POST", b"x" * 1000, ["1"])
    assert queued.header_lines("authorization") == ([] if event is end_request else LINE)
    assert "authorization" not in response.request.headers
    assert set(response.request.extensions) == {"timeout"}
    assert not extensions


@every_way
@pytest.mark.parametrize(
    ("on_conflict", "event", "sent"),
    [
        ("keep", end_request, ["Own a"]),
        ("keep", go_on, ["Own a"]),
        ("replace", end_request, ["Own a"]),
        ("replace", go_on, LINE),
    ],
)
def test_an_explicit_credential_in_the_queue(way: Way, on_conflict: str, event: Event, sent: list[str]) -> None:
    """With `replace`, a request that loses its token in the queue is sent with the application's own credential."""
    with serving(way, on_conflict=on_conflict) as one:
        caller = Caller()
        way.send_queued(one.url, caller, event, headers={"aUTHORIZATION": "Own a"})

    assert one.lines()[1] == sent
    explicit, replaced = Reason.EXPLICIT_CREDENTIAL, Reason.LEASE_ENDED if event is end_request else Reason.RELAYED
    assert caller.reasons == [explicit if on_conflict == "keep" else replaced]


@every_way
def test_a_required_token_that_is_lost_in_the_queue_stops_the_request(way: Way) -> None:
    """A request that loses a required token in the queue is not sent, and the client still works afterward."""
    with serving(way, ";required") as one:
        caller = Caller()
        error = way.send_queued(one.url, caller, end_request)

    assert isinstance(error, TokenUnavailable)
    assert error.reason is Reason.LEASE_ENDED
    assert caller.reasons == [Reason.LEASE_ENDED]
    assert one.lines() == [HOLDERS_LINE, HOLDERS_LINE]


@every_http1
@pytest.mark.parametrize("event", [end_request, go_on], ids=["ended", "live"])
def test_a_request_in_the_queue_of_a_forward_proxy(way: Way, event: Event) -> None:
    """In the queue of a forward proxy, the decision applies to the destination in the request's target."""
    with proxy() as between, serving(way) as one:
        caller = Caller()
        replace(way, via=between.url).send_queued(one.url, caller, event)

    assert len(between.requests) == 3
    assert one.lines()[1] == ([] if event is end_request else LINE)
    assert len(caller.reasons) == 1


@every_http1
@pytest.mark.parametrize("event", [end_request, go_on], ids=["ended", "live"])
def test_a_request_in_the_queue_of_a_tunnel(way: Way, event: Event) -> None:
    """A CONNECT request carries no token and records no decision."""
    with proxy() as between, party(tls=True) as one:
        install(Settings(destinations=[one.url, between.url]))
        caller = Caller()
        replace(way, via=between.url).send_queued(one.url, caller, event)

    assert {request.method for request in between.requests} == {"CONNECT"}
    assert not any(request.header_lines("authorization") for request in between.requests)
    assert one.lines()[1] == ([] if event is end_request else LINE)
    assert caller.reasons == [Reason.LEASE_ENDED if event is end_request else Reason.RELAYED]


@every_http1
@pytest.mark.parametrize("event", [end_request, go_on], ids=["ended", "live"])
def test_a_request_in_the_queue_of_a_socks_proxy(way: Way, event: Event) -> None:
    """A request through a SOCKS proxy is checked again after the SOCKS handshake."""
    with socks_proxy() as via, serving(way) as one:
        caller = Caller()
        replace(way, via=via).send_queued(one.url, caller, event)

    assert one.lines() == [HOLDERS_LINE, [] if event is end_request else LINE, HOLDERS_LINE]
    assert len(caller.reasons) == 1


@every_http1
def test_a_request_that_fails_in_the_queue_is_not_a_hop(way: Way) -> None:
    """A request that times out in the queue records no decision."""
    with serving(way) as one:
        caller = Caller()
        error = way.send_queued(one.url, caller, go_on, timeout=0.05, hold=0.3)

    assert isinstance(error, way.module.PoolTimeout)
    assert caller.reasons == []
    assert one.lines() == [HOLDERS_LINE, HOLDERS_LINE]
