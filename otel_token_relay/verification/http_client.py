"""Our own HTTP calls: to discovery documents, key sets and introspection endpoints.

They carry nobody's token and follow nobody's lead: an empty context, instrumentation suppressed,
no redirects, https except on loopback, caps on time and size. They go over ``http.client``, below
everything that instrumentation and this package itself hook.
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
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from otel_token_relay.errors import ConfigurationError
from otel_token_relay.origin import Origin, OriginPattern

MAX_BODY_BYTES: Final = 512 * 1024


class FetchFailed(Exception):
    """The other side did not give a usable answer in time. The message quotes nothing of it."""


class Answer(NamedTuple):
    """A whole response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def check_url(setting: str, url: object) -> str:
    """Give *url* if we would ask it for keys.

    Raises:
        ConfigurationError: It is no https URL and not on loopback, or two parsers could read it
            differently.
    """
    if not isinstance(url, str) or not is_trustworthy(url):
        raise ConfigurationError(setting, "this must be an https URL, or an http URL on loopback")
    return url


def is_trustworthy(url: str) -> bool:
    """Whether nobody on the way can change what such a URL answers."""
    origin = Origin.parse(url)
    return (
        origin is not None and url.isascii() and "#" not in url and (origin.scheme == "https" or _is_loopback(origin))
    )


def _is_loopback(origin: Origin) -> bool:
    return OriginPattern(*origin).is_loopback


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    # Reading the certificate store takes some 20 ms, so once. SSL_CERT_FILE is honoured.
    return ssl.create_default_context()


def fetch(url: str, *, timeout: float, form: bytes | None = None, authorization: str | None = None) -> Answer:
    """Send one request and read the whole answer. Blocks: call it from a thread of our own.

    Args:
        url: One that `is_trustworthy`.
        timeout: Seconds for everything together.
        form: Sent by POST as ``application/x-www-form-urlencoded``; ``None`` for GET.
        authorization: Our own credential, if the other side asks for one.

    Raises:
        FetchFailed: Whatever went wrong, redirects among it.
    """
    # A fresh context, not a copy: whatever wraps threads or pools may have copied a caller's
    # context into this one, with the caller's token in it.
    return contextvars.Context().run(_fetch, url, timeout, form, authorization)


def _fetch(url: str, timeout: float, form: bytes | None, authorization: str | None) -> Answer:
    # Not at the top: it imports opentelemetry.propagate, which may be importing us.
    from opentelemetry.instrumentation.utils import suppress_instrumentation

    deadline = time.monotonic() + timeout
    headers = {"Accept": "application/json", "User-Agent": "otel-token-relay", "Connection": "close"}
    if form is not None:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    if authorization is not None:
        headers["Authorization"] = authorization
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection, target = _connection(parts, target, timeout, headers)
    with suppress_instrumentation(), contextlib.closing(connection):
        try:
            connection.connect()
            with _cut_at(connection, deadline):
                connection.request("GET" if form is None else "POST", target, body=form, headers=headers)
                return _read(connection.getresponse(), deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise FetchFailed(type(error).__name__) from None


def _connection(
    parts: SplitResult, target: str, timeout: float, headers: dict[str, str]
) -> tuple[http.client.HTTPConnection, str]:
    """Make the connection, by way of the proxy of the environment if one applies."""
    # Importing this costs 10 ms, and most services that relay verify nothing.
    from urllib.request import getproxies, proxy_bypass

    host, port = parts.hostname or "", parts.port
    secure = parts.scheme == "https"
    origin = Origin.parse(parts.geturl())
    proxy = getproxies().get(parts.scheme)
    if not proxy or origin is None or _is_loopback(origin) or proxy_bypass(host):
        if secure:
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=_tls()), target
        return http.client.HTTPConnection(host, port, timeout=timeout), target
    # Only https gets here, since http is for loopback.
    via = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    tunnel = http.client.HTTPSConnection(via.hostname or "", via.port or 3128, timeout=timeout, context=_tls())
    credentials = {}
    if via.username is not None:
        pair = f"{unquote(via.username)}:{unquote(via.password or '')}".encode()
        credentials["Proxy-Authorization"] = "Basic " + base64.b64encode(pair).decode("ascii")
    tunnel.set_tunnel(host, port, headers=credentials)
    return tunnel, target


@contextlib.contextmanager
def _cut_at(connection: http.client.HTTPConnection, deadline: float) -> Iterator[None]:
    """Cut the connection at the deadline: a socket's timeout begins anew with each byte that drips in."""
    sock = connection.sock

    def cut() -> None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _read(response: http.client.HTTPResponse, deadline: float) -> Answer:
    length = response.headers.get("Content-Length", "0")
    if not length.isdigit() or len(length) > 9 or int(length) > MAX_BODY_BYTES:
        raise FetchFailed("the answer is too large")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        # Nobody asked for it, and a compressed answer may be of any size.
        raise FetchFailed("the answer is encoded")
    body = response.read(MAX_BODY_BYTES + 1)
    if len(body) > MAX_BODY_BYTES:
        raise FetchFailed("the answer is too large")
    if time.monotonic() >= deadline:
        raise FetchFailed("the answer took too long")
    return Answer(response.status, {name.lower(): value for name, value in response.headers.items()}, body)
