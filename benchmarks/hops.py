"""Measure the cost of one hop, which is the time that the wrapper adds to a client method that does nothing.

The package's own ``patch`` function wraps classes that exist only for this measurement, and the libraries create
the request objects. The whole call is timed with and without the wrapper, and the difference is the cost. The
yardstick is the time that OpenTelemetry takes to write two baggage entries into ``httpx.Headers``.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import aiohttp
import httpcore
import httpx
import httpx2
import requests
import urllib3.connectionpool
import yarl
from aiohttp import ClientRequest
from multidict import CIMultiDict
from opentelemetry import trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from urllib3.connection import HTTPSConnection

from benchmarks.figures import Figure, figure
from benchmarks.measure import Effort, Round, Timing, awaited, side_by_side, statement, with_each
from benchmarks.samples import DESTINATION, OUTGOING, RECEIVED, URL, context_of_request, context_with_baggage
from otel_token_relay import Settings
from otel_token_relay.clients import aiohttp as aiohttp_client
from otel_token_relay.clients import httpx as httpx_client
from otel_token_relay.clients import urllib as urllib_client
from otel_token_relay.clients import urllib3 as urllib3_client
from otel_token_relay.decisions import COUNTER_NAME
from otel_token_relay.patching import Patches
from otel_token_relay.relay import Relay
from otel_token_relay.runtime import Runtime

YARDSTICK = "W3CBaggage.inject, two entries"
RELAYED_TARGET = 1.0
WITHOUT_TOKEN_TARGET = 0.15


@dataclass(frozen=True, slots=True)
class Client:
    """A client whose hop is timed, either bare or with the wrapper.

    Attributes:
        name: The client's name in the table.
        timing: A callable that returns the timing for a relay (``None`` for bare) and the current context.
    """

    name: str
    timing: Callable[[Relay | None, Context], Timing]


def relay(destinations: tuple[str, ...] = (DESTINATION,)) -> Relay:
    """Return a relay that lists *destinations*."""
    return Relay(Settings(destinations=destinations))


def runtime_of(relay: Relay) -> Runtime:
    """Return an object with the runtime attributes that patches need."""
    return cast("Runtime", SimpleNamespace(relay=relay))


def yardstick() -> Timing:
    """Return the timing of the yardstick."""
    names = {
        "inject": W3CBaggagePropagator().inject,
        "headers": httpx.Headers(OUTGOING),
        "context": context_with_baggage(),
    }
    return statement("inject(headers, context=context)", names)


def httpx_timing(library: Any, relay: Relay | None, context: Context) -> Timing:
    """Return the timing of one hop on httpx or httpx2.

    Each request is new and has its own copy of the headers, as it would after instrumentation.
    """

    received = library.Response(200, headers=RECEIVED)

    class Transport:
        def __init__(self) -> None:
            self._pool = httpcore.ConnectionPool()

        def handle_request(self, request: Any) -> Any:
            response = object.__new__(library.Response)
            response.headers, response.extensions = library.Headers(received.headers), {}
            return response

        async def handle_async_request(self, request: Any) -> None: ...

    if relay is not None:
        names = (*httpx_client.SYNC_TRANSPORTS, *httpx_client.ASYNC_TRANSPORTS, "AsyncHTTPTransport")
        others = {name: type(name, (), dict(vars(Transport))) for name in names if name != "HTTPTransport"}
        clients = {name: type(name, (), {}) for name in ("Client", "AsyncClient")}
        module = SimpleNamespace(Headers=library.Headers, HTTPTransport=Transport, **others, **clients)
        httpx_client.patch(cast("ModuleType", module), runtime_of(relay), Patches())
    pattern = library.Request("GET", URL, headers=OUTGOING)

    def build() -> Any:
        request = _twin(pattern)
        request.headers = library.Headers(pattern.headers)
        return request

    return with_each(build, Transport().handle_request, context)


def urllib3_timing(headers: Any, relay: Relay | None, context: Context) -> Timing:
    """Return the timing of one attempt by a urllib3 pool, called as ``urlopen`` calls it."""

    connection: Any = HTTPSConnection("profile-service", 8443)
    connection.sock = SimpleNamespace(proto=socket.IPPROTO_TCP)

    class Response:
        def __init__(self) -> None:
            self.headers = urllib3.HTTPHeaderDict(RECEIVED)

    class HTTPConnectionPool:
        def _make_request(
            self,
            conn: Any,
            method: str,
            url: str,
            body: Any = None,
            headers: Any = None,
            retries: Any = None,
            timeout: Any = None,
            chunked: bool = False,
            response_conn: Any = None,
            preload_content: bool = True,
            decode_content: bool = True,
            enforce_content_length: bool = True,
        ) -> Response:
            return Response()

    if relay is not None:
        module = SimpleNamespace(**vars(urllib3.connectionpool))
        module.HTTPConnectionPool = HTTPConnectionPool
        urllib3_client.patch(cast("ModuleType", module), runtime_of(relay), Patches())
    code = (
        "pool._make_request(connection, 'GET', '/users/42/profile?fields=name', timeout=None, body=None,"
        " headers=headers, chunked=False, retries=None, response_conn=None, preload_content=True,"
        " decode_content=True, **response_kw)"
    )
    names = {"pool": HTTPConnectionPool(), "connection": connection, "headers": headers, "response_kw": {}}
    return statement(code, names, context)


def urllib_timing(relay: Relay | None, context: Context) -> Timing:
    """Return the timing of one hop on urllib.request."""

    class AbstractHTTPHandler:
        def do_open(self, http_class: Any, req: Any, **http_conn_args: Any) -> Any:
            http_class(req.host, timeout=req.timeout, **http_conn_args)
            response = SimpleNamespace(headers=http.client.HTTPMessage())
            response.headers._headers = list(RECEIVED.items())
            return response

    if relay is not None:
        module = cast("ModuleType", SimpleNamespace(AbstractHTTPHandler=AbstractHTTPHandler, http=http))
        urllib_client.patch(module, runtime_of(relay), Patches())
    headers = {name: value for name, value in OUTGOING.items() if name != "Host"}
    pattern = urllib.request.Request(URL, headers=headers)
    pattern.add_unredirected_header("Host", "profile-service:8443")
    pattern.timeout = 10
    send = partial(AbstractHTTPHandler().do_open, http.client.HTTPSConnection, context=ssl.create_default_context())
    return with_each(partial(_twin, pattern), send, context)


def _twin(request: Any) -> Any:
    """Return a copy whose attributes were set individually, as in a new request."""
    twin = object.__new__(type(request))
    for name, value in vars(request).items():
        setattr(twin, name, value)
    return twin


def aiohttp_timing(runner: asyncio.Runner, relay: Relay | None, context: Context) -> Timing:
    """Return the timing of one hop on aiohttp in a single running loop."""

    class Request(ClientRequest):
        async def send(self, conn: Any) -> Any:
            await self._on_headers_request_sent(self.method, self.url, self.headers)
            return SimpleNamespace()

        async def _on_headers_request_sent(self, method: str, url: Any, headers: Any) -> None: ...

    if relay is not None:
        aiohttp_client.patch(
            cast("ModuleType", SimpleNamespace(ClientRequest=Request, hdrs=aiohttp.hdrs)), runtime_of(relay), Patches()
        )
    request = Request("GET", yarl.URL(URL), headers=CIMultiDict(OUTGOING), loop=runner.get_loop())
    transport = asyncio.Transport({"peername": ("127.0.0.1", 8443)})
    return awaited(runner, request.send, SimpleNamespace(transport=transport), context=context)


def clients(runner: asyncio.Runner) -> Iterator[Client]:
    """Yield every measured client."""
    as_sent = requests.Request("GET", URL, headers=OUTGOING).prepare().headers
    yield Client("httpx", partial(httpx_timing, httpx))
    yield Client("httpx2", partial(httpx_timing, httpx2))
    yield Client("urllib3", partial(urllib3_timing, dict(OUTGOING)))
    yield Client("urllib3 under requests", partial(urllib3_timing, as_sent))
    yield Client("urllib", urllib_timing)
    yield Client("aiohttp", partial(aiohttp_timing, runner))


def measure_hops(effort: Effort) -> Iterator[Figure]:
    """Yield, for each client, the cost of a hop that relays and the cost of a hop without a token."""
    holding, empty = context_of_request(token=True), context_of_request(token=False)
    with asyncio.Runner() as runner:
        for client in clients(runner):
            timings = {
                "yardstick": yardstick(),
                "bare": client.timing(None, holding),
                "relayed": client.timing(relay(), holding),
                "bare, empty": client.timing(None, empty),
                "empty": client.timing(relay(), empty),
            }
            rounds = side_by_side(timings, effort)
            make = partial(figure, rounds, by=_yardstick, yardstick=YARDSTICK, group="One hop, added by the wrapper")
            yield make(_added("relayed", "bare"), name=f"{client.name}: token relayed", target=RELAYED_TARGET)
            yield make(
                _added("empty", "bare, empty"), name=f"{client.name}: no token in context", target=WITHOUT_TOKEN_TARGET
            )


def measure_recorded_hop(effort: Effort) -> Iterator[Figure]:
    """Yield the cost of an httpx hop that the SDK records: in a CLIENT span, with a meter, and with both."""
    with ExitStack() as stack:
        reader = InMemoryMetricReader()
        meters, tracers = MeterProvider([reader]), TracerProvider()
        stack.callback(meters.shutdown)
        stack.callback(tracers.shutdown)
        counted = relay()
        # Do not use the global provider, which can be set only once and would affect the other figures.
        counted._recorder._counter.created = meters.get_meter("otel_token_relay").create_counter(COUNTER_NAME)
        span = tracers.get_tracer("benchmarks").start_span("GET", kind=trace.SpanKind.CLIENT)
        holding = context_of_request(token=True)
        traced = trace.set_span_in_context(span, holding)
        timings = {
            "yardstick": yardstick(),
            "bare": httpx_timing(httpx, None, holding),
            "traced": httpx_timing(httpx, relay(), traced),
            "counted": httpx_timing(httpx, counted, holding),
            "both": httpx_timing(httpx, counted, traced),
        }
        rounds = side_by_side(timings, effort)
        span.end()
        # A decision that cannot be recorded raises no error but would make the figures meaningless.
        if reader.get_metrics_data() is None or not span.attributes:
            raise RuntimeError("the decisions were not recorded")
    make = partial(figure, rounds, by=_yardstick, yardstick=YARDSTICK, group="One hop on httpx, recorded by the SDK")
    yield make(_added("traced", "bare"), name="with a recording CLIENT span")
    yield make(_added("counted", "bare"), name="with a meter")
    yield make(_added("both", "bare"), name="with both")


def _yardstick(one: Round) -> float:
    return one["yardstick"]


def _added(wrapped: str, bare: str) -> Callable[[Round], float]:
    return lambda one: one[wrapped] - one[bare]
