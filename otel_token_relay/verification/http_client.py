"""The HTTP client for issuer metadata, key sets and introspection endpoints.

Requests run in an empty context, so that they do not carry a caller's token, and with instrumentation
suppressed. Redirects are not followed, https is required except on loopback, and both time and size
are limited. The client uses ``http.client``, which is below every layer that instrumentation and this
package hook into.
"""

from __future__ import annotations

import base64
import contextlib
import contextvars
import errno
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Generator, Mapping
from functools import lru_cache
from typing import Final, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from otel_token_relay.errors import ConfigurationError
from otel_token_relay.origin import Origin, is_trustworthy

MAX_BODY_BYTES: Final = 512 * 1024


FetchCause = Literal[
    "connection_refused",
    "host_not_found",  # the name does not exist
    "name_server_failed",
    "network_unreachable",
    "proxy_refused",
    "certificate_not_trusted",
    "tls_failed",
    "timed_out",
    "connection_closed",  # without a complete response
    "bad_response",  # a response arrived, but cannot be used
]

# Codes of OpenSSL (x509_vfy.h). Its own messages may quote the certificate.
_CERTIFICATE_PROBLEMS: Final = {
    9: "it is not valid yet",
    10: "it has expired",
    18: "it is self-signed",
    19: "its certificate authority is not trusted",
    20: "its certificate authority is not trusted",
    21: "its certificate authority is not trusted",
    62: "it is for another host name",
    64: "it is for another IP address",
}


class FetchFailed(Exception):
    """No usable response arrived in time. The error message does not quote the response.

    Attributes:
        cause: Which kind of failure it was.
    """

    def __init__(self, message: str, cause: FetchCause = "bad_response") -> None:
        super().__init__(message, cause)
        self.cause: FetchCause = cause

    def __str__(self) -> str:
        return str(self.args[0])

    @staticmethod
    def describe(error: Exception) -> str:
        """Return a description that is safe to log: for an error of another class, only the name of that class."""
        return str(error) if isinstance(error, FetchFailed) else type(error).__name__


