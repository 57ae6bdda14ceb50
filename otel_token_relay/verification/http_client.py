"""The HTTP client for issuer metadata, key sets, introspection endpoints, and token endpoints.

The client sends requests in an empty context, so the requests never carry a caller's token. Instrumentation is
suppressed, so the package does not make relay decisions about these requests. The client does not follow redirects.
Plain HTTP is allowed only for loopback addresses and for hosts that an operator has listed. The client limits the
duration of each request and the size of each response.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import time
import weakref
from collections.abc import Mapping, Sequence
from functools import lru_cache
from http.client import HTTPException
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from otel_token_relay.client_credentials import ClientCertificate
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.origin import Origin, is_trustworthy
from otel_token_relay.verification.fetch_failures import FetchCause, FetchFailed, failure, is_lost
from otel_token_relay.verification.http_connections import Connection, IdleConnections, Route, build_connection
from otel_token_relay.verification.proxies import proxy_for
from otel_token_relay.verification.tls_contexts import TlsContexts

__all__ = ["MAX_BODY_BYTES", "FetchCause", "FetchFailed", "HttpClient", "Response", "shared_client"]

MAX_BODY_BYTES: Final = 512 * 1024


class Response(NamedTuple):
    """A complete response. All header names are lowercase."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """A client that sends requests to issuers. This class is thread-safe and can be used after a fork.

    Args:
        ca_file: A PEM file that contains the trusted CA certificates. If this argument is ``None``, the client trusts
            the certificates in ``SSL_CERT_FILE`` or in the system's certificate store.
        plaintext_hosts: The hosts, with optional ports, for which plain HTTP is allowed.
    """

    def __init__(self, *, ca_file: str | None = None, plaintext_hosts: Sequence[str] = ()) -> None:
        self.plaintext_hosts: frozenset[str] = frozenset(plaintext_hosts)
        self._tls = TlsContexts(ca_file)
        self._idle = IdleConnections()
        weakref.finalize(self, self._idle.close)  # also at exit

    def accepts(self, url: object) -> bool:
        """Return whether *url* satisfies the client's security requirements."""
        return isinstance(url, str) and is_trustworthy(url, self.plaintext_hosts)

    def check_url(self, setting: str, url: object) -> str:
        """Return *url* if the client accepts it.

        Raises:
            ConfigurationError: The URL's scheme is not allowed for its host, or different URL parsers might interpret
                the URL differently.
        """
        if not isinstance(url, str) or not self.accepts(url):
            raise ConfigurationError(
                setting, "expected an https URL, or an http URL whose host is loopback or in plaintext_issuers"
            )
        return url

    def fetch(
        self,
        url: str,
        *,
        timeout: float,
        form: bytes | None = None,
        authorization: str | None = None,
        certificate: ClientCertificate | None = None,
    ) -> Response:
        """Send one request and return the complete response. This method blocks, so it must run in a background thread.

        If the server closes a reused connection before sending any part of the response, the client sends the request
        again on a new connection.

        Args:
            url: A URL for which `accepts` returns true.
            timeout: The maximum number of seconds that the whole request can take, excluding the DNS lookup.
            form: The body of a POST request, which is sent as ``application/x-www-form-urlencoded``. If this argument
                is ``None``, the client sends a GET request.
            authorization: The value of the ``Authorization`` header, or ``None`` to omit the header.
            certificate: The TLS client certificate to present to the host. A proxy never receives this certificate.

        Raises:
            FetchFailed: The request failed, or the response exceeds a limit.
        """
        # Use an empty context instead of a copy of the current context. Instrumentation for threads and thread pools
        # might have copied a caller's context, including the token, into this thread.
        return contextvars.Context().run(self._fetch, url, timeout, form, authorization, certificate)

    def close(self) -> None:
        """Close the idle connections. The client can still be used afterward."""
        self._idle.close()

    def _fetch(
        self,
        url: str,
        timeout: float,
        form: bytes | None,
        authorization: str | None,
        certificate: ClientCertificate | None,
    ) -> Response:
        # This import must not be at the top of the file. The imported module imports opentelemetry.propagate, which
        # might currently be importing this package.
        from opentelemetry.instrumentation.utils import suppress_instrumentation

        if timeout <= 0:  # the deadline has already passed
            raise FetchFailed("timed out", "timed_out")
        deadline = time.monotonic() + timeout
        origin = _origin_of(url, self.plaintext_hosts)
        if origin is None:
            raise FetchFailed("the URL is not secure", "not_configured")
        if certificate is not None and origin.scheme != "https":
            raise FetchFailed("a client certificate requires an https URL", "not_configured")
        try:
            route = Route(*origin, proxy_for(origin, os.environ), certificate)
        except ValueError as error:
            raise FetchFailed(str(error), "proxy_refused") from None
        headers = {"Accept": "application/json", "User-Agent": "otel-token-relay"}
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        if authorization is not None:
            headers["Authorization"] = authorization
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        request = _Request("GET" if form is None else "POST", target, form, headers)
        with suppress_instrumentation():
            kept = self._idle.take(route)
            if kept is not None:
                with contextlib.suppress(_ConnectionLost):
                    return self._send(kept, request, deadline)
            return self._send(self._connection(route), request, deadline)

    def _send(self, connection: Connection, request: _Request, deadline: float) -> Response:
        """Send *request* and keep the connection if it can be reused.

        Raises:
            _ConnectionLost: The server closed a reused connection.
            FetchFailed: No usable response was received.
        """
        was_kept, has_begun, is_kept = not connection.is_closed, False, False
        try:
            with connection.until(deadline):
                if not was_kept:
                    connection.connect()
                connection.request(
                    request.method,
                    request.target,
                    body=request.form,
                    headers=request.headers,
                    preload_content=False,
                    decode_content=False,
                )
                connection.acknowledge_at_once()
                response = connection.getresponse()
                has_begun = True
                read = _read(response, deadline)
                # `sock` is None if the connection does not remain open after the response.
                is_kept = read.status == 200 and response.closed and connection.sock is not None
        except FetchFailed:
            raise
        except (OSError, HTTPException, HTTPError, ValueError) as error:
            is_late = time.monotonic() >= deadline
            if was_kept and not has_begun and not is_late and is_lost(error):
                raise _ConnectionLost from None
            raise failure(error, is_late=is_late, is_proxied=connection.route.proxy is not None) from None
        finally:
            if is_kept:
                self._idle.put(connection)
            else:
                connection.discard()
        return read

    def _connection(self, route: Route) -> Connection:
        if route.scheme == "http":
            return build_connection(route)
        tls = self._tls.context(route.certificate)
        return build_connection(route, tls, tls if route.certificate is None else self._tls.context())


