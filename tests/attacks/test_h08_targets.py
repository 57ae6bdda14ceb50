"""h08: targets, methods and TLS names that lead a request to another host than its URL."""

from __future__ import annotations

import asyncio
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import grpc
import grpc.aio
import httpx
import httpx2
import pytest
import requests
import urllib3
import yarl

from otel_token_relay import Settings, install, use_token
from tests.support.clients import in_loop
from tests.support.loopback import Party, Proxy, certificate, grpc_party, party, proxy, trust

TOKEN = "h08-canary-token-0001"
LINE = [f"Bearer {TOKEN}"]

# Sends a GET request through a client of httpx or httpx2 and returns the status.
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


@pytest.fixture
def listed() -> Iterator[Party]:
    """A server that is on the list."""
    with party() as one:
        install(Settings(destinations=[one.url]))
        yield one


@pytest.fixture
def evil() -> Iterator[Party]:
    """A server that is not on the list."""
    with party() as one:
        yield one


@pytest.fixture
def between() -> Iterator[Proxy]:
    """A forward proxy."""
    with proxy() as one:
        yield one


# Makes a target from the URL of an unlisted server, and whether the proxy then goes there. With httpx2, a target
# that begins with a slash becomes part of the URL that the proxy gets, so the proxy goes to the listed server.
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
def test_h08_a_target_that_is_not_a_path_gets_no_token(
    send: Send, module: ModuleType, kind: str, listed: Party, evil: Party, between: Proxy
) -> None:
    """A forward proxy connects to the target, so a request whose target is not a path gets no token."""
    make, leads_there = TARGETS[kind]
    leads_there = leads_there and (module is httpx or kind != "two slashes")
    # Some of them cannot be sent.
    errors = () if leads_there else (module.HTTPError, TypeError, AttributeError)
    with use_token(TOKEN), suppress(*errors):
        assert send(module, listed.url, via=between.url, extensions={"target": make(evil.url)}) == 200

    assert not any(request.holds(TOKEN) for request in between.requests)
    evil.assert_saw_no(TOKEN)
    listed.assert_saw_no(TOKEN)
    assert len(evil.requests) == leads_there


@every_httpx
@pytest.mark.parametrize("target", [b"http://evil.example/x", b"//evil.example/x", b"evil.example:80"])
def test_h08_the_same_holds_without_a_proxy(send: Send, module: ModuleType, target: bytes, listed: Party) -> None:
    """A listed server may itself be a proxy, so a target with an authority gets no token there either."""
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
def test_h08_a_path_as_the_target_is_relayed(
    send: Send, module: ModuleType, through_proxy: bool, target: bytes, listed: Party, between: Proxy
) -> None:
    """A target that is a path or an asterisk goes to the host of the URL and carries the token."""
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
def test_h08_a_path_with_another_host_gets_no_token(
    send: Send, module: ModuleType, kind: str, listed: Party, evil: Party, between: Proxy
) -> None:
    """A proxy that gets only a path connects to the host of the Host header, which must be the URL's host."""
    headers = HOSTS[kind](urlsplit(evil.url).netloc)
    with use_token(TOKEN), suppress(*([module.HTTPError] if kind in ("duplicate", "with user info") else [])):
        send(module, listed.url, via=between.url, extensions={"target": b"/x"}, headers=headers)

    assert not any(request.holds(TOKEN) for request in between.requests)
    evil.assert_saw_no(TOKEN)
    listed.assert_saw_no(TOKEN)
    if module is httpx:
        assert len(evil.requests) == (kind not in ("duplicate", "with user info"))


@every_httpx
def test_h08_a_path_with_the_host_of_the_url_is_relayed(
    send: Send, module: ModuleType, listed: Party, between: Proxy
) -> None:
    """The Host header may spell the URL's host in another way."""
    url = f"http://localhost:{listed.port}"
    install(Settings(destinations=[url]))
    headers = {"HOST": f"LocalHost:{listed.port}"}
    with use_token(TOKEN):
        send(module, url, via=between.url, extensions={"target": b"/x"}, headers=headers)

    assert listed.lines() == [LINE]