class Response(NamedTuple):
    """A complete response. Its header names are in lowercase."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def check_url(setting: str, url: object) -> str:
    """Return *url* if it is secure enough to fetch keys from.

    Raises:
        ConfigurationError: The URL is neither https nor on loopback, or different parsers could read it
            differently.
    """
    if not isinstance(url, str) or not is_trustworthy(url):
        raise ConfigurationError(setting, "expected an https URL, or an http URL on loopback")
    return url


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    # Cached, because reading the certificate store takes about 20 ms. SSL_CERT_FILE is honored.
    return ssl.create_default_context()


def fetch(url: str, *, timeout: float, form: bytes | None = None, authorization: str | None = None) -> Response:
    """Send one request and return the complete response. This blocks, so call it from a background thread.

    Args:
        url: A URL for which `is_trustworthy` returns true.
        timeout: The maximum number of seconds for the whole exchange.
        form: The body of a POST request, sent as ``application/x-www-form-urlencoded``; ``None`` for GET.
        authorization: This service's credential, if the endpoint requires one.

    Raises:
        FetchFailed: Connecting, sending or reading failed, or the response exceeds a limit.
    """
    # Use an empty context, not a copy: thread and pool instrumentation may have copied a caller's
    # context, including the token, into this thread.
    return contextvars.Context().run(_fetch, url, timeout, form, authorization)


def _fetch(url: str, timeout: float, form: bytes | None, authorization: str | None) -> Response:
    # Not imported at the top: it imports opentelemetry.propagate, which may itself be importing this package.
    from opentelemetry.instrumentation.utils import suppress_instrumentation

    if timeout <= 0:  # the caller has used up its time
        raise FetchFailed("timed out", "timed_out")
    deadline = time.monotonic() + timeout
    headers = {"Accept": "application/json", "User-Agent": "otel-token-relay", "Connection": "close"}
    if form is not None:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    if authorization is not None:
        headers["Authorization"] = authorization
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        built = _build_connection(url, timeout)
    except ValueError:  # its message may quote a password
        raise FetchFailed("the URL in https_proxy cannot be read", "proxy_refused") from None
    with suppress_instrumentation(), contextlib.closing(built) as connection:
        try:
            with _cut_at(connection, deadline):
                connection.connect()
            with _cut_at(connection, deadline):
                connection.request("GET" if form is None else "POST", target, body=form, headers=headers)
                with contextlib.closing(connection.getresponse()) as response:
                    return _read(response, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _failure(error, is_late=time.monotonic() >= deadline, is_proxied=_has_tunnel(connection)) from None


def _failure(error: Exception, *, is_late: bool, is_proxied: bool) -> FetchFailed:
    """Return the failure that describes an error of the connection, without any text from outside this process."""
    if is_late or isinstance(error, TimeoutError):
        return FetchFailed("timed out", "timed_out")
    if isinstance(error, ssl.SSLCertVerificationError):
        problem = _CERTIFICATE_PROBLEMS.get(error.verify_code, f"OpenSSL's code is {error.verify_code}")
        return FetchFailed(f"certificate not trusted: {problem}", "certificate_not_trusted")
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return FetchFailed("connection closed during the TLS handshake", "connection_closed")
    if isinstance(error, ssl.SSLError):
        speaks_http = error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")
        hint = "; the server does not speak https on this port" if speaks_http else ""
        return FetchFailed(f"TLS handshake failed{hint}", "tls_failed")
    if isinstance(error, ConnectionError):  # RemoteDisconnected is an HTTPException as well
        if isinstance(error, ConnectionRefusedError):
            return _connection_failure("connection refused", "connection_refused", is_proxied)
        return FetchFailed("connection closed without a response", "connection_closed")
    if isinstance(error, http.client.IncompleteRead):
        return FetchFailed("the response is incomplete", "connection_closed")
    if isinstance(error, OSError):
        return _network_failure(error, is_proxied)
    return FetchFailed("the response is not valid HTTP")


def _network_failure(error: OSError, is_proxied: bool) -> FetchFailed:
    if isinstance(error, socket.gaierror):
        if error.errno in (socket.EAI_AGAIN, socket.EAI_FAIL):
            return _connection_failure("the name server does not respond", "name_server_failed", is_proxied)
        return _connection_failure("host name not found", "host_not_found", is_proxied)
    if is_proxied and error.errno is None:  # http.client raises a plain OSError with the proxy's own text
        return FetchFailed("the proxy refused to connect to the host", "proxy_refused")
    if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN):
        return _connection_failure("network unreachable", "network_unreachable", is_proxied)
    return FetchFailed(f"connection failed: {errno.errorcode.get(error.errno or 0, 'OSError')}", "connection_closed")


def _connection_failure(text: str, cause: FetchCause, is_proxied: bool) -> FetchFailed:
    return FetchFailed(f"{text} (of the proxy that https_proxy names)" if is_proxied else text, cause)


def _has_tunnel(connection: http.client.HTTPConnection) -> bool:
    return getattr(connection, "_tunnel_host", None) is not None


def _build_connection(url: str, timeout: float) -> http.client.HTTPConnection:
    """Return the connection, which uses the environment's proxy if one applies."""
    # Importing urllib.request takes 10 ms, and most services that relay tokens do not verify any.
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    if parts.scheme == "http":  # which is allowed only on loopback, and a proxy would connect to its own loopback
        return http.client.HTTPConnection(host, port, timeout=timeout)
    proxy, origin = getproxies().get("https"), Origin.parse(url)
    if not proxy or origin is None or origin.is_loopback or proxy_bypass(host):
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=_tls())
    via = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    tunnel = http.client.HTTPSConnection(via.hostname or "", via.port or 3128, timeout=timeout, context=_tls())
    credentials = {}
    if via.username is not None:
        pair = f"{unquote(via.username)}:{unquote(via.password or '')}".encode()
        credentials["Proxy-Authorization"] = "Basic " + base64.b64encode(pair).decode("ascii")
    tunnel.set_tunnel(host, port, headers=credentials)
    return tunnel


@contextlib.contextmanager
def _cut_at(connection: http.client.HTTPConnection, deadline: float) -> Generator[None, None, None]:
    """Shut down the connection at the deadline, because a socket's timeout restarts with each byte received."""

    def cut() -> None:
        # If the socket does not exist yet or TLS is replacing it, connecting and the handshake have their own timeouts.
        with contextlib.suppress(OSError, AttributeError):
            connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _read(response: http.client.HTTPResponse, deadline: float) -> Response:
    length = response.headers.get("Content-Length", "0")
    if not length.isdigit() or len(length) > 9 or int(length) > MAX_BODY_BYTES:
        raise FetchFailed(f"response larger than {MAX_BODY_BYTES} bytes")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        # The request did not ask for an encoding, and a compressed response may expand to any size.
        raise FetchFailed("unexpected Content-Encoding in the response")
    body = response.read(MAX_BODY_BYTES + 1)
    if len(body) > MAX_BODY_BYTES:
        raise FetchFailed(f"response larger than {MAX_BODY_BYTES} bytes")
    if time.monotonic() >= deadline:
        raise FetchFailed("timed out", "timed_out")
    if response.length:  # the number of missing bytes: a limited read does not raise IncompleteRead
        raise FetchFailed("the response is incomplete", "connection_closed")
    return Response(response.status, {name.lower(): value for name, value in response.headers.items()}, body)
