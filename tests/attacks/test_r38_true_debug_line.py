"""r38: the debug line and the counter identify the actual destination, with and without a token."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import urllib3
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

from otel_token_relay import BearerToken, Settings, install, use_token
from otel_token_relay.context import with_token
from otel_token_relay.relay import Relay
from tests.support.clients import Client, every_client
from tests.support.loopback import party

LISTED = ("https", "profile-service", None)
TOKEN = "r38-callers-token"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Capture the package's log at debug level and above."""
    caplog.set_level(logging.DEBUG, "otel_token_relay")
    return caplog


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    """Replace the global meter provider, which can be set only once."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", provider)
    yield reader
    provider.shutdown()


def counted(reader: InMemoryMetricReader) -> list[dict[str, Any]]:
    """Return the attributes of each series of the counter."""
    data = reader.get_metrics_data()
    return [
        dict(point.attributes or {})  # type: ignore[union-attr]
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    ]


def lines(log: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in log.messages if re.search(", (entry|origin) ", message)]


@dataclass
class Request:
    """A request without a client that counts how often its destination is read."""

    target: Any = LISTED
    headers: Any = ()
    reads: int = 0


def target_of(request: Request) -> Any:
    request.reads += 1
    if request.target is None:
        raise ValueError("no two parsers agree")
    return request.target


def has_header(request: Request, name: str) -> bool:
    if request.headers is None:
        raise ValueError("unreadable")
    return name in request.headers


def hop(relay: Relay, request: Request, token: str | None = None, context: Context | None = None) -> str | None:
    bound = None if token is None else BearerToken(token)
    return relay.decide(request, target_of, has_header, with_token(bound, context or Context()))


@every_client
def test_r38_an_anonymous_hop_to_a_listed_destination(
    client: Client, log: pytest.LogCaptureFixture, meter: InMemoryMetricReader
) -> None:
    """For an anonymous hop to a listed destination, the debug line and the counter identify the destination."""
    with client.party() as listed:
        install(Settings(destinations=[listed.url]))
        with use_token(None):
            client.call(listed.url)

    assert lines(log) == [f"withheld: no_token, entry {listed.url}"]
    assert [attributes["server.address"] for attributes in counted(meter)] == ["127.0.0.1"]


@every_client
def test_r38_an_anonymous_hop_to_another_destination(
    client: Client, log: pytest.LogCaptureFixture, meter: InMemoryMetricReader
) -> None:
    """For an anonymous hop to an unlisted origin, only the debug line contains the origin."""
    with client.party() as listed, client.party() as other:
        install(Settings(destinations=[listed.url]))
        with use_token(None):
            client.call(other.url)

    assert lines(log) == [f"withheld: no_token, origin {other.url}"]
    assert ["server.address" in attributes for attributes in counted(meter)] == [False]


@pytest.mark.parametrize(("token", "reason"), [(None, "no_token"), (TOKEN, "destination_unknown")])
def test_r38_a_url_that_cannot_be_read(token: str | None, reason: str, log: pytest.LogCaptureFixture) -> None:
    """A destination that cannot be read is reported as unknown, not as unlisted."""
    with party() as one, party() as other:
        install(Settings(destinations=[one.url, other.url]))
        with use_token(None), urllib3.connectionpool.connection_from_url(one.url) as pool:
            pool.urlopen("GET", f"{other.url}/", assert_same_host=False)
    relay = Relay(Settings(destinations=[one.url]))
    hop(relay, Request(None), token)

    assert lines(log) == ["withheld: no_token, origin unknown", f"withheld: {reason}, origin unknown"]


@pytest.mark.parametrize(
    ("entry", "shown"),
    [
        ("https://profile-service", "entry https://profile-service"),
        ("https://*", "entry https://*"),
        ("https://profile-service:*", "entry https://profile-service:*"),
        ("https://profile-service;audience=profiles", "entry https://profile-service;audience=profiles"),
        ("http://profile-service", "origin https://profile-service"),
        ("https://*.profile-service", "origin https://profile-service"),
    ],
)
@pytest.mark.parametrize("token", [None, TOKEN], ids=["anonymous", "with a token"])
def test_r38_the_debug_line_names_the_entry(
    entry: str, shown: str, token: str | None, log: pytest.LogCaptureFixture
) -> None:
    """The debug line identifies the same destination with and without a token."""
    hop(Relay(Settings(destinations=[entry])), Request(), token)

    assert len(lines(log)) == 1
    assert lines(log)[0].endswith(f", {shown}")


@pytest.mark.parametrize("headers", [None, ("authorization",)], ids=["unreadable", "with a credential"])
@pytest.mark.parametrize("token", [None, TOKEN], ids=["anonymous", "with a token"])
def test_r38_unreadable_headers_may_contain_a_credential(
    headers: Any, token: str | None, log: pytest.LogCaptureFixture
) -> None:
    """If the headers cannot be read, the debug line still identifies the destination."""
    assert hop(Relay(Settings(destinations=["https://profile-service"])), Request(headers=headers), token) is None
    assert lines(log) == ["withheld: explicit_credential, entry https://profile-service"]


REQUESTS = {
    "listed": lambda: Request(),
    "listed, with a credential": lambda: Request(headers=("authorization",)),
    "listed, with unreadable headers": lambda: Request(headers=None),
    "not listed": lambda: Request(("https", "elsewhere", None)),
    "not listed, with a credential": lambda: Request(("https", "elsewhere", None), ("authorization",)),
    "no origin": lambda: Request(("", "", 0)),
    "unreadable": lambda: Request(None),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("token", [None, TOKEN], ids=["anonymous", "with a token"])
def test_r38_a_required_entry_does_not_change_the_reasons_of_other_hops(
    request_: Callable[[], Request], token: str | None, log: pytest.LogCaptureFixture
) -> None:
    """An entry with `;required` does not change the debug line of another destination."""
    for entries in (["https://profile-service"], ["https://profile-service", "https://billing;required"]):
        hop(Relay(Settings(destinations=entries)), request_(), token)

    plain, beside_required = lines(log)
    assert plain == beside_required


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_r38_span_counter_and_log_name_the_same_reason(
    request_: Callable[[], Request], log: pytest.LogCaptureFixture, meter: InMemoryMetricReader
) -> None:
    """The reason is the same regardless of whether a span, a counter, or a log records it."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    reasons = []
    for level in (logging.INFO, logging.DEBUG):
        log.set_level(level, "otel_token_relay")
        span = tracer.start_span("call", kind=trace.SpanKind.CLIENT)
        relay = Relay(Settings(destinations=["https://profile-service"]))
        hop(relay, request_(), context=trace.set_span_in_context(span, Context()))
        reasons.append(span.attributes["token_relay.reason"])  # type: ignore[attr-defined]

    assert len(set(reasons)) == 1
    assert [attributes["token_relay.reason"] for attributes in counted(meter)] == reasons[:1]
    assert lines(log)[0].startswith(f"withheld: {reasons[0]},")


