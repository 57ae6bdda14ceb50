"""Connections to issuers. The connection classes extend urllib3's classes.

Each request has a single deadline, and connections are kept open for reuse. This module does not use urllib3's
connection pools, because a pool's timeout restarts whenever data is received. In addition, this package and
instrumentation libraries add hooks to the pools. These hooks must not process requests to issuers.

Invariants:

* The connection is shut down at the deadline, even while it is connecting, waiting for a proxy's response to CONNECT,
  performing a TLS handshake, sending, or receiving. The only exception is a DNS lookup, which cannot be canceled.
* A connection is reused only after a complete response with status 200. This rule prevents a response from being
  mistaken for the response to a different request.
* A connection that presents a client certificate is used only for requests that specify that certificate.
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

# Servers differ widely in how long they keep idle connections open, and some firewalls silently drop idle connections.
IDLE_SECONDS: Final = 15.0
# The maximum number of idle connections per route.
MAX_IDLE: Final = 8


_QUICKACK: Final = getattr(socket, "TCP_QUICKACK", None)  # available only on Linux


class Route(NamedTuple):
    """A connection's target and client certificate. Requests with the same route can use the same connection."""

    scheme: str
    host: str
    port: int
    proxy: Proxy | None = None
    certificate: ClientCertificate | None = None


class _Connection:
    """The behavior that plain and TLS connections share. This class must precede urllib3's class in the list of base
    classes."""

    sock: Any
    timeout: Any
    route: Route
    idle_since: float = 0.0
    deadline: float = 0.0
    _line: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        """Connect to the proxy or, if no proxy is used, to the host. This method overrides a urllib3 method."""
        host, port = self.route[1:3] if self.route.proxy is None else self.route.proxy[1:3]
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        error: OSError = socket.gaierror(socket.EAI_NONAME, "no address")
        for index, (family, kind, protocol, _, address) in enumerate(found):
            # Divide the remaining time among the addresses, because some addresses might not respond.
            seconds = self.remaining() / (len(found) - index)
            opened = socket.socket(family, kind, protocol)
            try:
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                opened.settimeout(seconds)
                opened.connect(address)
                # Use a duplicate of the socket to shut down the connection, because TLS takes over the socket's file
                # descriptor.
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
        """Shut down the connection at the monotonic time *deadline* unless the ``with`` block has already ended.

        A socket's timeout does not limit the total time, because the timeout restarts whenever data is received.
        """
        self.deadline = deadline
        self.timeout = self.remaining()
        if self.sock is not None:
            self.sock.settimeout(self.timeout)
        with watchdog.shared().watching(deadline, self._cut):
            yield

    def acknowledge_at_once(self) -> None:
        """Acknowledge received data immediately until the operating system resets this option.

        Without this option, a response on a reused connection is delayed by 40 ms if the server sends the headers and
        the body separately.
        """
        if _QUICKACK is not None and self._line is not None:
            self._line.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def _cut(self) -> None:
        # If the connection has not been established yet, `_new_conn` detects that the deadline has passed.
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
    """Create a connection without opening it.

    Args:
        route: The target and the client certificate.
        tls: The context that verifies the host's certificate and presents the client certificate, or ``None`` for plain
            HTTP.
        proxy_tls: The context that verifies a proxy's certificate without presenting a client certificate.
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
    """The open connections that are not in use. This class is thread-safe."""

    def __init__(self) -> None:
        self._connections: dict[Route, list[Connection]] = {}
        self._lock = threading.RLock()
        call_in_child(self, IdleConnections._start_over)

    def _start_over(self) -> None:
        self._lock = threading.RLock()
        # In a forked child, closing a socket closes only the child's file descriptor. Nothing is sent to the server.
        self.close()

    def take(self, route: Route) -> Connection | None:
        """Remove and return an idle connection for *route*, or return ``None`` if none is available."""
        while True:
            with self._lock:
                waiting = self._connections.get(route)
                connection = waiting.pop() if waiting else None
            if connection is None:
                return None
            # If an idle connection has readable data, the server has closed the connection or sent unsolicited data.
            if time.monotonic() - connection.idle_since < IDLE_SECONDS and connection.is_connected:
                return connection
            connection.discard()

    def put(self, connection: Connection) -> None:
        """Keep an open connection for reuse, and close connections that have been idle for too long."""
        connection.idle_since = now = time.monotonic()
        unused: list[Connection] = []
        with self._lock:
            for route in [*self._connections]:
                waiting = self._connections[route]
                count = sum(now - other.idle_since >= IDLE_SECONDS for other in waiting)  # oldest first
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
