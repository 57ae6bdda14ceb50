"""Tests for behavior that is specific to httpx and httpx2; `test_all_clients.py` covers all clients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpcore
import httpcore2
import httpx
import httpx2
import pytest
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor, HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_token_relay import Settings, install, uninstall, use_token
from otel_token_relay.clients.httpx import _target_of_pooled
from otel_token_relay.testing import assert_never_leaked
from tests.support.clients import in_loop
from tests.support.loopback import PLACEHOLDER, Party, Proxy, Status, party, trust
from tests.support.rejecting_tokens import Guarded, check_one_retry

TOKEN = "httpx-sample-token"
LINE = [f"Bearer {TOKEN}"]


MODULES = pytest.mark.parametrize(
    ("module", "instrumentor"),
    [(httpx, HTTPXClientInstrumentor), (httpx2, HTTPX2ClientInstrumentor)],
    ids=["httpx", "httpx2"],
)


@MODULES
@pytest.mark.parametrize(
    ("is_async", "mounted"), [(False, False), (True, True)], ids=["sync", "async, mounted transport"]
)
@pytest.mark.parametrize(
    "order",
    [
        "install client",
        "client install",
        "client send install",
        "client install send uninstall install",
        "install client uninstall install",
        "instrument client install",
        "client install instrument",
        "client install unclient",
        "install client unclient uninstall install",
        "client install uninstall",
    ],
)
def test_an_instrumented_httpx_client_relays_in_every_order(
    module: Any,
    instrumentor: Any,
    is_async: bool,
    mounted: bool,
    order: str,
    one: Party,
    telemetry: tuple[TracerProvider, InMemorySpanExporter],
) -> None:
    """A client that `instrument_client` wraps relays the token in every startup order without exposing it in spans."""
    provider, exporter = telemetry
    options: dict[str, Any] = {"trust_env": False, "verify": trust()}
    if mounted:
        options["mounts"] = {"http://": (module.AsyncHTTPTransport if is_async else module.HTTPTransport)()}
    client = (module.AsyncClient if is_async else module.Client)(**options)

    async def run() -> None:
        for name in order.split():
            if name == "send":
                _ = await client.get(one.url) if is_async else client.get(one.url)
            else:
                steps[name]()
        one.requests.clear()
        exporter.clear()
        with use_token(TOKEN):
            _ = await client.get(one.url) if is_async else client.get(one.url)
        await client.aclose() if is_async else client.close()

    whole = instrumentor()
    steps: dict[str, Callable[[], object]] = {
        "install": lambda: install(Settings(destinations=[one.url])),
        "uninstall": uninstall,
        "instrument": lambda: whole.instrument(tracer_provider=provider),
        "client": lambda: instrumentor.instrument_client(client, tracer_provider=provider),
        "unclient": lambda: instrumentor.uninstrument_client(client),
    }
    try:
        in_loop(run())
    finally:
        if whole.is_instrumented_by_opentelemetry:
            whole.uninstrument()

    assert one.lines() == [[] if order.endswith("uninstall") else LINE]
    assert bool(exporter.get_finished_spans()) == ("unclient" not in order)
    assert_never_leaked(TOKEN, exporter.get_finished_spans())


class _Retries(httpx.HTTPTransport):
    """A custom transport that retries a failed request once."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        if response.status_code == 503:
            response.close()
            response = super().handle_request(request)
        return response


class _Routes(httpx.BaseTransport):
    """A custom transport that chooses the host."""

    def __init__(self, url: str) -> None:
        self.inner, self.url = httpx.HTTPTransport(verify=trust()), httpx.URL(url)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(host=self.url.host, port=self.url.port)
        return self.inner.handle_request(request)

    def close(self) -> None:
        self.inner.close()


def test_each_retry_of_a_subclassed_transport_is_decided(one: Party) -> None:
    """Each retry in a custom transport is decided separately."""
    one.answers.append(Status(503))
    install(Settings(destinations=[one.url]))
    with use_token(TOKEN), httpx.Client(transport=_Retries(verify=trust())) as client:
        assert client.get(one.url).status_code == 200

    assert one.lines() == [LINE, LINE]


