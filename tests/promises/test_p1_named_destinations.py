"""P1, listed destinations only: each hop is decided separately, when the request is sent."""

from __future__ import annotations

import asyncio
import http.client
import logging
import socket
import urllib.request
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import celery
import httpx
import pytest
import requests
import urllib3
import urllib3.connectionpool
import yarl
from opentelemetry import propagate
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from tornado.netutil import Resolver
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from otel_token_relay import Settings, install, use_token
from otel_token_relay.clients import aiohttp as aiohttp_hook
from otel_token_relay.clients import httpx as httpx_hook
from otel_token_relay.clients import urllib as urllib_hook
from otel_token_relay.clients import urllib3 as urllib3_hook
from otel_token_relay.origin import Origin, Target
from otel_token_relay.relay import Relay
from tests.support.clients import Client, every_client, every_following_client, every_proxied_client, in_loop
from tests.support.loopback import Party, Status, party, proxy, trust

TOKEN = "p1-sample-token"
LINE = [f"Bearer {TOKEN}"]


def allow(*destinations: str, **others: object) -> None:
    install(Settings(destinations=destinations, **others))  # type: ignore[arg-type]


@every_client
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_listed_destination_gets_the_token_in_one_line(client: Client, tls: bool) -> None:
    """A request to a listed origin carries the caller's token in a single Authorization line."""
    with client.party(tls=tls) as one:
        allow(one.url)
        with use_token(TOKEN):
            response = client.call(one.url)

    assert response.status == 200
    assert one.lines() == [LINE]
    assert not response.shows("authorization")


@every_client
def test_nothing_is_relayed_with_an_empty_list(client: Client) -> None:
    """If the list is empty, a request is sent without the token."""
    with client.party() as one:
        allow()
        with use_token(TOKEN):
            assert client.call(one.url).status == 200

    assert one.lines() == [[]]


@every_client
@pytest.mark.parametrize(
    ("tls", "listed"),
    [
        pytest.param(False, "http://localhost:{port}", id="another name of the host"),
        pytest.param(False, "http://127.0.0.2:{port}", id="another address"),
        pytest.param(False, "http://127.0.0.1:{other}", id="another port"),
        pytest.param(False, "http://127.0.0.1", id="the default port"),
        pytest.param(False, "https://127.0.0.1:{port}", id="http called, https listed"),
        pytest.param(True, "http://127.0.0.1:{port}", id="https called, http listed"),
    ],
)
def test_an_origin_that_differs_in_one_part_gets_no_token(client: Client, tls: bool, listed: str) -> None:
    """The scheme, the host, and the port must all match the entry."""
    with client.party(tls=tls) as one:
        allow(listed.format(port=one.port, other=one.port ^ 1))
        with use_token(TOKEN):
            assert client.call(one.url).status == 200

    assert one.lines() == [[]]


@every_client
def test_a_listed_name_does_not_include_its_address(client: Client) -> None:
    """A listed name does not include its address, so a request to the address carries no token."""
    with client.party() as one:
        allow(f"http://localhost:{one.port}")
        with use_token(TOKEN):
            client.call(one.url)
            client.call(f"http://LocalHost:{one.port}")

    assert one.lines() == [[], LINE]


@every_client
def test_an_ipv6_address_is_compared_as_an_address(client: Client) -> None:
    """An IPv6 address matches an entry that contains the long form of the same address."""
    with client.party(host="::1") as one:
        allow(f"http://[0:0:0:0:0:0:0:1]:{one.port}")
        with use_token(TOKEN):
            assert client.call(one.url).status == 200

    assert one.lines() == [LINE]


# A and B are listed, and C is listed with TLS. X and Y are not listed, and Y uses TLS.
CHAINS = ["A A", "A B A", "A X A", "A C", "A Y", "C X A", "Y C"]


