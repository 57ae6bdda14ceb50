"""Connections to issuers: each has one deadline, and is used again only for requests with the same route."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from otel_token_relay.client_credentials import ClientCertificate
from otel_token_relay.verification.http_client import FetchFailed, HttpClient
from otel_token_relay.verification.http_connections import (
    IDLE_SECONDS,
    MAX_IDLE,
    Connection,
    IdleConnections,
    Route,
    build_connection,
)
from otel_token_relay.verification.proxies import Proxy
from tests.support.issuers import Issuer, issuing
from tests.support.loopback import party, proxy, trust
from tests.support.wires import complete, wire


@pytest.fixture(autouse=True)
def no_proxy_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables of the machine that runs the tests."""
    for name in ("https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing() as running:
        yield running


@pytest.fixture
def client() -> Iterator[HttpClient]:
    one = HttpClient()
    yield one
    one.close()


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


# Deadlines


def test_fetch_ends_in_time_whatever_drips_in(issuer: Issuer, client: HttpClient) -> None:
    """The timeout applies to the whole exchange, not to each byte."""
    outlived = threading.Event()

    def drip(handler: BaseHTTPRequestHandler, path: str) -> bool:
        for _ in range(400):
            handler.wfile.write(b"H")
            time.sleep(0.05)
        outlived.set()
        return True

    issuer.behave = drip
    with pytest.raises(FetchFailed, match=r"^timed out$"):
        client.fetch(f"{issuer.url}/jwks", timeout=0.5)

    assert not outlived.is_set()


def test_fetch_ends_in_time_if_a_proxy_drips(client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timeout applies to the whole exchange, which includes the proxy's response to CONNECT."""
    outlived = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                for byte in b"HTTP/1.1 200 OK\r\nX: " + b"a" * 400:
                    connection.sendall(bytes([byte]))
                    time.sleep(0.05)
                outlived.set()

        proxy = threading.Thread(target=drip)
        proxy.start()
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(FetchFailed, match=r"^timed out"):
            client.fetch("https://idp.example/jwks", timeout=0.5)
        proxy.join(60)

    assert not outlived.is_set()


def test_a_server_that_drips_into_the_tls_handshake_is_cut(client: HttpClient) -> None:
    """Each phase gets the time that the phases before it have left, so the deadline applies to their sum."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        outlived = threading.Event()

        def drip() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                connection.sendall(b"\x16\x03\x03\x40\x00")
                for _ in range(200):
                    time.sleep(0.05)
                    connection.sendall(b"\x00")
                outlived.set()

        server = threading.Thread(target=drip)
        server.start()
        with pytest.raises(FetchFailed, match=r"^timed out"):
            client.fetch(f"https://127.0.0.1:{listener.getsockname()[1]}", timeout=0.5)
        server.join(60)

    assert not outlived.is_set()


def test_the_deadline_applies_to_the_tunnel_and_the_handshake_behind_it(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that opens the tunnel late and then says nothing does not get the timeout twice."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                time.sleep(1.6)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                connection.settimeout(20)
                while connection.recv(65536):  # the client's part of the handshake, until the client gives up
                    pass

        server = threading.Thread(target=serve)
        server.start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{listener.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(FetchFailed, match=r"^timed out"):
            client.fetch("https://idp.example", timeout=2.0)
        taken = time.monotonic() - started
        server.join(60)

    # With a second timeout for the handshake, it would be 3.6 s.
    assert taken < 3.5


def test_the_next_address_is_tried_in_time(issuer: Issuer, client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that does not respond leaves time for the next ones."""
    original = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if address[0] == "192.0.2.1":
            time.sleep(self.gettimeout() or 60)
            raise TimeoutError
        original(self, address)

    def getaddrinfo(host: str, port: int, *args: object, **kwargs: object) -> list[Any]:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
        return [(*kind, ("192.0.2.1", port)), (*kind, ("127.0.0.1", port))]

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    assert client.fetch(f"{issuer.url}/jwks", timeout=2.0).status == 200


# One connection


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_connection_is_opened_by_its_first_request(scheme: str) -> None:
    """The certificate is verified with the given context."""
    with party(tls=scheme == "https") as server:
        connection = build_connection(Route(scheme, "127.0.0.1", server.port), trust())
        assert server.requests == []
        with connection.until(soon()):
            connection.connect()
            connection.request("GET", "/jwks")
            connection.acknowledge_at_once()
            status = connection.getresponse().status
        connection.discard()

    assert status == 200
    assert [request.target for request in server.requests] == ["/jwks"]


def test_a_certificate_that_is_not_trusted_is_refused() -> None:
    """Nothing is sent."""
    with party(tls=True) as server:
        connection = build_connection(Route("https", "127.0.0.1", server.port), ssl.create_default_context())
        with pytest.raises(ssl.SSLCertVerificationError), connection.until(soon()):
            connection.connect()
        connection.discard()

    assert server.requests == []


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_connection_through_a_proxy_is_a_tunnel(tls: bool) -> None:
    """The proxy gets its headers, and the server does not."""
    with proxy(tls=tls) as through, party(tls=True) as server:
        through.addresses["idp.example"] = "127.0.0.1"
        scheme, _, port = through.url.replace("://", ":").split(":")
        hop = Proxy(scheme, "127.0.0.1", int(port), (("Proxy-Authorization", "Basic x"),))
        connection = build_connection(Route("https", "idp.example", server.port, hop), trust(), trust())
        with connection.until(soon()):
            connection.connect()
            connection.request("GET", "/jwks")
            assert connection.getresponse().status == 200
        connection.discard()

    assert [(one.method, one.header_lines("Proxy-Authorization")) for one in through.requests] == [
        ("CONNECT", ["Basic x"])
    ]
    assert [one.header_lines("Proxy-Authorization") for one in server.requests] == [[]]


def test_the_remaining_time_ends_with_the_deadline() -> None:
    """A request that has no time left is not sent."""
    connection = build_connection(Route("http", "127.0.0.1", 80))
    with connection.until(soon(60.0)):
        assert 59.0 < connection.remaining() <= 60.0

    for passed in (0.0, -1.0):
        with pytest.raises(TimeoutError), connection.until(soon(passed)):
            raise AssertionError("the block is not run")


def test_a_host_without_an_address_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """No system returns an empty list, but `socket.getaddrinfo` may be replaced."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: [])
    connection = build_connection(Route("http", "idp.example", 80))

    with pytest.raises(socket.gaierror), connection.until(soon()):
        connection.connect()


def test_a_discarded_connection_is_closed_at_the_server() -> None:
    """Its duplicate descriptor is closed too, or else the server would wait."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection = opened(listener)
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(10)
            connection.discard()
            connection.discard()
            assert accepted.recv(1) == b""


# Idle connections


def opened(listener: socket.socket, certificate: ClientCertificate | None = None) -> Connection:
    """Return an open connection to a server that sends nothing."""
    host, port = listener.getsockname()
    connection = build_connection(Route("http", host, port, None, certificate))
    with connection.until(soon()):
        connection.connect()
    return connection


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=32) as one:
        yield one


@pytest.fixture
def idle() -> Iterator[IdleConnections]:
    one = IdleConnections()
    yield one
    one.close()


def test_an_idle_connection_is_taken_once(idle: IdleConnections, listener: socket.socket) -> None:
    """Two requests at a time never share it."""
    connection = opened(listener)
    assert idle.take(connection.route) is None
    idle.put(connection)

    assert idle.take(connection.route) is connection
    assert idle.take(connection.route) is None
    connection.discard()


def test_a_connection_with_a_certificate_is_only_for_requests_with_it(
    idle: IdleConnections, listener: socket.socket
) -> None:
    """The server knows the connection as the client of that certificate."""
    ours, others = (ClientCertificate(f"{name}.pem", None, ()) for name in ("ours", "others"))
    connection = opened(listener, ours)
    idle.put(connection)

    for certificate in (None, others):
        assert idle.take(connection.route._replace(certificate=certificate)) is None
    assert idle.take(connection.route) is connection
    connection.discard()


def test_the_newest_connections_are_kept_up_to_a_limit(idle: IdleConnections, listener: socket.socket) -> None:
    """The oldest of one more is closed."""
    connections = [opened(listener) for _ in range(MAX_IDLE + 1)]
    for connection in connections[:MAX_IDLE]:
        idle.put(connection)
    assert not any(connection.is_closed for connection in connections)
    idle.put(connections[MAX_IDLE])

    assert [connection.is_closed for connection in connections] == [True] + [False] * MAX_IDLE
    assert [idle.take(connections[0].route) for _ in range(MAX_IDLE + 1)] == [*connections[:0:-1], None]
    for connection in connections:
        connection.discard()


@pytest.mark.parametrize(("seconds", "is_used"), [(IDLE_SECONDS - 1.0, True), (IDLE_SECONDS, False)])
def test_a_connection_is_idle_for_a_limited_time(
    idle: IdleConnections, listener: socket.socket, seconds: float, is_used: bool
) -> None:
    """It is closed when it would be taken, or when the next one is kept, also for another route."""
    taken, other = opened(listener), opened(listener, ClientCertificate("other.pem", None, ()))
    idle.put(other)
    idle.put(taken)
    for connection in (taken, other):
        connection.idle_since -= seconds

    assert (idle.take(taken.route) is taken) is is_used
    assert taken.is_closed is not is_used
    third = opened(listener)
    idle.put(third)
    assert other.is_closed is not is_used
    for connection in (taken, other, third):
        connection.discard()


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 408 Request Timeout\r\n\r\n"], ids=["closed", "unrequested data"])
def test_a_connection_on_which_something_has_arrived_is_not_used(
    idle: IdleConnections, listener: socket.socket, sent: bytes
) -> None:
    """Data before the request is the response to none."""
    connection = opened(listener)
    accepted, _ = listener.accept()
    idle.put(connection)
    with accepted:
        accepted.sendall(sent)
        accepted.shutdown(socket.SHUT_WR)
        assert connection.sock is not None
        connection.sock.settimeout(10)
        connection.sock.recv(1, socket.MSG_PEEK)

        assert idle.take(connection.route) is None
    assert connection.is_closed


def test_a_connection_is_used_again(client: HttpClient) -> None:
    """The next request saves the TCP and TLS handshakes, also after a chunked response."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    with wire(complete(), chunked, complete()) as server:
        for _ in range(3):
            assert client.fetch(server.url, timeout=5.0).body == b"{}"

    assert [len(requests) for requests in server.requests] == [3]


def test_an_idle_connection_is_dropped_after_a_while(client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall may have forgotten it, so that a request on it would get no response."""
    monkeypatch.setattr("otel_token_relay.verification.http_connections.IDLE_SECONDS", 0.0)
    with wire(complete(), complete()) as server:
        for _ in range(2):
            client.fetch(server.url, timeout=5.0)

    assert [len(requests) for requests in server.requests] == [1, 1]


def test_a_forked_child_does_not_use_its_parents_connections(client: HttpClient) -> None:
    """Two processes on one connection would read each other's responses."""
    with wire(complete(), complete(), complete()) as server:
        client.fetch(server.url, timeout=5.0)
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                os._exit(client.fetch(server.url, timeout=5.0).status - 200)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        client.fetch(server.url, timeout=5.0)

    assert sorted(len(requests) for requests in server.requests) == [1, 2]


def test_all_idle_connections_are_closed(idle: IdleConnections, listener: socket.socket) -> None:
    """Connections may be kept again afterward."""
    connections = [opened(listener, ClientCertificate(f"{n}.pem", None, ())) for n in range(3)]
    for connection in connections:
        idle.put(connection)

    idle.close()

    assert all(connection.is_closed for connection in connections)
    assert [idle.take(connection.route) for connection in connections] == [None] * 3
    again = opened(listener)
    idle.put(again)
    assert idle.take(again.route) is again
    again.discard()


def test_a_child_of_a_fork_closes_its_copies_even_if_another_thread_held_the_lock(
    idle: IdleConnections, listener: socket.socket
) -> None:
    """The parent's connection stays open."""
    connection = opened(listener)
    idle.put(connection)
    is_held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with idle._lock:
            is_held.set()
            may_end.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert is_held.wait(10)
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        os._exit(0 if idle.take(connection.route) is None and connection.is_closed else 1)
    status = os.waitpid(child, 0)[1]
    may_end.set()
    thread.join(10)

    assert status == 0
    assert idle.take(connection.route) is connection
    connection.discard()