def test_a_hop_of_a_routing_transport_is_decided_by_the_url_that_is_sent(one: Party) -> None:
    """The decision applies to the URL that a routing transport sends, not to the URL that the application requested."""
    with party() as other, httpx.Client(transport=_Routes(other.url)) as client:
        install(Settings(destinations=[one.url]))
        with use_token(TOKEN):
            assert client.get(one.url).status_code == 200
        install(Settings(destinations=[other.url]))
        with use_token(TOKEN):
            assert client.get(one.url).status_code == 200

    assert one.lines() == []
    assert other.lines() == [[], LINE]


def _mock(module: Any, seen: list[str | None]) -> Any:
    def handle(request: Any) -> Any:
        seen.append(request.headers.get("authorization"))
        return module.Response(200)

    return module.MockTransport(handle)


def _asgi(module: Any, seen: list[str | None]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append({k: v.decode() for k, v in scope["headers"]}.get(b"authorization"))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return module.ASGITransport(app)


def _wsgi(module: Any, seen: list[str | None]) -> Any:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(environ.get("HTTP_AUTHORIZATION"))
        start_response("200 OK", [])
        return [b""]

    return module.WSGITransport(app)


@pytest.mark.parametrize("module", [httpx, httpx2], ids=["httpx", "httpx2"])
@pytest.mark.parametrize(
    ("build", "is_async"),
    [(_mock, False), (_mock, True), (_asgi, True), (_wsgi, False)],
    ids=["mock", "async mock", "asgi", "wsgi"],
)
def test_hops_of_a_transport_without_a_connection_are_decided(module: Any, build: Any, is_async: bool) -> None:
    """A transport for tests or for an in-process application receives the token only for listed origins."""
    seen: list[str | None] = []
    transport = build(module, seen)
    client = (module.AsyncClient if is_async else module.Client)(transport=transport)
    install(Settings(destinations=["https://profile-service"]))

    async def run() -> None:
        with use_token(TOKEN):
            for url in ("https://profile-service/me", "https://elsewhere.example/"):
                response = await client.get(url) if is_async else client.get(url)
                assert "authorization" not in response.request.headers
        await client.aclose() if is_async else client.close()

    in_loop(run())

    assert seen == [f"Bearer {TOKEN}", None]


# This function sends a GET request through an httpx or httpx2 client and returns the status.
Send = Callable[..., int]


def _send(module: ModuleType, url: str, *, via: str | None, **options: Any) -> int:
    with module.Client(proxy=via, trust_env=False, verify=trust()) as client:
        status: int = client.get(url, **options).status_code
        return status


def _send_async(module: ModuleType, url: str, *, via: str | None, **options: Any) -> int:
    async def run() -> int:
        async with module.AsyncClient(proxy=via, trust_env=False, verify=trust()) as client:
            status: int = (await client.get(url, **options)).status_code
            return status

    return in_loop(run())


every_httpx = pytest.mark.parametrize(
    ("send", "module"),
    [(_send, httpx), (_send_async, httpx), (_send, httpx2), (_send_async, httpx2)],
    ids=["httpx", "httpx-async", "httpx2", "httpx2-async"],
)


# Each entry builds a target from an unlisted server's URL and indicates whether the proxy connects to that server. In
# httpx2, a target that begins with a slash is appended to the proxy's URL, so the proxy connects to the listed server.
TARGETS = {
    "absolute": (lambda url: f"{url}/x".encode(), True),
    "absolute, upper-case scheme": (lambda url: f"{url}/x".replace("http", "HTTP").encode(), True),
    "absolute, as text": (lambda url: f"{url}/x", True),
    "two slashes": (lambda url: f"//{urlsplit(url).netloc}/x".encode(), True),
    "authority": (lambda url: urlsplit(url).netloc.encode(), True),
    "user and authority": (lambda url: f"/@{urlsplit(url).netloc}/x"[1:].encode(), False),
    "slash and backslash": (lambda url: f"/\\{urlsplit(url).netloc}/x".encode(), False),
    "mutable bytes": (lambda url: bytearray(f"{url}/x".encode()), False),
    "only a query": (lambda url: b"?x", False),
    "empty": (lambda url: b"", False),
    "none": (lambda url: None, False),
}


@every_httpx
@pytest.mark.parametrize("kind", TARGETS)
def test_a_target_that_is_not_a_path_gets_no_token(
    send: Send, module: ModuleType, kind: str, listed: Party, unlisted: Party, between: Proxy
) -> None:
    """A request through a forward proxy carries no token if its target is not a path."""
    make, leads_there = TARGETS[kind]
    leads_there = leads_there and (module is httpx or kind != "two slashes")
    # Some targets cannot be sent.
    errors = () if leads_there else (module.HTTPError, TypeError, AttributeError)
    with use_token(TOKEN), suppress(*errors):
        assert send(module, listed.url, via=between.url, extensions={"target": make(unlisted.url)}) == 200

    assert not any(request.holds(TOKEN) for request in between.requests)
    unlisted.assert_saw_no(TOKEN)
    listed.assert_saw_no(TOKEN)
    assert len(unlisted.requests) == leads_there


@every_httpx
@pytest.mark.parametrize("target", [b"http://evil.example/x", b"//evil.example/x", b"evil.example:80"])
def test_the_same_holds_without_a_proxy(send: Send, module: ModuleType, target: bytes, listed: Party) -> None:
    """Without a proxy, a target with an authority gets no token either, because the server might be a proxy."""
    with use_token(TOKEN):
        send(module, listed.url, via=None, extensions={"target": target})

    assert listed.lines() == [[]]


@every_httpx
@pytest.mark.parametrize(
    ("through_proxy", "target"),
    [
        *[(proxied, target) for proxied in (True, False) for target in (b"/", b"/a/b%20c?d=//e&f=http://g/", b"/a//b")],
        (False, b"*"),
    ],
)
def test_a_path_as_the_target_is_relayed(
    send: Send, module: ModuleType, through_proxy: bool, target: bytes, listed: Party, between: Proxy
) -> None:
    """A request carries the token if its target is a path or an asterisk."""
    with use_token(TOKEN):
        assert (
            send(module, listed.url, via=between.url if through_proxy else None, extensions={"target": target}) == 200
        )

    assert [(seen.target.encode(), seen.authorization) for seen in listed.requests] == [(target, *LINE)]


HOSTS = {
    "another host": lambda netloc: [("host", netloc)],
    "upper case": lambda netloc: [("HOST", netloc)],
    "another name of the same host": lambda netloc: [("Host", f"localhost:{netloc.rpartition(':')[2]}")],
    "duplicate": lambda netloc: [("Host", netloc), ("Host", netloc)],
    "with user info": lambda netloc: [("Host", f"user@{netloc}")],
}


@every_httpx
@pytest.mark.parametrize("kind", HOSTS)
def test_a_path_with_another_host_gets_no_token(
    send: Send, module: ModuleType, kind: str, listed: Party, unlisted: Party, between: Proxy
) -> None:
    """A request whose Host header differs from the URL's host carries no token."""
    headers = HOSTS[kind](urlsplit(unlisted.url).netloc)
    with use_token(TOKEN), suppress(*([module.HTTPError] if kind in ("duplicate", "with user info") else [])):
        send(module, listed.url, via=between.url, extensions={"target": b"/x"}, headers=headers)

    assert not any(request.holds(TOKEN) for request in between.requests)
    unlisted.assert_saw_no(TOKEN)
    listed.assert_saw_no(TOKEN)
    if module is httpx:
        assert len(unlisted.requests) == (kind not in ("duplicate", "with user info"))


@every_httpx
def test_a_path_with_the_host_of_the_url_is_relayed(
    send: Send, module: ModuleType, listed: Party, between: Proxy
) -> None:
    """A request carries the token if its Host header is a different spelling of the URL's host."""
    url = f"http://localhost:{listed.port}"
    install(Settings(destinations=[url]))
    headers = {"HOST": f"LocalHost:{listed.port}"}
    with use_token(TOKEN):
        send(module, url, via=between.url, extensions={"target": b"/x"}, headers=headers)

    assert listed.lines() == [LINE]


def _transport(module: ModuleType, core: Any, kind: str, path: str, is_async: bool) -> Any:
    name = "AsyncHTTPTransport" if is_async else "HTTPTransport"
    if kind == "uds":
        return getattr(module, name)(uds=path)
    transport = getattr(module, name)()
    pool = getattr(core, "AsyncConnectionPool" if is_async else "ConnectionPool")
    if kind == "pool":
        transport._pool = pool(uds=path)
        return transport
    # This backend connects to the Unix socket and ignores the host.
    backend = core._backends.auto.AutoBackend if is_async else core.SyncBackend

    class Elsewhere(backend):  # type: ignore[misc,valid-type]
        def connect_tcp(self, *_: Any, **options: Any) -> Any:
            return self.connect_unix_socket(path, timeout=options.get("timeout"))

    transport._pool = pool(network_backend=Elsewhere())
    return transport


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(("module", "core"), [(httpx, httpcore), (httpx2, httpcore2)], ids=["httpx", "httpx2"])
@pytest.mark.parametrize("kind", ["uds", "pool", "backend"])
def test_an_httpx_transport_to_a_unix_socket_gets_no_token(
    kind: str, module: ModuleType, core: ModuleType, is_async: bool, served: tuple[Party, str]
) -> None:
    """A transport with `uds=` or with a custom network backend gets no token."""
    one, path = served
    transport = _transport(module, core, kind, path, is_async)

    async def run() -> None:
        async with module.AsyncClient(transport=transport) as client:
            for _ in range(2):
                assert (await client.get(f"{PLACEHOLDER}/x")).status_code == 200

    with use_token(TOKEN):
        if is_async:
            in_loop(run())
        else:
            with module.Client(transport=transport) as client:
                for _ in range(2):
                    assert client.get(f"{PLACEHOLDER}/x").status_code == 200

    assert one.lines() == [[], []]


def test_an_unreadable_httpcore_pool_gets_no_token() -> None:
    """A custom pool gets the token, but a pool of httpcore whose attributes cannot be read does not."""

    class ConnectionPool:
        pass

    request = httpx.Request("GET", "http://localhost/x")
    call = (SimpleNamespace(_pool=ConnectionPool()), request)

    assert _target_of_pooled(call) == ("http", "localhost", None)
    ConnectionPool.__module__ = "httpcore._sync.connection_pool"
    with pytest.raises(AttributeError):
        _target_of_pooled(call)
    with pytest.raises(AttributeError):
        _target_of_pooled((SimpleNamespace(), request))


def test_httpx_keeps_the_encoding_of_the_headers() -> None:
    """A transport receives the same header values with and without the token."""
    seen: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["x-user"])
        return httpx.Response(200)

    with httpx.Client(transport=httpx.MockTransport(handle)) as client:
        for token in (None, TOKEN):
            install(Settings(destinations=["http://listed"]))
            request = httpx.Request("GET", "http://listed/", headers=[(b"X-User", "Zofi\u00eb".encode())])
            request.headers.encoding = "iso-8859-1"
            with use_token(token):
                client.send(request)

    assert seen == ["Zofi\u00c3\u00ab"] * 2


@pytest.mark.parametrize("sender", ["httpx", "httpx-async", "httpx2", "httpx2-async"])
def test_a_rejected_request_is_sent_once_more(sender: str, rejecting: Guarded) -> None:
    """The application sees only the second response, or the first response if the second token is rejected too."""
    check_one_retry(sender, rejecting)
