"""h11: connections that do not go to the host of the URL, for example over a Unix socket."""

from __future__ import annotations

import asyncio
import functools
import gc
import http.client
import socket
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import botocore.awsrequest
import botocore.httpsession
import httpcore
import httpcore2
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
from urllib3.http2.connection import HTTP2Connection

from otel_token_relay import Settings, install, use_token
from otel_token_relay.clients.connections import is_ip_peer
from otel_token_relay.clients.httpx import _target_of_pooled
from otel_token_relay.clients.urllib3 import destinations
from tests.support.clients import in_loop
from tests.support.loopback import Party, party, proxy, socks_proxy, trust, unix_party

TOKEN = "h11-canary-token-0001"
LINE = [f"Bearer {TOKEN}"]
PLACEHOLDER = "http://localhost"


@pytest.fixture
def served() -> Iterator[tuple[Party, str]]:
    """A server on a Unix socket whose placeholder host is listed, and the path of the socket."""
    with unix_party() as pair:
        install(Settings(destinations=[PLACEHOLDER, "https://localhost"]))
        yield pair


def unix_socket(path: str) -> socket.socket:
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    opened.connect(path)
    return opened


class OverridesConnect(urllib3.connection.HTTPConnection):
    """As in docker's SDK."""

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
    """Opens the socket when it is read, before ``connect`` is called."""

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
    """A socket without a family, like docker's for named pipes on Windows."""

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
    """Return a pool with the placeholder host, like those of docker's SDK and requests-unixsocket."""

    class Bound(kind):  # type: ignore[valid-type,misc]
        pass

    Bound.path = path

    class UnixPool(urllib3.HTTPConnectionPool):
        def _new_conn(self) -> Any:
            return Bound("localhost", timeout=10)

    return UnixPool("localhost", timeout=10)


every_connection = pytest.mark.parametrize("kind", CONNECTIONS, ids=lambda kind: kind.__name__)


@every_connection
def test_h11_a_urllib3_pool_for_a_unix_socket_gets_no_token(
    kind: type[urllib3.connection.HTTPConnection], served: tuple[Party, str]
) -> None:
    """The host of the pool is a placeholder, so neither a new connection nor a reused one carries the token."""
    one, path = served
    with use_token(TOKEN), pool_of(kind, path) as pool:
        for _ in range(2):
            assert pool.urlopen("GET", "/x").status == 200

    assert one.lines() == [[], []]


class UnixAdapter(requests.adapters.HTTPAdapter):
    """The adapter of docker's SDK and of requests-unixsocket, for ``http+unix://`` URLs."""

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
def test_h11_a_requests_adapter_for_a_unix_socket_gets_no_token(
    kind: type[urllib3.connection.HTTPConnection], served: tuple[Party, str]
) -> None:
    """Adapters for Unix sockets get no token, for any scheme that their URLs have."""
    one, path = served
    with use_token(TOKEN), requests.Session() as session:
        session.mount("http+unix://", UnixAdapter(kind, path))
        session.mount("http+docker://", UnixAdapter(kind, path))
        session.mount(PLACEHOLDER, UnixAdapter(kind, path))
        for url in ("http+unix://socket/x", "http+docker://localhost/x", f"{PLACEHOLDER}/x"):
            assert session.get(url).status_code == 200

    assert one.lines() == [[], [], []]