class _ElsewhereAdapter(requests.adapters.HTTPAdapter):
    """Send a URL in the request line that differs from the URL to connect to."""

    def __init__(self, url: str) -> None:
        self.url = url
        super().__init__()

    def request_url(self, request: Any, proxies: Any) -> str:
        return self.url


def _session(url: str, via: str | None) -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    session.mount("http://", _ElsewhereAdapter(url))
    if via is not None:
        session.proxies = {"http": via}
    return session


@pytest.mark.parametrize("through_proxy", [True, False], ids=["proxied", "direct"])
def test_h08_the_request_url_of_an_adapter_determines_the_destination(
    through_proxy: bool, listed: Party, evil: Party, between: Proxy
) -> None:
    """An adapter of requests can choose the target. A proxy connects to it, and the connection's host gets no token."""
    with use_token(TOKEN), _session(f"{evil.url}/x", between.url if through_proxy else None) as session:
        session.get(listed.url)

    assert not any(request.holds(TOKEN) for request in between.requests)
    assert (len(evil.requests), len(listed.requests)) == ((1, 0) if through_proxy else (0, 1))
    evil.assert_saw_no(TOKEN)
    listed.assert_saw_no(TOKEN)


@pytest.mark.parametrize("target", ["/x", "//{netloc}/x", "{url}/x"])
def test_h08_urllib3_sends_a_path_to_a_forward_proxy_without_the_token(
    target: str, evil: Party, between: Proxy
) -> None:
    """A listed proxy that gets only a path connects to the host of the Host header, which can be any host."""
    install(Settings(destinations=[between.url]))
    netloc = urlsplit(evil.url).netloc
    with use_token(TOKEN), urllib3.ProxyManager(between.url) as manager:
        pool = manager.connection_from_host("127.0.0.1", evil.port, "http")
        url = target.format(netloc=netloc, url=evil.url)
        pool.urlopen("GET", url, headers={"Host": netloc}, assert_same_host=False)

    assert len(evil.requests) == 1
    evil.assert_saw_no(TOKEN)


def _proxied_request(listed: Party, between: Proxy, **options: Any) -> urllib.request.Request:
    request = urllib.request.Request(f"{listed.url}/x", **options)
    request.set_proxy(urlsplit(between.url).netloc, "http")
    return request


def _open(request: urllib.request.Request) -> None:
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).close()


def test_h08_a_urllib_selector_that_differs_from_the_url_gets_no_token(
    listed: Party, evil: Party, between: Proxy
) -> None:
    """urllib sends the selector as the target, and an application can set it to any text."""
    install(Settings(destinations=[listed.url, between.url]))
    with use_token(TOKEN):
        proxied = _proxied_request(listed, between)
        proxied.selector = f"{evil.url}/x"
        _open(proxied)
        direct = urllib.request.Request(f"{listed.url}/x")
        direct.selector = f"{evil.url}/x"
        _open(direct)
        _open(_proxied_request(listed, between))

    assert evil.lines() == [[]]
    assert listed.lines() == [[], LINE]


def test_h08_a_urllib_method_that_contains_a_target_gets_no_token(listed: Party, evil: Party, between: Proxy) -> None:
    """http.client allows spaces in a method, so a method can contain a target that precedes the URL's."""
    # The proxy rejects such a line.
    with use_token(TOKEN), suppress(urllib.error.HTTPError, http.client.HTTPException):
        _open(_proxied_request(listed, between, method=f"GET {evil.url}/x"))

    assert not any(request.holds(TOKEN) for request in between.requests)
    evil.assert_saw_no(TOKEN)