@every_following_client
@pytest.mark.parametrize("chain", CHAINS)
def test_each_hop_of_a_redirect_is_decided_separately(client: Client, chain: str) -> None:
    """In a chain of redirects, listed origins get a single line with the token, and other origins get none."""
    with ExitStack() as stack:
        parties: dict[str, Party] = {}
        for name in dict.fromkeys(chain.split()):
            parties[name] = stack.enter_context(party(tls=name in "CY"))
        allow(*[parties[name].url for name in parties if name in "ABC"])
        *way, last = chain.split()
        url = parties[last].url
        for name in reversed(way):
            url = parties[name].redirecting_to(url)

        with use_token(TOKEN):
            response = client.call(url)

    assert response.status == 200
    assert not response.shows("authorization")
    for name, one in parties.items():
        assert one.lines() == [LINE if name in "ABC" else []] * chain.split().count(name), name


@every_following_client
@pytest.mark.parametrize("status", [301, 303, 307, 308])
def test_a_redirected_post_does_not_leak_the_token(client: Client, status: int) -> None:
    """A third party gets no token after a redirect, regardless of the method."""
    if status in (307, 308) and not client.repeats_posts:
        status = 302
    with party() as listed, party() as outsider:
        allow(listed.url)
        with use_token(TOKEN):
            client.call(listed.redirecting_to(outsider.url, status=status), method="POST")

    assert listed.lines() == [LINE]
    assert outsider.lines() == [[]]


@every_following_client
def test_a_custom_header_is_not_sent_after_a_redirect(client: Client) -> None:
    """After a redirect, a custom header is not sent to an unlisted origin, although clients would not strip it."""
    with party() as listed, party() as outsider:
        allow(listed.url, header="Txn-Token")
        with use_token(TOKEN):
            response = client.call(listed.redirecting_to(listed.redirecting_to(outsider.url)))

    assert listed.lines("txn-token") == [[TOKEN], [TOKEN]]
    assert listed.lines() == [[], []]
    outsider.assert_saw_no(TOKEN)
    assert not response.shows("txn-token")


@every_proxied_client
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("listed", ["destination", "proxy"])
def test_a_proxy_is_not_the_destination(client: Client, tls: bool, listed: str) -> None:
    """The URL's origin determines the decision, not the proxy, and a CONNECT request carries no token."""
    tunnels = tls or client.proxies == "tunnels"
    with client.party(tls=tls) as one, proxy() as between:
        allow(one.url if listed == "destination" else between.url)
        with use_token(TOKEN):
            response = client.call(one.url, proxy=between.url)

    assert response.status == 200
    assert one.lines() == [LINE if listed == "destination" else []]
    assert [request.method for request in between.requests] == ["CONNECT" if tunnels else "GET"]
    if tunnels or listed == "proxy":
        assert not any(request.holds(TOKEN) for request in between.requests)


def test_a_retry_is_decided_separately() -> None:
    """A retry after the lease has ended carries no token, even if the first attempt did."""
    with party() as one, urllib3.PoolManager() as manager, use_token(TOKEN) as token:
        allow(one.url)
        one.answers += [Status(503), Status(503)]
        assert token is not None
        assert token.lease is not None
        lease = token.lease

        class EndsTheLease(urllib3.Retry):
            def sleep(self, response: object = None) -> None:
                if len(one.requests) == 2:
                    lease.end()

        response = manager.request("GET", one.url, retries=EndsTheLease(total=3, status_forcelist=[503]))

    assert response.status == 200
    assert one.lines() == [LINE, LINE, []]


def test_an_absolute_url_does_not_change_the_origin_of_a_pool() -> None:
    """A request that a pool sends with a URL of a different origin carries no token."""
    with party() as one, party() as other:
        allow(one.url, other.url)
        with use_token(TOKEN), urllib3.HTTPConnectionPool("127.0.0.1", one.port) as pool:
            pool.urlopen("GET", f"{other.url}/", assert_same_host=False)
            pool.urlopen("GET", f"{one.url}/")

    assert one.lines() == [[], LINE]