def test_h11_a_connection_of_another_library_gets_no_token(served: tuple[Party, str]) -> None:
    """A pool may use a connection that only looks like one of urllib3's."""
    one, path = served

    class Stranger(http.client.HTTPConnection):
        """As in early releases of requests-unixsocket, with the attributes that urllib3 needs today."""

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
def test_h11_a_patched_urllib3_gets_no_token(
    name: str, served: tuple[Party, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function that replaces urllib3's own gets no token, even if the class was used before."""
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


def test_h11_classes_of_an_application_are_not_kept_alive(served: tuple[Party, str]) -> None:
    """The hook holds no reference to the classes of connections."""
    _, path = served
    with use_token(TOKEN), pool_of(OverridesConnect, path) as pool:
        pool.urlopen("GET", "/x")
        seen = weakref.ref(type(pool._new_conn()))
    del pool
    gc.collect()

    assert seen() is None


class _Named(urllib3.connection.HTTPConnection):
    """Override a method that is unrelated to connecting."""

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
    """Send through a pool whose connections are TCP sockets that are open already."""

    class Pool(urllib3.HTTPConnectionPool):
        def _new_conn(self) -> Any:
            connection = super()._new_conn()
            # Without a protocol, which is the usual way to create a socket.
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
    """If the client connects to ``localhost`` by TCP, directly or through a proxy, the token is relayed."""
    with party() as one, use_token(TOKEN):
        url = f"{PLACEHOLDER}:{one.port}"
        install(Settings(destinations=[url]))
        TCP[kind](url)

    assert one.lines() == [LINE, LINE]


def test_h11_a_socks_proxy_carries_tls_to_a_listed_host() -> None:
    """urllib3's connections for SOCKS are read as https if they use TLS."""
    with party(tls=True) as one, socks_proxy() as via, use_token(TOKEN):
        url = f"https://localhost:{one.port}"
        install(Settings(destinations=[url]))
        with urllib3.contrib.socks.SOCKSProxyManager(via, ssl_context=trust()) as manager:
            manager.request("GET", url)
        install(Settings(destinations=[url.replace("https", "http")]))
        with urllib3.contrib.socks.SOCKSProxyManager(via, ssl_context=trust()) as manager:
            manager.request("GET", url)

    assert one.lines() == [LINE, []]


def test_h11_http2_connections_of_urllib3_are_https() -> None:
    """urllib3's own class for HTTP/2 is read as https."""

    pool = urllib3.HTTPSConnectionPool("localhost", 8443)
    connection = HTTP2Connection("localhost", 8443)

    assert destinations(urllib3.connectionpool)(((pool, connection, "GET", "/x"), {})) == ("https", "localhost", 8443)


def test_h11_the_connection_counts_not_the_pool() -> None:
    """If a pool uses connections to another host than its own, that host counts."""
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


def test_h11_a_pool_for_https_without_tls_is_http() -> None:
    """A connection without TLS is http, even if the scheme of its pool is https."""
    with party() as one, use_token(TOKEN):
        install(Settings(destinations=[f"https://127.0.0.1:{one.port}"]))

        class Plain(urllib3.HTTPConnectionPool):
            scheme = "https"

        with Plain("127.0.0.1", one.port) as pool:
            pool.urlopen("GET", "/x")

    assert one.lines() == [[]]


def _transport(module: ModuleType, core: Any, kind: str, path: str, is_async: bool) -> Any:
    name = "AsyncHTTPTransport" if is_async else "HTTPTransport"
    if kind == "uds":
        return getattr(module, name)(uds=path)
    transport = getattr(module, name)()
    pool = getattr(core, "AsyncConnectionPool" if is_async else "ConnectionPool")
    if kind == "pool":
        transport._pool = pool(uds=path)
        return transport
    # Connects to the socket instead of the host that it is given.
    backend = core._backends.auto.AutoBackend if is_async else core.SyncBackend

    class Elsewhere(backend):  # type: ignore[misc,valid-type]
        def connect_tcp(self, *_: Any, **options: Any) -> Any:
            return self.connect_unix_socket(path, timeout=options.get("timeout"))

    transport._pool = pool(network_backend=Elsewhere())
    return transport


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(("module", "core"), [(httpx, httpcore), (httpx2, httpcore2)], ids=["httpx", "httpx2"])
@pytest.mark.parametrize("kind", ["uds", "pool", "backend"])
def test_h11_an_httpx_transport_to_a_unix_socket_gets_no_token(
    kind: str, module: ModuleType, core: ModuleType, is_async: bool, served: tuple[Party, str]
) -> None:
    """A transport with `uds=`, or with a network backend of the application's own, gets no token."""
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


def test_h11_an_unreadable_httpcore_pool_gets_no_token() -> None:
    """If httpcore renames its attributes, nothing is relayed. A pool that the application defined is allowed."""

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


class _UnixThroughTcp(aiohttp.TCPConnector):
    """A subclass of the TCP connector that connects to a Unix socket."""

    path: str

    async def _wrap_create_connection(self, *args: Any, **_: Any) -> Any:
        return await self._loop.create_unix_connection(args[0], self.path)


def _unix_through_tcp(path: str) -> aiohttp.BaseConnector:
    connector = _UnixThroughTcp()
    connector.path = path
    return connector


@pytest.mark.parametrize("connector", [aiohttp.UnixConnector, _unix_through_tcp], ids=["UnixConnector", "TCPConnector"])
def test_h11_an_aiohttp_connector_to_a_unix_socket_gets_no_token(
    connector: Callable[[str], aiohttp.BaseConnector], served: tuple[Party, str]
) -> None:
    """The open connection counts, not the class of the connector."""
    one, path = served

    async def run() -> None:
        async with aiohttp.ClientSession(connector=connector(path)) as session:
            for _ in range(2):
                async with session.get(f"{PLACEHOLDER}/x") as response:
                    assert response.status == 200

    with use_token(TOKEN):
        in_loop(run())

    assert one.lines() == [[], []]


class _ToUnixSocket(Resolver):
    path: str

    def initialize(self, path: str) -> None:
        self.path = path

    async def resolve(self, host: str, port: int, family: int = 0) -> Any:
        return [(socket.AF_UNIX, self.path)]


def test_h11_a_tornado_resolver_that_returns_a_unix_socket_gets_no_token(served: tuple[Party, str]) -> None:
    """If the resolver returns a Unix socket, the request gets no token."""
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


def _subclass(path: str) -> Any:
    class UnixConnection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = unix_socket(path)

    return UnixConnection


def _subclass_with_a_creator(path: str) -> Any:
    class UnixConnection(http.client.HTTPConnection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._create_connection = lambda *_, **__: _WithoutOptions(path)

    return UnixConnection


class _WithoutOptions(socket.socket):
    """A Unix socket that takes the options of TCP."""

    def __init__(self, path: str) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connect(path)

    def setsockopt(self, *_: Any) -> None: ...


def _open_already(path: str) -> Any:
    def make(*args: Any, **kwargs: Any) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(*args, **kwargs)
        connection.sock = unix_socket(path)
        return connection

    return make


def _own_method(path: str) -> Any:
    def make(*args: Any, **kwargs: Any) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(*args, **kwargs)
        connection.connect = functools.partial(_subclass(path).connect, connection)  # type: ignore[method-assign]
        return connection

    return make


HTTP_CLASSES = {
    "subclass": _subclass,
    "creator": _subclass_with_a_creator,
    "already open": _open_already,
    "replaced connect": _own_method,
}


def _opener(http_class: Any) -> urllib.request.OpenerDirector:
    class Handler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> Any:
            return self.do_open(http_class, req)

    return urllib.request.build_opener(urllib.request.ProxyHandler({}), Handler)


@pytest.mark.parametrize("kind", HTTP_CLASSES)
def test_h11_a_urllib_handler_for_a_unix_socket_gets_no_token(kind: str, served: tuple[Party, str]) -> None:
    """A handler can pass `do_open` a class or function whose connections go to a Unix socket."""
    one, path = served
    with use_token(TOKEN):
        _opener(HTTP_CLASSES[kind](path)).open(f"{PLACEHOLDER}/x", timeout=10).close()

    assert one.lines() == [[]]


def test_h11_a_patched_urllib_gets_no_token(served: tuple[Party, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A replaced ``connect`` of http.client's own class gets no token."""
    one, path = served
    monkeypatch.setattr(http.client.HTTPConnection, "connect", _subclass(path).connect)
    with use_token(TOKEN):
        _opener(http.client.HTTPConnection).open(f"{PLACEHOLDER}/x", timeout=10).close()

    assert one.lines() == [[]]


def test_h11_a_urllib_handler_that_connects_by_tcp_gets_the_token() -> None:
    """A function that creates connections is called once for each request, and the connection counts."""
    made: list[http.client.HTTPConnection] = []

    class Named(http.client.HTTPConnection):
        """Override a method that is unrelated to connecting."""

        def putheader(self, header: str | bytes, *values: Any) -> None:
            super().putheader(header, *values)

    def make(*args: Any, **kwargs: Any) -> http.client.HTTPConnection:
        made.append(Named(*args, **kwargs))
        return made[-1]

    with party() as one, party() as other, use_token(TOKEN):
        install(Settings(destinations=[one.url]))
        _opener(make).open(f"{one.url}/x", timeout=10).close()
        _opener(Named).open(f"{one.url}/x", timeout=10).close()
        # Connects to another server than the one in the URL.
        elsewhere = functools.partial(_connection_to, other.port)
        _opener(elsewhere).open(f"{one.url}/x", timeout=10).close()

    assert one.lines() == [LINE, LINE]
    assert len(made) == 1
    assert other.lines() == [[]]


def _connection_to(port: int, *_: Any, **options: Any) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=options["timeout"])


@pytest.mark.parametrize("peer", [None, "", "/run/socket", b"\0abstract", (3, 1024), (), ("/run/x",), ("hci0", 1)])
def test_h11_peers_of_other_families_are_not_ip_addresses(peer: Any) -> None:
    """The peer names of other socket families are not taken for an IP address and a port."""
    assert not is_ip_peer(peer)
    assert is_ip_peer(("127.0.0.1", 80))
    assert is_ip_peer(("::1", 80, 0, 0))


def test_h11_peers_of_uvloop_are_read_like_those_of_asyncio(served: tuple[Party, str]) -> None:
    """Connections of uvloop are read like those of asyncio."""
    uvloop = pytest.importorskip("uvloop")
    one, path = served

    async def run(listed: Party) -> None:
        for connector in (aiohttp.UnixConnector(path), aiohttp.TCPConnector(ssl=trust())):
            url = PLACEHOLDER if isinstance(connector, aiohttp.UnixConnector) else listed.url
            async with aiohttp.ClientSession(connector=connector) as session, session.get(f"{url}/x"):
                pass

    with party(tls=True) as listed, use_token(TOKEN):
        install(Settings(destinations=[PLACEHOLDER, listed.url]))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(listed))

    assert one.lines() == [[]]
    assert listed.lines() == [LINE]
