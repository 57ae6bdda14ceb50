"""h11: a connection that does not lead to the URL's host, such as a Unix socket, carries no token."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import botocore.awsrequest
import botocore.httpsession
import httpx
import httpx2
import pytest
import requests
import requests.adapters
import urllib3
import urllib3.connection
import urllib3.connectionpool
import urllib3.contrib.socks
from tornado.netutil import Resolver
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from otel_token_relay import Settings, install, use_token
from tests.support.clients import in_loop
from tests.support.loopback import PLACEHOLDER, Party, party, proxy, socks_proxy, unix_party

TOKEN = "h11-canary-token-0001"
LINE = [f"Bearer {TOKEN}"]


@pytest.fixture
def served() -> Iterator[tuple[Party, str]]:
    """Run a server on a Unix socket whose placeholder host is listed, and return the server and the socket's path."""
    with unix_party() as pair:
        install(Settings(destinations=[PLACEHOLDER, "https://localhost"]))
        yield pair


class _Named(urllib3.connection.HTTPConnection):
    """A connection class that overrides a method that is unrelated to connecting."""

    def putheader(self, header: str, *values: str) -> None:
        super().putheader(header, *values)


def _own_class(url: str) -> None:
    class Pool(urllib3.HTTPConnectionPool):
        ConnectionCls = _Named

    with Pool("localhost", urlsplit(url).port) as pool:
        pool.urlopen("GET", "/x")
        pool.urlopen("GET", "/x")


def _botocore(url: str) -> None:
    session = botocore.httpsession.URLLib3Session(verify=False)
    for _ in range(2):
        session.send(botocore.awsrequest.AWSRequest("GET", f"{url}/x").prepare())
    session.close()


def _proxied(send: Callable[[str, str], None]) -> Callable[[str], None]:
    def through_proxy(url: str) -> None:
        with proxy() as between:
            send(url, between.url)

    return through_proxy


def _requests(url: str, via: str | None = None) -> None:
    with requests.Session() as session:
        session.trust_env = False
        session.proxies = {"http": via} if via else {}
        session.get(f"{url}/x")
        session.get(f"{url}/x")


def _httpx(module: ModuleType) -> Callable[[str, str], None]:
    def send(url: str, via: str) -> None:
        with module.Client(proxy=via, trust_env=False) as client:
            client.get(f"{url}/x")
            client.get(f"{url}/x")

    return send


def _through_socks(send: Callable[[str, str], None], scheme: str) -> Callable[[str], None]:
    def through_proxy(url: str) -> None:
        with socks_proxy() as via:
            send(url, via.replace("socks5", scheme))

    return through_proxy


def _preset(url: str) -> None:
    """Send requests through a pool whose connections use TCP sockets that are already open."""

    class Pool(urllib3.HTTPConnectionPool):
        def _new_conn(self) -> Any:
            connection = super()._new_conn()
            # No protocol is specified, as is usual when a socket is created.
            opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            opened.connect(("127.0.0.1", urlsplit(url).port))
            connection.sock = opened
            return connection

    with Pool("localhost", urlsplit(url).port) as pool:
        pool.urlopen("GET", "/x")
        pool.urlopen("GET", "/x")


TCP = {
    "subclass": _own_class,
    "botocore": _botocore,
    "requests": _requests,
    "requests, HTTP proxy": _proxied(_requests),
    "requests, SOCKS5": _through_socks(_requests, "socks5h"),
    "httpx, HTTP proxy": _proxied(_httpx(httpx)),
    "httpx, SOCKS5": _through_socks(_httpx(httpx), "socks5"),
    "httpx2, SOCKS5": _through_socks(_httpx(httpx2), "socks5"),
    "open socket": _preset,
}


@pytest.mark.parametrize("kind", TCP)
def test_h11_tcp_connections_to_the_same_name_get_the_token(kind: str) -> None:
    """A TCP connection to ``localhost`` carries the token, whether it is direct or through a proxy."""
    with party() as one, use_token(TOKEN):
        url = f"{PLACEHOLDER}:{one.port}"
        install(Settings(destinations=[url]))
        TCP[kind](url)

    assert one.lines() == [LINE, LINE]


class _ToUnixSocket(Resolver):
    path: str

    def initialize(self, path: str) -> None:
        self.path = path

    async def resolve(self, host: str, port: int, family: int = 0) -> Any:
        return [(socket.AF_UNIX, self.path)]


def test_h11_a_tornado_resolver_that_returns_a_unix_socket_gets_no_token(served: tuple[Party, str]) -> None:
    """A request carries no token if Tornado's resolver returns a Unix socket."""
    one, path = served

    async def run() -> None:
        client = SimpleAsyncHTTPClient(force_instance=True, resolver=_ToUnixSocket(path=path))
        try:
            await client.fetch(f"{PLACEHOLDER}/x")
        finally:
            client.close()

    with use_token(TOKEN):
        in_loop(run())

    assert one.lines() == [[]]