def test_a_tunnel_is_decided_by_its_endpoint() -> None:
    """A request through a tunnel is decided by the tunnel's endpoint, even if its URL is different."""
    with party(tls=True) as one, party(tls=True) as other, proxy() as between:
        allow(one.url)
        with use_token(TOKEN), urllib3.ProxyManager(between.url, ssl_context=trust()) as manager:
            pool = manager.connection_from_url(other.url)
            pool.urlopen("GET", f"{one.url}/", assert_same_host=False)

    assert other.lines() == [[]]


def _httpx_parts(url: str) -> Target:
    return httpx_hook._target_of((None, httpx.Request("GET", url)))


def _urllib3_parts(url: str) -> Target:
    with urllib3.PoolManager() as manager:
        pool = manager.connection_from_url(url)
        return urllib3_hook.destinations(urllib3.connectionpool)(((pool, pool._new_conn(), "GET", "/"), None))


def _urllib_parts(url: str) -> Target:
    return _parts_of_urllib_request(urllib.request.Request(url))


def _parts_of_urllib_request(request: urllib.request.Request) -> Target:
    http_class = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}[request.type]
    return urllib_hook.Destinations(urllib.request).target_of((request, http_class))


def _aiohttp_parts(url: str) -> Target:
    request = SimpleNamespace(url=yarl.URL(url), proxy=None, server_hostname=None)
    transport = asyncio.Transport({"peername": ("127.0.0.1", 80)})
    return aiohttp_hook._target_of((request, SimpleNamespace(transport=transport)))


def _tornado_parts(url: str) -> Target:
    looked_up: list[str] = []
    parts: list[Target] = []

    class Loopback(Resolver):
        def initialize(self) -> None: ...

        async def resolve(self, host: str, port: int, family: int = 0) -> Any:
            looked_up.append(host.encode("idna").decode())
            return [(socket.AF_INET, ("127.0.0.1", one.port))]

    def decide(relay: Relay, request: Any, target_of: Any, *_: Any, **options: Any) -> None:
        parts.append(target_of(request))

    async def fetch() -> None:
        client = SimpleAsyncHTTPClient(force_instance=True, resolver=Loopback())
        try:
            await client.fetch(url)
        finally:
            client.close()

    with party() as one, pytest.MonkeyPatch.context() as patched:
        patched.setattr(Relay, "decide", decide)
        allow()
        in_loop(fetch())
    if [host for _, host, _ in parts] != looked_up:
        pytest.fail("the compared host differs from the host that is looked up")
    return parts[0]


PARTS_OF = {
    "httpx": _httpx_parts,
    "urllib3": _urllib3_parts,
    "urllib": _urllib_parts,
    "aiohttp": _aiohttp_parts,
    "tornado": _tornado_parts,
}
NOWHERE = None

# Each entry contains the host to which each client in PARTS_OF connects for a URL that is easily misread.
HOSTILE = [
    ("http://A\\@B/", ["b", "a", NOWHERE, NOWHERE, NOWHERE]),
    ("http://good@evil/", ["evil", "evil", NOWHERE, "evil", NOWHERE]),
    ("http://good:80@evil/", ["evil", "evil", NOWHERE, "evil", "evil"]),
    ("http://good;@evil/", ["evil", "evil", NOWHERE, "evil", NOWHERE]),
    ("http://good#@evil/", ["good", "good", "good", "good", "good"]),
    ("http://good?@evil/", ["good", "good", "good", "good", "good"]),
    ("http://GOOD.:80/", ["good", "good", "good", "good", "good"]),
    ("http://[::1]/", ["::1", "::1", "::1", "::1", "::1"]),
    ("http://[::1%25lo]/", [NOWHERE, NOWHERE, NOWHERE, NOWHERE, NOWHERE]),
    ("http://127.1/", [NOWHERE, NOWHERE, NOWHERE, NOWHERE, NOWHERE]),
    ("http://0x7f000001/", [NOWHERE, NOWHERE, NOWHERE, NOWHERE, NOWHERE]),
    ("http://good%2eevil/", [NOWHERE, "good.evil", "good.evil", NOWHERE, NOWHERE]),
    ("http://fa\u00df.de/", ["xn--fa-hia.de", "xn--fa-hia.de", "fass.de", "xn--fa-hia.de", "fass.de"]),
    ("http://good\u3002evil/", ["good.evil", NOWHERE, "good.evil", "good.evil", NOWHERE]),
    ("http://\uff47\uff4f\uff4f\uff44/", [NOWHERE, NOWHERE, "good", "good", NOWHERE]),
]