def test_r38_no_destination_is_looked_up_if_the_list_is_empty(log: pytest.LogCaptureFixture) -> None:
    """If no destination is listed, the request's destination is not read."""
    request = Request()
    hop(Relay(Settings()), request)

    assert request.reads == 0
    assert lines(log) == ["withheld: no_token, origin unknown"]


def test_r38_no_destination_is_looked_up_if_decisions_are_not_recorded() -> None:
    """An anonymous hop that is not recorded does not read the request's destination."""
    request = Request()
    hop(Relay(Settings(destinations=["https://profile-service"])), request)

    assert request.reads == 0


def test_r38_decisions_are_recorded_once_an_sdk_is_set(
    monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    """Decisions are recorded as soon as an SDK is set, even if the counter was created earlier."""
    from opentelemetry.metrics._internal import _ProxyMeterProvider

    log.set_level(logging.INFO, "otel_token_relay")
    proxy, reader = _ProxyMeterProvider(), InMemoryMetricReader()
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", proxy)
    relay = Relay(Settings(destinations=["https://profile-service"]))
    hop(relay, Request())
    provider = MeterProvider([reader])
    proxy.on_set_meter_provider(provider)
    hop(relay, Request())

    assert [attributes["server.address"] for attributes in counted(reader)] == ["profile-service"]
    provider.shutdown()
