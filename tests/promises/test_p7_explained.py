"""P7: the span, the counter, and the log explain every decision about a hop without revealing the token."""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import urllib3
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_token_relay import BearerToken, Reason, Settings, install, use_token
from otel_token_relay.context import with_token
from otel_token_relay.testing import assert_never_leaked
from otel_token_relay.token import Lease
from tests.support.clients import CLIENTS, Client, every_client
from tests.support.loopback import party

TOKEN = "p7-sample-token"


@dataclass
class Telemetry:
    """The telemetry that a process would export."""

    spans: InMemorySpanExporter
    tracers: TracerProvider
    reader: InMemoryMetricReader
    log: pytest.LogCaptureFixture

    def decisions(self) -> list[tuple[int, dict[str, Any]]]:
        """Return the value and the attributes of each of the counter's data points."""
        data = self.reader.get_metrics_data()
        return [
            (point.value, dict(point.attributes or {}))  # type: ignore[union-attr]
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == "token_relay.decisions"
            for point in metric.data.data_points
        ]

    def explained(self) -> list[dict[str, object]]:
        """Return the relay's attributes of each span that has any."""
        return [found for span in self.spans.get_finished_spans() if (found := _explanation(span))]

    def check_it_never_holds(self, token: str) -> None:
        metrics = self.reader.get_metrics_data()
        assert_never_leaked(token, list(self.spans.get_finished_spans()), str(metrics and metrics.to_json()))
        assert_never_leaked(token, self.log.text)


def _explanation(span: ReadableSpan) -> dict[str, object]:
    return {key: value for key, value in (span.attributes or {}).items() if key.startswith("token_relay.")}


@pytest.fixture
def telemetry(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Telemetry]:
    """Provide an in-memory SDK, and replace the global meter provider, which can be set only once."""
    caplog.set_level(logging.DEBUG, "otel_token_relay")
    reader, spans, tracers = InMemoryMetricReader(), InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    meters = MeterProvider([reader])
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", meters)
    yield Telemetry(spans, tracers, reader, caplog)
    tracers.shutdown()
    meters.shutdown()


@contextmanager
def instrumented(client: Client, telemetry: Telemetry) -> Iterator[None]:
    instrumentor = client.instrumentor()
    instrumentor.instrument(tracer_provider=telemetry.tracers)
    try:
        yield
    finally:
        instrumentor.uninstrument()


@every_client
def test_each_client_explains_its_hops(client: Client, telemetry: Telemetry) -> None:
    """The CLIENT span, the counter, and the log contain the decisions for listed and unlisted origins."""
    with client.party() as listed, client.party() as outsider, instrumented(client, telemetry):
        install(Settings(destinations=[listed.url]))
        with use_token(TOKEN):
            client.call(listed.url)
            client.call(outsider.url)

    relayed = {"token_relay.decision": "relayed", "token_relay.reason": "relayed", "token_relay.entry": listed.url}
    withheld = {"token_relay.decision": "withheld", "token_relay.reason": "destination_not_listed"}
    assert telemetry.explained() == [relayed, {**withheld, "token_relay.origin": outsider.url}]
    assert all(span.kind is trace.SpanKind.CLIENT for span in telemetry.spans.get_finished_spans())
    assert telemetry.decisions() == [(1, {**relayed, "server.address": "127.0.0.1"}), (1, withheld)]
    assert f"relayed: relayed, entry {listed.url}" in telemetry.log.text
    assert f"withheld: destination_not_listed, origin {outsider.url}" in telemetry.log.text
    telemetry.check_it_never_holds(TOKEN)


