"""Connections to issuers, based on urllib3's. Each request has one deadline, and connections stay open for reuse.

urllib3's pools are not used: their timeout restarts with each byte received, and the code in this package and in
instrumentation that hooks the pools must not see these requests.

Invariants:

* At the deadline, the connection is shut down, regardless of what it is doing: connecting, waiting for a proxy's
  response to CONNECT, performing a TLS handshake, sending, or receiving. Only a name lookup cannot be canceled.
* A connection is used again only after a complete response with status 200, so that no response can be mistaken for the
  response to another request.
* A connection that presents a client certificate is used only for requests with that certificate.
* A forked child does not use its parent's connections.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Generator
from typing import Any, Final, NamedTuple

from urllib3.connection import HTTPConnection, HTTPSConnection, ProxyConfig
from urllib3.util import Url

from otel_token_relay.client_credentials import ClientCertificate
from otel_token_relay.forks import call_in_child
from otel_token_relay.verification import watchdog
from otel_token_relay.verification.proxies import Proxy

# Servers close idle connections after widely varying times, and some firewalls drop them silently.
IDLE_SECONDS: Final = 15.0
# The maximum number of idle connections that are kept for each route.
MAX_IDLE: Final = 8


_QUICKACK: Final = getattr(socket, "TCP_QUICKACK", None)  # available only on Linux


class Route(NamedTuple):
    """A connection's target and the client certificate that it presents. Requests with equal routes can share it."""

    scheme: str
    host: str
    port: int
    proxy: Proxy | None = None
    certificate: ClientCertificate | None = None


class _Connection:
    """The behavior that plain and TLS connections share. This class must be listed before urllib3's base class."""

    sock: Any
    timeout: Any
    route: Route
    idle_since: float = 0.0
    deadline: float = 0.0
    _line: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        """Connect to the proxy if there is one; otherwise, connect to the host. Overrides a urllib3 method."""
        host, port = self.route[1:3] if self.route.proxy is None else self.route.proxy[1:3]
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        error: OSError = socket.gaierror(socket.EAI_NONAME, "no address")
        for index, (family, kind, protocol, _, address) in enumerate(found):
            # An address that does not respond must leave time for the remaining ones.
            seconds = self.remaining() / (len(found) - index)
            opened = socket.socket(family, kind, protocol)
            try:
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                opened.settimeout(seconds)
                opened.connect(address)
                # TLS takes over the socket's descriptor, so the connection is shut down through a duplicate.
                self._line = opened.dup()
                opened.settimeout(self.remaining())
            except OSError as failed:
                opened.close()
                error = failed
            else:
                return opened
        raise error

    def remaining(self) -> float:
        """Return the number of seconds until the deadline.

        Raises:
            TimeoutError: The deadline has passed.
        """
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds

    @contextlib.contextmanager
    def until(self, deadline: float) -> Generator[None, None, None]:
        """Shut down the connection at *deadline* on the monotonic clock, because a socket's own timeout restarts."""
        self.deadline = deadline
        self.timeout = self.remaining()
        if self.sock is not None:
            self.sock.settimeout(self.timeout)
        with watchdog.shared().watching(deadline, self._cut):
            yield

    def acknowledge_at_once(self) -> None:
        """Acknowledge received data immediately, until the operating system reverts this setting.

        Otherwise, on a reused connection, each response from a server that sends its headers and body separately would
        be delayed by 40 ms.
        """
        if _QUICKACK is not None and self._line is not None:
            self._line.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def _cut(self) -> None:
        # If the connection does not exist yet, `_new_conn` detects that the deadline has passed.
        if (line := self._line) is not None:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def discard(self) -> None:
        """Close the connection."""
        self.close()
        if (line := self._line) is not None:
            self._line = None
            line.close()

    def close(self) -> None:
        super().close()  # type: ignore[misc]  # defined in the next base class


class _PlainConnection(_Connection, HTTPConnection): ...


class _TlsConnection(_Connection, HTTPSConnection): ...


Connection = _PlainConnection | _TlsConnection


def build_connection(
    route: Route, tls: ssl.SSLContext | None = None, proxy_tls: ssl.SSLContext | None = None
) -> Connection:
    """Return a connection that has not been opened yet.

    Args:
        route: The target and the client certificate.
        tls: The context that verifies the host's certificate and presents the client's; ``None`` for plain http.
        proxy_tls: The context that verifies a proxy's certificate. It presents no client certificate to the proxy.
    """
    connection: Connection
    scheme, host, port, proxy, _ = route
    if scheme == "http":
        connection = _PlainConnection(host, port)
    elif proxy is None:
        connection = _TlsConnection(host, port, ssl_context=tls)
    else:
        connection = _TlsConnection(
            proxy.host,
            proxy.port,
            ssl_context=tls,
            proxy=Url(proxy.scheme, host=proxy.host, port=proxy.port),
            proxy_config=ProxyConfig(proxy_tls, False, None, None),
        )
        connection.set_tunnel(host, port, dict(proxy.headers), scheme=proxy.scheme)
    connection.route = route
    return connection


class IdleConnections:
    """The open connections that no request is using. Safe to share between threads."""

    def __init__(self) -> None:
        self._connections: dict[Route, list[Connection]] = {}
        self._lock = threading.RLock()
        call_in_child(self, IdleConnections._start_over)

    def _start_over(self) -> None:
        self._lock = threading.RLock()
        # Closing a socket here only closes the child's descriptor; nothing is sent.
        self.close()

    def take(self, route: Route) -> Connection | None:
        """Return an open connection for *route* that no other caller uses; ``None`` if there is none."""
        while True:
            with self._lock:
                waiting = self._connections.get(route)
                connection = waiting.pop() if waiting else None
            if connection is None:
                return None
            # If data can be read, the server has closed the connection or sent something that was not requested.
            if time.monotonic() - connection.idle_since < IDLE_SECONDS and connection.is_connected:
                return connection
            connection.discard()

    def put(self, connection: Connection) -> None:
        """Keep an open connection, and close those that have been idle for too long."""
        connection.idle_since = now = time.monotonic()
        unused: list[Connection] = []
        with self._lock:
            for route in [*self._connections]:
                waiting = self._connections[route]
                count = sum(now - other.idle_since >= IDLE_SECONDS for other in waiting)  # the oldest are first
                unused += waiting[:count]
                del waiting[:count]
                if not waiting:
                    del self._connections[route]
            waiting = self._connections.setdefault(connection.route, [])
            waiting.append(connection)
            if len(waiting) > MAX_IDLE:
                unused.append(waiting.pop(0))
        for other in unused:
            other.discard()

    def close(self) -> None:
        """Close all idle connections."""
        with self._lock:
            unused = [connection for waiting in self._connections.values() for connection in waiting]
            self._connections.clear()
        for connection in unused:
            connection.discard()
