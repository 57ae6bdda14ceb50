"""Real loopback servers that record their requests, with and without TLS, and a proxy."""

from __future__ import annotations

import atexit
import contextvars
import datetime
import functools
import ipaddress
import select
import shutil
import socket
import ssl
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer, ThreadingTCPServer
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from otel_token_relay.testing import SeenRequest, ThirdParty, _Handler


@dataclass(frozen=True)
class Status:
    """A response that the server sends once, before the regular responses.

    Attributes:
        code: The status code.
        headers: The response's own header lines.
        body: The body; ``None`` for the Authorization lines that the server received.
    """

    code: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None


class Party(ThirdParty):
    """A server that records its requests and responds with the Authorization lines that it received.

    The server first sends the statuses that a test queues, one for each request.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.answers: deque[Status] = deque()

    def lines(self, header: str = "authorization") -> list[list[str]]:
        """Return the lines of *header* from each request so far."""
        return [request.header_lines(header) for request in self.requests]

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port


class _PartyHandler(_Handler):
    party: Party

    def _respond(self) -> None:
        if not self.path.startswith("/redirect") or self.party.answers:
            body = self._read_body()
            seen = SeenRequest(self.command, self.path, self.headers.items(), body)
            self.party.requests.append(seen)
            status = self.party.answers.popleft() if self.party.answers else Status(200)
            content = status.body
            if content is None:
                content = "\n".join(seen.header_lines("authorization")).encode()
            self.send_response(status.code)
            for name, value in status.headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        else:
            super()._respond()

    do_GET = do_POST = _respond


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Do not log errors from clients that disconnect."""


class _Server6(_Server):
    address_family = socket.AF_INET6


@contextmanager
def _running(server: ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def party(*, host: str = "127.0.0.1", tls: bool = False) -> Iterator[Party]:
    """Run a server on a free port until the block ends."""
    handler = type("_BoundHandler", (_PartyHandler,), {})
    server = (_Server6 if ":" in host else _Server)((host, 0), handler)
    if tls:
        server.socket = serving_context().wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    shown = f"[{host}]" if ":" in host else host
    handler.party = one = Party(f"{'https' if tls else 'http'}://{shown}:{server.server_address[1]}")  # type: ignore[attr-defined]
    with _running(server):
        yield one


class _UnixServer(_Server):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's method looks up the host's name
        self.server_name, self.server_port = "localhost", 0


PLACEHOLDER = "http://localhost"
"""The host in the URL of a request that is sent to a Unix socket."""


def unix_socket(path: str) -> socket.socket:
    """Return a socket that is connected to a Unix socket."""
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    opened.connect(path)
    return opened


@contextmanager
def unix_party(*, tls: bool = False) -> Iterator[tuple[Party, str]]:
    """Run a server on a Unix socket until the block ends.

    Yields:
        The server, whose URL contains ``localhost``, and the socket's path.
    """
    handler = type("_BoundHandler", (_PartyHandler,), {})
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "socket"))
        server = _UnixServer(path, handler)  # type: ignore[arg-type]
        if tls:
            server.socket = serving_context().wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        handler.party = one = Party(f"{'https' if tls else 'http'}://localhost")  # type: ignore[attr-defined]
        with _running(server):
            yield one, path