def jwt(**claims: object) -> str:
    def encode(part: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")

    return f"{encode({'alg': 'none'})}.{encode(claims)}.c2ln"


@contextmanager
def bound(token: BearerToken) -> Iterator[None]:
    attached = otel_context.attach(with_token(token))
    try:
        yield
    finally:
        otel_context.detach(attached)


def old_token() -> BearerToken:
    return BearerToken(TOKEN, received_at=time.monotonic() - 10)


def ended_token() -> BearerToken:
    lease = Lease()
    lease.end()
    return BearerToken(TOKEN, lease=lease)


def foreign_token() -> BearerToken:
    token = BearerToken(TOKEN)
    token.pid = 1  # same as in a forked child
    return token


@dataclass(frozen=True, kw_only=True)
class Case:
    """A test case that produces one reason."""

    reason: Reason
    token: Callable[[], BearerToken | None] = lambda: BearerToken(TOKEN)
    settings: dict[str, Any] = field(default_factory=dict)
    parameters: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    listed: bool = True
    is_bound: bool = True
    detail: str = ""


CASES = [
    Case(reason=Reason.RELAYED),
    Case(reason=Reason.RELAYED, token=lambda: BearerToken(jwt(exp=time.time() + 60)), detail=", a valid JWT"),
    Case(reason=Reason.NO_TOKEN, token=lambda: None),
    Case(reason=Reason.NO_TOKEN, token=lambda: None, listed=False, detail=", not listed"),
    Case(reason=Reason.NO_BOUNDARY, token=lambda: None, is_bound=False),
    Case(reason=Reason.NO_BOUNDARY, token=lambda: None, is_bound=False, listed=False, detail=", not listed"),
    Case(reason=Reason.DESTINATION_NOT_LISTED, listed=False),
    Case(reason=Reason.EXPLICIT_CREDENTIAL, headers={"authorization": "Basic own"}),
    Case(reason=Reason.EXPIRED, token=lambda: BearerToken(jwt(exp=time.time() - 1))),
    Case(
        reason=Reason.EXPIRED,
        token=lambda: BearerToken(jwt(exp=time.time() + 60)),
        settings={"min_ttl": 120},
        detail=", below min_ttl",
    ),
    Case(reason=Reason.TOO_OLD, token=old_token, settings={"max_age": 5}),
    Case(reason=Reason.LEASE_ENDED, token=ended_token),
    Case(reason=Reason.OTHER_PROCESS, token=foreign_token),
    Case(reason=Reason.SENDER_CONSTRAINED, token=lambda: BearerToken(jwt(cnf={"jkt": "x"}))),
    Case(reason=Reason.NOT_VERIFIED, settings={"require_verified": True}),
    Case(reason=Reason.EXCHANGE_FAILED, parameters=";audience=other"),
]


@pytest.mark.parametrize("client", [CLIENTS[0], CLIENTS[4]], ids=lambda client: client.name)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.reason}{case.detail}")
def test_each_reason_is_recorded(case: Case, client: Client, telemetry: Telemetry) -> None:
    """The span, the counter, and the log contain the reason, and the counter identifies only listed destinations."""
    token = case.token()
    with party() as one, instrumented(client, telemetry), ExitStack() as stack:
        url = one.url if case.listed else "http://elsewhere.example"
        install(Settings(destinations=[url + case.parameters], **case.settings))
        if case.is_bound:
            stack.enter_context(use_token(None) if token is None else bound(token))
        client.call(one.url, headers=case.headers)

    is_relayed = case.reason is Reason.RELAYED
    outcome = "relayed" if is_relayed else "withheld"
    said = {"token_relay.decision": outcome, "token_relay.reason": case.reason.value}
    value = TOKEN if token is None else token.reveal()
    assert one.requests[0].holds(value) is is_relayed
    entry = {"token_relay.entry": url + case.parameters} if case.listed else {}
    assert telemetry.explained() == [said | (entry or {"token_relay.origin": one.url})]
    assert telemetry.decisions() == [(1, said | entry | ({"server.address": "127.0.0.1"} if case.listed else {}))]
    assert f"{outcome}: {case.reason}" in telemetry.log.text
    telemetry.check_it_never_holds(value)


def test_every_reason_of_a_hop_is_reached() -> None:
    """The cases cover every reason of a hop, apart from reasons that other tests cover or that are not recorded."""
    elsewhere = {"destination_unknown", "exchanged", "own", "suppressed"}
    elsewhere |= {"absent", "malformed", "ambiguous", "too_long"}

    assert {str(case.reason) for case in CASES} | elsewhere == {str(reason) for reason in Reason}


def test_an_unreadable_destination_is_recorded(telemetry: Telemetry) -> None:
    """A request whose destination cannot be read is sent without the token and recorded with this reason."""
    with party() as one, party() as other:
        install(Settings(destinations=[one.url, other.url]))
        with use_token(TOKEN), urllib3.connectionpool.connection_from_url(one.url) as pool:
            pool.urlopen("GET", f"{other.url}/", assert_same_host=False)

    said = {"token_relay.decision": "withheld", "token_relay.reason": "destination_unknown"}
    assert one.lines() == [[]]
    assert telemetry.decisions() == [(1, said)]


@pytest.mark.parametrize("client", [CLIENTS[0], CLIENTS[4]], ids=lambda client: client.name)
def test_suppressed_calls_are_not_recorded(client: Client, telemetry: Telemetry) -> None:
    """A call by telemetry itself is not recorded in a span, the counter, or the log."""
    with party() as one, instrumented(client, telemetry):
        install(Settings(destinations=[one.url]))
        with use_token(TOKEN), suppress_instrumentation():
            client.call(one.url)

    assert one.lines() == [[]]
    assert telemetry.explained() == telemetry.decisions() == []
    assert "withheld" not in telemetry.log.text


def test_hosts_from_outside_make_no_series(telemetry: Telemetry) -> None:
    """Unlisted hosts, and hosts that only a wildcard matches, do not become attribute values of the counter."""
    httpx_call = CLIENTS[0].call
    with party() as one, party() as outsider:
        install(Settings(destinations=[f"http://*:{one.port}"]))
        with use_token(TOKEN):
            for port in (one.port, outsider.port):
                httpx_call(f"http://127.0.0.1:{port}")
                httpx_call(f"http://localhost:{port}")

    names = ("token_relay.reason", "token_relay.entry", "server.address")
    assert [(n, *map(attributes.get, names)) for n, attributes in telemetry.decisions()] == [
        (2, "relayed", f"http://*:{one.port}", None),
        (2, "destination_not_listed", None, None),
    ]


def test_a_span_of_another_kind_is_not_changed(telemetry: Telemetry) -> None:
    """A span that is not a CLIENT span, such as the request's span, gets no attributes."""
    with party() as one, telemetry.tracers.get_tracer("test").start_as_current_span("work"):
        install(Settings(destinations=[one.url]))
        with use_token(TOKEN):
            CLIENTS[0].call(one.url)

    assert one.lines() == [[f"Bearer {TOKEN}"]]
    assert telemetry.explained() == []
