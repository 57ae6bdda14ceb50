"""Tests for connections, targets, and headers of urllib3 and requests; `test_all_clients.py` covers all clients."""

from __future__ import annotations

import functools
import gc
import http.client
import socket
import types
import weakref
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import requests.adapters
import urllib3
import urllib3.connection
import urllib3.connectionpool
import urllib3.contrib.socks
from urllib3.http2.connection import HTTP2Connection

from otel_token_relay import Settings, install, uninstall, use_token
from otel_token_relay.clients.urllib3 import destinations
from tests.support.loopback import PLACEHOLDER, Party, Proxy, Status, party, proxy, socks_proxy, trust, unix_socket
from tests.support.rejecting_tokens import Guarded, check_one_retry, turn_on
from tests.support.token_endpoint import Endpoint, verified

TOKEN = "urllib3-sample-token"
LINE = [f"Bearer {TOKEN}"]


class OverridesConnect(urllib3.connection.HTTPConnection):
    """A connection class that overrides ``connect``, as Docker's SDK does."""

    path: str

    def connect(self) -> None:
        self.sock = unix_socket(self.path)


class OverridesNewConn(urllib3.connection.HTTPConnection):
    path: str

    def _new_conn(self) -> socket.socket:
        return unix_socket(self.path)


class LooksLikeUrllib3s(urllib3.connection.HTTPConnection):
    path: str

    @functools.wraps(urllib3.connection.HTTPConnection._new_conn)
    def _new_conn(self) -> socket.socket:
        return unix_socket(self.path)


class OpensEarly(urllib3.connection.HTTPConnection):
    path: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sock = unix_socket(self.path)


class OpensWithTheRequest(urllib3.connection.HTTPConnection):
    """A connection class that opens its socket on first access, before ``connect`` is called."""

    path: str

    @property
    def sock(self) -> Any:
        if self.__dict__.get("opened") is None:
            self.__dict__["opened"] = unix_socket(self.path)
        return self.__dict__["opened"]

    @sock.setter
    def sock(self, value: Any) -> None:
        self.__dict__["opened"] = value


class HasItsOwnConnect(urllib3.connection.HTTPConnection):
    path: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._new_conn = lambda: unix_socket(self.path)  # type: ignore[method-assign]


class Pipe:
    """A socket without a family, like the one that Docker's SDK uses for named pipes on Windows."""

    def __init__(self, path: str) -> None:
        self._socket = unix_socket(path)

    def __getattr__(self, name: str) -> Any:
        if name in ("family", "proto", "type", "socket"):
            raise AttributeError(name)
        return getattr(self._socket, name)


class OverAPipe(urllib3.connection.HTTPConnection):
    path: str

    def connect(self) -> None:
        self.sock = Pipe(self.path)  # type: ignore[assignment]


CONNECTIONS = [
    OverridesConnect,
    OverridesNewConn,
    LooksLikeUrllib3s,
    OpensEarly,
    OpensWithTheRequest,
    HasItsOwnConnect,
    OverAPipe,
]


def pool_of(kind: type[urllib3.connection.HTTPConnection], path: str) -> urllib3.HTTPConnectionPool:
    """Return a pool with the placeholder host, like the pools of Docker's SDK and requests-unixsocket."""

    class Bound(kind):  # type: ignore[valid-type,misc]
        pass

    Bound.path = path

    class UnixPool(urllib3.HTTPConnectionPool):
        def _new_conn(self) -> Any:
            return Bound("localhost", timeout=10)

    return UnixPool("localhost", timeout=10)


every_connection = pytest.mark.parametrize("kind", CONNECTIONS, ids=lambda kind: kind.__name__)


@every_connection
def test_a_urllib3_pool_for_a_unix_socket_gets_no_token(
    kind: type[urllib3.connection.HTTPConnection], served: tuple[Party, str]
) -> None:
    """A pool for a Unix socket sends no token on either new or reused connections."""
    one, path = served
    with use_token(TOKEN), pool_of(kind, path) as pool:
        for _ in range(2):
            assert pool.urlopen("GET", "/x").status == 200

    assert one.lines() == [[], []]


class UnixAdapter(requests.adapters.HTTPAdapter):
    """An adapter for ``http+unix://`` URLs, like the adapters of Docker's SDK and requests-unixsocket."""

    def __init__(self, kind: type[urllib3.connection.HTTPConnection], path: str) -> None:
        super().__init__()
        self.pool = pool_of(kind, path)

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> urllib3.HTTPConnectionPool:
        return self.pool

    def request_url(self, request: Any, proxies: Any) -> str:
        return str(request.path_url)

    def close(self) -> None:
        self.pool.close()


@every_connection
def test_a_requests_adapter_for_a_unix_socket_gets_no_token(
    kind: type[urllib3.connection.HTTPConnection], served: tuple[Party, str]
) -> None:
    """A requests adapter for a Unix socket gets no token, regardless of the URL's scheme."""
    one, path = served
    with use_token(TOKEN), requests.Session() as session:
        session.mount("http+unix://", UnixAdapter(kind, path))
        session.mount("http+docker://", UnixAdapter(kind, path))
        session.mount(PLACEHOLDER, UnixAdapter(kind, path))
        for url in ("http+unix://socket/x", "http+docker://localhost/x", f"{PLACEHOLDER}/x"):
            assert session.get(url).status_code == 200

    assert one.lines() == [[], [], []]


