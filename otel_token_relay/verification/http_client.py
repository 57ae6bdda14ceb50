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
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Generator, Mapping
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from otel_token_relay.errors import ConfigurationError
from otel_token_relay.origin import Origin, is_trustworthy

MAX_BODY_BYTES: Final = 512 * 1024


class FetchFailed(Exception):
    """No usable response arrived in time. The error message does not quote the response."""

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

    deadline = time.monotonic() + timeout
    headers = {"Accept": "application/json", "User-Agent": "otel-token-relay", "Connection": "close"}
    if form is not None:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    if authorization is not None:
        headers["Authorization"] = authorization
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    with suppress_instrumentation(), contextlib.closing(_build_connection(url, timeout)) as connection:
        try:
            with _cut_at(connection, deadline):
                connection.connect()
            with _cut_at(connection, deadline):
                connection.request("GET" if form is None else "POST", target, body=form, headers=headers)
                with contextlib.closing(connection.getresponse()) as response:
                    return _read(response, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise FetchFailed(type(error).__name__) from None


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
        raise FetchFailed("the response took too long")
    if response.length:  # the number of missing bytes: a limited read does not raise IncompleteRead
        raise FetchFailed("the response is incomplete")
    return Response(response.status, {name.lower(): value for name, value in response.headers.items()}, body)