class _ConnectionLost(Exception):
    """An error that is raised if the server has closed a connection that was kept open for reuse."""


class _Request(NamedTuple):
    method: str
    target: str
    form: bytes | None
    headers: Mapping[str, str]


@lru_cache(maxsize=256)
def _origin_of(url: str, plaintext_hosts: frozenset[str]) -> Origin | None:
    """Return the URL's origin, or ``None`` if the URL is not secure.

    The result is cached, because the client fetches the same few URLs repeatedly.
    """
    return Origin.parse(url) if is_trustworthy(url, plaintext_hosts) else None


@lru_cache(maxsize=8)
def shared_client(ca_file: str | None = None, plaintext_hosts: tuple[str, ...] = ()) -> HttpClient:
    """Return the process-wide client for these settings."""
    return HttpClient(ca_file=ca_file, plaintext_hosts=plaintext_hosts)


def _read(response: BaseHTTPResponse, deadline: float) -> Response:
    length = response.headers.get("Content-Length", "0")
    if not length.isdigit() or len(length) > 9 or int(length) > MAX_BODY_BYTES:
        raise FetchFailed(f"response larger than {MAX_BODY_BYTES} bytes")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        # The client does not accept compressed responses, because they could expand to any size.
        raise FetchFailed("unexpected Content-Encoding in the response")
    body = b""
    # An empty read indicates the end of the body. If the body is shorter than the Content-Length header specifies,
    # urllib3 raises an exception.
    while len(body) <= MAX_BODY_BYTES and (part := response.read(MAX_BODY_BYTES + 1, decode_content=False)):
        body += part
    if len(body) > MAX_BODY_BYTES:
        raise FetchFailed(f"response larger than {MAX_BODY_BYTES} bytes")
    if time.monotonic() >= deadline:
        raise FetchFailed("timed out", "timed_out")
    return Response(response.status, {name.lower(): value for name, value in response.headers.items()}, body)