def test_a_connection_of_another_library_gets_no_token(served: tuple[Party, str]) -> None:
    """A connection that only resembles urllib3's connections gets no token."""
    one, path = served

    class Stranger(http.client.HTTPConnection):
        """A connection class from an early requests-unixsocket release, with the attributes that urllib3 requires."""

        is_verified, proxy, is_closed = True, None, False
        server_hostname = proxy_is_verified = None
        _dns_host = "localhost"

        def connect(self) -> None:
            self.sock = unix_socket(path)

        _new_conn = connect

        def request(self, *args: Any, chunked: bool, preload_content: bool, **kwargs: Any) -> None:  # type: ignore[override]
            super().request(args[0], args[1], headers=kwargs["headers"])

        def getresponse(self) -> Any:
            answer = super().getresponse()
            return urllib3.HTTPResponse(answer.read(), headers=answer.headers.items(), status=answer.status)

    class UnixPool(urllib3.HTTPConnectionPool):
        def _new_conn(self) -> Any:
            return Stranger("localhost")

    with use_token(TOKEN), UnixPool("localhost") as pool:
        assert pool.urlopen("GET", "/x").status == 200

    assert one.lines() == [[]]


@pytest.mark.parametrize("name", ["connect", "_new_conn"])
def test_a_patched_urllib3_gets_no_token(name: str, served: tuple[Party, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A request carries no token if a method of urllib3's connection class is replaced, even after the first use."""
    one, path = served

    def connect(self: Any) -> None:
        self.sock = unix_socket(path)

    def new_conn(self: Any) -> socket.socket:
        return unix_socket(path)

    with party() as listed, use_token(TOKEN):
        install(Settings(destinations=[PLACEHOLDER, listed.url]))
        with urllib3.PoolManager() as manager:
            manager.request("GET", listed.url)
        replacement = {"connect": connect, "_new_conn": new_conn}[name]
        monkeypatch.setattr(urllib3.connection.HTTPConnection, name, replacement)
        with urllib3.PoolManager() as manager:
            manager.request("GET", f"{PLACEHOLDER}/x")

    assert listed.lines() == [LINE]
    assert one.lines() == [[]]


def test_classes_of_an_application_are_not_kept_alive(served: tuple[Party, str]) -> None:
    """The hook does not keep the application's connection classes alive."""
    _, path = served
    with use_token(TOKEN), pool_of(OverridesConnect, path) as pool:
        pool.urlopen("GET", "/x")
        seen = weakref.ref(type(pool._new_conn()))
    del pool
    gc.collect()

    assert seen() is None


def test_a_socks_proxy_carries_tls_to_a_listed_host() -> None:
    """A TLS connection through a SOCKS proxy has the https scheme, and a listed host gets the token."""
    with party(tls=True) as one, socks_proxy() as via, use_token(TOKEN):
        url = f"https://localhost:{one.port}"
        install(Settings(destinations=[url]))
        with urllib3.contrib.socks.SOCKSProxyManager(via, ssl_context=trust()) as manager:
            manager.request("GET", url)
        install(Settings(destinations=[url.replace("https", "http")]))
        with urllib3.contrib.socks.SOCKSProxyManager(via, ssl_context=trust()) as manager:
            manager.request("GET", url)

    assert one.lines() == [LINE, []]


def test_http2_connections_of_urllib3_are_https() -> None:
    """A connection of urllib3's HTTP/2 class has the https scheme."""

    pool = urllib3.HTTPSConnectionPool("localhost", 8443)
    connection = HTTP2Connection("localhost", 8443)

    assert destinations(urllib3.connectionpool)(((pool, connection, "GET", "/x"), {})) == ("https", "localhost", 8443)


def test_the_connection_counts_not_the_pool() -> None:
    """The decision applies to the host of the connection, not to the host of the pool."""
    with party() as one, party() as other, use_token(TOKEN):
        install(Settings(destinations=[one.url]))

        class Elsewhere(urllib3.HTTPConnectionPool):
            def _new_conn(self) -> Any:
                return urllib3.connection.HTTPConnection("127.0.0.1", other.port)

        with Elsewhere("127.0.0.1", one.port) as pool:
            pool.urlopen("GET", "/x")
        install(Settings(destinations=[other.url]))
        with Elsewhere("127.0.0.1", one.port) as pool:
            pool.urlopen("GET", "/x")

    assert other.lines() == [[], LINE]


def test_a_pool_for_https_without_tls_is_http() -> None:
    """A connection without TLS has the http scheme, even if the pool's scheme is https."""
    with party() as one, use_token(TOKEN):
        install(Settings(destinations=[f"https://127.0.0.1:{one.port}"]))

        class Plain(urllib3.HTTPConnectionPool):
            scheme = "https"

        with Plain("127.0.0.1", one.port) as pool:
            pool.urlopen("GET", "/x")

    assert one.lines() == [[]]


class _ElsewhereAdapter(requests.adapters.HTTPAdapter):
    """An adapter that sends a request line for a URL other than the one that it connects to."""

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
def test_the_request_url_of_an_adapter_determines_the_destination(
    through_proxy: bool, listed: Party, unlisted: Party, between: Proxy
) -> None:
    """A request carries no token if its adapter sends a target that differs from the URL."""
    with use_token(TOKEN), _session(f"{unlisted.url}/x", between.url if through_proxy else None) as session:
        session.get(listed.url)

    assert not any(request.holds(TOKEN) for request in between.requests)
    assert (len(unlisted.requests), len(listed.requests)) == ((1, 0) if through_proxy else (0, 1))
    unlisted.assert_saw_no(TOKEN)
    listed.assert_saw_no(TOKEN)


@pytest.mark.parametrize("target", ["/x", "//{netloc}/x", "{url}/x"])
def test_urllib3_sends_a_path_to_a_forward_proxy_without_the_token(
    target: str, unlisted: Party, between: Proxy
) -> None:
    """A path that is sent to a forward proxy carries no token, because the Host header can name any host."""
    install(Settings(destinations=[between.url]))
    netloc = urlsplit(unlisted.url).netloc
    with use_token(TOKEN), urllib3.ProxyManager(between.url) as manager:
        pool = manager.connection_from_host("127.0.0.1", unlisted.port, "http")
        url = target.format(netloc=netloc, url=unlisted.url)
        pool.urlopen("GET", url, headers={"Host": netloc}, assert_same_host=False)

    assert len(unlisted.requests) == 1
    unlisted.assert_saw_no(TOKEN)


def _urllib3_tunnelled(headers: Any) -> list[list[str]]:
    with party(tls=True) as one, proxy() as between, use_token(TOKEN):
        install(Settings(destinations=[one.url]))
        with urllib3.ProxyManager(between.url, ssl_context=trust()) as manager:
            manager.connection_from_url(one.url).urlopen("GET", "/", headers=headers)
        return [*one.lines("x-many"), *one.lines()]


class _Frozen(dict[str, str]):
    """Immutable headers whose copy is also immutable."""

    def copy(self) -> _Frozen:
        return self

    def __setitem__(self, name: str, value: str) -> None:
        raise TypeError("frozen")


class _ReadOnly:
    """A header collection with only the methods that urllib3 requires for a tunnel."""

    def __init__(self, *pairs: tuple[str, str]) -> None:
        self._pairs = pairs

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._pairs)

    def items(self) -> Any:
        return self._pairs


@pytest.mark.parametrize(
    ("headers", "values"),
    [
        pytest.param(_ReadOnly(("X-Many", "a"), ("X-Many", "b")), ["a", "b"], id="repeated"),
        pytest.param(_Frozen({"X-Many": "a"}), ["a"], id="frozen"),
        pytest.param(types.MappingProxyType({"X-Many": "a"}), ["a"], id="proxy"),
        pytest.param(urllib3.HTTPHeaderDict([("X-Many", "a"), ("x-many", "b")]), ["a", "b"], id="HTTPHeaderDict"),
    ],
)
def test_urllib3_loses_and_rejects_no_header_because_of_the_token(headers: Any, values: list[str]) -> None:
    """Repeated header names are kept, and a request with immutable headers carries the token."""
    assert _urllib3_tunnelled(headers) == [values, LINE]


def test_urllib3_1_26_is_hooked(monkeypatch: pytest.MonkeyPatch, listed: Party) -> None:
    """The token is relayed by urllib3 1.26, whose pool module has no class for repeated headers."""
    uninstall()
    monkeypatch.delattr(urllib3.connectionpool, "HTTPHeaderDict", raising=False)
    install(Settings(destinations=[listed.url]))

    with use_token(TOKEN), urllib3.PoolManager() as pool:
        pool.request("GET", listed.url, headers=types.MappingProxyType({"X": "1"}))

    assert listed.lines() == [LINE]


@pytest.mark.parametrize("sender", ["urllib3", "urllib3-stream", "requests"])
def test_a_rejected_request_is_sent_once_more(sender: str, rejecting: Guarded) -> None:
    """The application sees only the second response, or the first response if the second token is rejected too."""
    check_one_retry(sender, rejecting)


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_request_through_a_tunnel_is_sent_again_only_on_the_same_connection(
    size: int, numbered: Endpoint, serving_process: None, between: Proxy
) -> None:
    """A tunnel cannot be reopened, so the request is repeated only if the rejected response is short."""
    with party(tls=True) as destination:
        turn_on(numbered, destination)
        challenge = ("WWW-Authenticate", 'Bearer error="invalid_token"')
        destination.answers.append(Status(401, (challenge,), b"x" * size))
        with urllib3.ProxyManager(between.url, ssl_context=trust()) as pools, use_token(verified(TOKEN)):
            response = pools.request("GET", destination.url, preload_content=False)
            assert response.status == (200 if size == 10 else 401)
    assert [request.method for request in between.requests] == ["CONNECT"]