@pytest.mark.parametrize("through_proxy", [True, False], ids=["proxied", "direct"])
@pytest.mark.parametrize("path", ["http://evil.example/x", "@evil.example/x"])
def test_h08_an_unchecked_aiohttp_url_gets_no_token(
    path: str, through_proxy: bool, listed: Party, between: Proxy
) -> None:
    """yarl does not check parts that are marked as encoded, so a path can be a complete URL in the request line."""
    url = yarl.URL.build(scheme="http", host="127.0.0.1", port=listed.port, path=path, encoded=True)

    async def run() -> None:
        via = between.url if through_proxy else None
        async with aiohttp.ClientSession() as session, session.get(url, proxy=via):
            pass

    with use_token(TOKEN):
        in_loop(run())

    # A proxy gets the complete URL, in which the path begins with a slash.
    assert listed.lines() == [LINE if through_proxy else []]


def _tls_httpx(url: str, name: str) -> None:
    with httpx.Client(verify=trust(), trust_env=False) as client:
        client.get(url, extensions={"sni_hostname": name})


def _tls_httpx2(url: str, name: str) -> None:
    with httpx2.Client(verify=trust(), trust_env=False) as client:
        client.get(url, extensions={"sni_hostname": name})


def _tls_httpx_async(url: str, name: str) -> None:
    async def run() -> None:
        async with httpx.AsyncClient(verify=trust(), trust_env=False) as client:
            await client.get(url, extensions={"sni_hostname": name})

    in_loop(run())


def _tls_urllib3(url: str, name: str) -> None:
    with urllib3.PoolManager(ssl_context=trust(), server_hostname=name) as manager:
        manager.request("GET", url)


def _tls_aiohttp(url: str, name: str) -> None:
    async def run() -> None:
        connector = aiohttp.TCPConnector(ssl=trust())
        async with aiohttp.ClientSession(connector=connector) as session, session.get(url, server_hostname=name):
            pass

    in_loop(run())


def _tls_grpc(url: str, name: str) -> None:
    credentials = grpc.ssl_channel_credentials(Path(certificate()).read_bytes())
    options = [("grpc.ssl_target_name_override", name)]
    with grpc.secure_channel(urlsplit(url).netloc, credentials, options=options) as channel:
        channel.unary_unary("/tests.Party/call")(b"", timeout=10)


def _tls_grpc_authority(url: str, name: str) -> None:
    async def run() -> None:
        with open(certificate(), "rb") as file:
            credentials = grpc.ssl_channel_credentials(file.read())
        # An iterator: gRPC must still get the option after we have read it.
        options = iter([("grpc.default_authority", f"{name}:{urlsplit(url).port}")])
        async with grpc.aio.secure_channel(urlsplit(url).netloc, credentials, options) as channel:
            await channel.unary_unary("/tests.Party/call")(b"", timeout=10)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("send", "run"),
    [
        pytest.param(_tls_httpx, party, id="httpx"),
        pytest.param(_tls_httpx_async, party, id="httpx-async"),
        pytest.param(_tls_httpx2, party, id="httpx2"),
        pytest.param(_tls_urllib3, party, id="urllib3"),
        pytest.param(_tls_aiohttp, party, id="aiohttp"),
        pytest.param(_tls_grpc, grpc_party, id="grpc"),
        pytest.param(_tls_grpc_authority, grpc_party, id="grpc-aio"),
    ],
)
def test_h08_a_request_with_another_tls_name_gets_no_token(send: Callable[[str, str], None], run: Any) -> None:
    """The certificate is checked against the TLS name, and proxies may route by it, so it must be the URL's host."""
    with ExitStack() as stack:
        one = stack.enter_context(run(tls=True))
        by_name = f"https://localhost:{one.port}"
        install(Settings(destinations=[one.url, by_name]))
        with use_token(TOKEN):
            send(one.url, "localhost")
            send(by_name, "127.0.0.1")
            send(by_name, "LocalHost")

    assert one.lines() == [[], [], LINE]