@pytest.mark.parametrize(("url", "hosts"), HOSTILE, ids=[ascii(url) for url, _ in HOSTILE])
def test_a_hostile_url_is_parsed_as_the_client_parses_it(url: str, hosts: list[str | None]) -> None:
    """The relay compares the host that the client actually looks up, including the client's own parser and IDNA."""
    for (library, target_of), host in zip(PARTS_OF.items(), hosts, strict=True):
        try:
            origin = Origin.of(*target_of(url))
        except Exception:
            origin = None

        assert origin == (host and Origin("http", host, 80)), library


def test_a_stale_tunnel_does_not_count_as_tls() -> None:
    """A urllib request that has kept a tunnel after a change to http is not considered TLS."""
    request = urllib.request.Request("https://127.0.0.1/")
    request.set_proxy("127.0.0.1:9", "http")
    tunnelled = _parts_of_urllib_request(request)
    request.full_url = "http://127.0.0.1/"

    assert tunnelled == ("https", "127.0.0.1", None)
    assert _parts_of_urllib_request(request) == ("http", "127.0.0.1", None)


def test_a_password_in_a_url_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A URL that cannot be parsed is not logged, because it might contain a password."""
    allow("http://127.0.0.1")
    caplog.set_level(logging.DEBUG)
    with use_token(TOKEN), pytest.raises(http.client.InvalidURL):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open("http://user:hunter2@127.0.0.1/")

    assert "destination_unknown" in caplog.text
    assert "hunter2" not in caplog.text


def test_inject_without_a_destination_writes_no_token() -> None:
    """Without a destination, `inject` writes only the fields of other propagators."""
    allow("http://127.0.0.1")
    carrier: dict[str, str] = {}
    with use_token(TOKEN), TracerProvider().get_tracer("test").start_as_current_span("work"):
        propagate.inject(carrier)

    assert "traceparent" in carrier
    assert "authorization" not in {key.lower() for key in carrier}
    assert TOKEN not in str(carrier)


def test_a_task_queue_gets_no_token() -> None:
    """A Celery message, into which instrumentation injects, carries the trace but no token."""
    app = celery.Celery(broker="memory://", set_as_current=False)
    app.conf.broker_connection_retry_on_startup = True
    instrumentor = CeleryInstrumentor()
    instrumentor.instrument(tracer_provider=TracerProvider())
    try:
        allow("http://*:*", "https://*:*")
        with use_token(TOKEN):
            app.send_task("work", args=[1], queue="p1")
        with app.connection_for_read() as connection, connection.SimpleQueue("p1") as queue:
            message = queue.get_nowait()
            message.ack()
    finally:
        instrumentor.uninstrument()
        app.close()

    assert "traceparent" in message.headers
    assert TOKEN not in str(message.headers) + str(message.properties) + str(message.body)


def test_inject_in_an_instrumentation_hook_writes_no_token() -> None:
    """Calling `inject` in the request and response hooks of a relayed call writes no token."""
    carriers: list[dict[str, str]] = []

    def hook(*args: object) -> None:
        carriers.append({})
        propagate.inject(carriers[-1])

    instrumentor = RequestsInstrumentor()
    instrumentor.instrument(tracer_provider=TracerProvider(), request_hook=hook, response_hook=hook)
    try:
        with party() as one:
            allow(one.url)
            with use_token(TOKEN):
                requests.get(one.url, timeout=10)
    finally:
        instrumentor.uninstrument()

    assert one.lines() == [LINE]
    assert ["traceparent" in carrier for carrier in carriers] == [True, True]
    assert TOKEN not in str(carriers)