class _GrpcHandlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Accept and record every call, regardless of its name, and respond as `party` does."""

    def __init__(self, party: Party) -> None:
        self._party = party

    def service(self, details: Any) -> Any:
        def respond(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            seen = SeenRequest("POST", details.method, list(context.invocation_metadata()), b"".join(requests))
            self._party.requests.append(seen)
            yield "\n".join(seen.header_lines("authorization")).encode()

        # All four kinds of calls are the same on the wire.
        return grpc.stream_stream_rpc_method_handler(respond)


@contextmanager
def grpc_party(*, host: str = "127.0.0.1", tls: bool = False, address: str | None = None) -> Iterator[Party]:
    """Run a gRPC server on a free port until the block ends. The paths of the server's URLs are method names.

    The server also listens on *address* if it is set.
    """
    shown = f"[{host}]" if ":" in host else host
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        if tls:
            pair = Path(certificate()).read_bytes()
            port = server.add_secure_port(f"{shown}:0", grpc.ssl_server_credentials([(pair, pair)]))
        else:
            port = server.add_insecure_port(f"{shown}:0")
        if address is not None:
            server.add_insecure_port(address)
        one = Party(f"{'https' if tls else 'http'}://{shown}:{port}")
        server.add_generic_rpc_handlers([_GrpcHandlers(one)])
        # The server's threads must not inherit the test's context.
        contextvars.Context().run(server.start)
        try:
            yield one
        finally:
            server.stop(1).wait()


@functools.cache
def certificate() -> str:
    """Return the path of a key and certificate for loopback and idp.example, which each test run creates."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.DNSName("localhost"),
                    x509.DNSName("idp.example"),
                    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
                ]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = Path(tempfile.mkdtemp(prefix="loopback-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "both.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return str(path)


def serving_context() -> ssl.SSLContext:
    """Return a server's TLS context that uses `certificate`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate())
    return context


@functools.cache
def trust() -> ssl.SSLContext:
    """Return a client's TLS context that trusts only `certificate`."""
    return ssl.create_default_context(cafile=certificate())


def _join(one: socket.socket, other: socket.socket) -> None:
    """Forward data in both directions until one end closes its connection."""
    ends = {one: other, other: one}
    while ready := select.select(list(ends), [], [], 5)[0]:
        for end in ready:
            data = end.recv(65536)
            if not data:
                return
            ends[end].sendall(data)


class Proxy:
    """A forward proxy that supports CONNECT and records the requests that it receives.

    The proxy forwards to the authority in the target, with or without a scheme, or otherwise to the ``Host`` header.

    Attributes:
        addresses: The addresses of hosts that only the proxy can resolve.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[SeenRequest] = []
        self.addresses: dict[str, str] = {}


class _ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def do_CONNECT(self) -> None:
        self.proxy.requests.append(SeenRequest(self.command, self.path, self.headers.items(), b""))
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((self.proxy.addresses.get(host, host), int(port)), timeout=5) as upstream:
            self.send_response(200)
            self.end_headers()
            self.wfile.flush()
            _join(self.connection, upstream)
            self.close_connection = True

    def do_GET(self) -> None:
        # `self.path` contains only one slash if the path starts with several.
        target = self.requestline.split()[1]
        self.proxy.requests.append(SeenRequest(self.command, target, self.headers.items(), b""))
        parts = urlsplit(target if target.startswith("/") or "://" in target else f"//{target}")
        upstream = HTTPConnection(parts.netloc or self.headers["Host"], timeout=5)
        path = urlunsplit(("", "", parts.path or "/", parts.query, ""))
        upstream.putrequest("GET", path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            upstream.putheader(name, value)
        upstream.endheaders()
        response = upstream.getresponse()
        body = response.read()
        self.send_response(response.status)
        for challenge in response.headers.get_all("WWW-Authenticate", ()):
            self.send_header("WWW-Authenticate", challenge)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        upstream.close()

    def log_message(self, format: str, *args: object) -> None:
        """Do not log requests."""


@contextmanager
def proxy(*, tls: bool | ssl.SSLContext = False) -> Iterator[Proxy]:
    """Run a proxy on a free loopback port until the block ends. With *tls*, clients connect to the proxy over TLS."""
    handler = type("_BoundProxyHandler", (_ProxyHandler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    if tls:
        context = tls if isinstance(tls, ssl.SSLContext) else serving_context()
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    scheme = "https" if tls else "http"
    handler.proxy = one = Proxy(f"{scheme}://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    with _running(server):
        yield one


class _SocksHandler(StreamRequestHandler):
    """SOCKS5 without authentication (RFC 1928)."""

    def handle(self) -> None:
        self.rfile.read(self.rfile.read(2)[1])
        self.wfile.write(b"\x05\x00")
        kind = self.rfile.read(4)[3]
        address = self.rfile.read(4 if kind == 1 else self.rfile.read(1)[0])
        host = socket.inet_ntoa(address) if kind == 1 else address.decode("ascii")
        port = int.from_bytes(self.rfile.read(2), "big")
        with socket.create_connection((host, port), timeout=5) as upstream:
            self.wfile.write(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
            _join(self.connection, upstream)


class _SocksServer(ThreadingTCPServer):
    daemon_threads = True


@contextmanager
def socks_proxy() -> Iterator[str]:
    """Run a SOCKS proxy until the block ends, and yield its URL."""
    with _SocksServer(("127.0.0.1", 0), _SocksHandler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"socks5://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
