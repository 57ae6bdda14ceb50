"""Why a request to an issuer failed, without any text from outside this process."""

from __future__ import annotations

import errno
import http.client
import pickle
import socket
import ssl

import pytest
from urllib3.exceptions import HTTPError, ProtocolError

from otel_token_relay.verification.fetch_failures import FetchCause, FetchFailed, failure, is_lost

OUTSIDE = "text-from-outside"


def not_trusted(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, OUTSIDE)
    error.verify_code = code
    return error


def tls(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, OUTSIDE)
    error.reason = reason
    return error


def wrapped(cause: Exception) -> ProtocolError:
    error = ProtocolError(OUTSIDE)
    error.__cause__ = cause
    return error


ROWS: list[tuple[Exception, FetchCause, str]] = [
    (TimeoutError(OUTSIDE), "timed_out", "timed out"),
    (not_trusted(10), "certificate_not_trusted", "certificate not trusted: the certificate has expired"),
    (not_trusted(99), "certificate_not_trusted", "certificate not trusted: OpenSSL error code 99"),
    (ssl.SSLEOFError(8, OUTSIDE), "connection_closed", "connection closed during the TLS handshake"),
    (
        tls("TLSV13_ALERT_CERTIFICATE_REQUIRED"),
        "tls_failed",
        "the server does not accept the client certificate, or requires one",
    ),
    (
        tls("WRONG_VERSION_NUMBER"),
        "tls_failed",
        "TLS handshake failed; the server does not use https on this port",
    ),
    (tls("TLSV1_ALERT_INTERNAL_ERROR"), "tls_failed", "TLS handshake failed"),
    (ConnectionRefusedError(errno.ECONNREFUSED, OUTSIDE), "connection_refused", "connection refused"),
    (ConnectionResetError(errno.ECONNRESET, OUTSIDE), "connection_closed", "connection closed without a response"),
    (http.client.RemoteDisconnected(OUTSIDE), "connection_closed", "connection closed without a response"),
    (http.client.IncompleteRead(OUTSIDE.encode()), "connection_closed", "the response is incomplete"),
    (socket.gaierror(socket.EAI_NONAME, OUTSIDE), "host_not_found", "host name not found"),
    (socket.gaierror(socket.EAI_AGAIN, OUTSIDE), "name_server_failed", "the name server does not respond"),
    (OSError(errno.EHOSTUNREACH, OUTSIDE), "network_unreachable", "network unreachable"),
    (OSError(errno.EPERM, OUTSIDE), "connection_closed", "connection failed: EPERM"),
    (OSError(OUTSIDE), "connection_closed", "connection failed: OSError"),
    (http.client.BadStatusLine(OUTSIDE), "bad_response", "the response is not valid HTTP"),
    (HTTPError(OUTSIDE), "bad_response", "the response is not valid HTTP"),
    (wrapped(http.client.IncompleteRead(b"")), "connection_closed", "the response is incomplete"),
]


@pytest.mark.parametrize(("error", "cause", "message"), ROWS, ids=[f"{row[1]}-{i}" for i, row in enumerate(ROWS)])
def test_each_error_has_a_cause(error: Exception, cause: FetchCause, message: str) -> None:
    """The message contains nothing of the error's own text."""
    found = failure(error, is_late=False, is_proxied=False)

    assert (found.cause, str(found)) == (cause, message)
    assert FetchFailed.describe(found) == message


@pytest.mark.parametrize(
    ("error", "cause", "message"),
    [
        (ConnectionRefusedError(OUTSIDE), "connection_refused", "connection refused"),
        (socket.gaierror(socket.EAI_NONAME, OUTSIDE), "host_not_found", "host name not found"),
        (OSError(errno.ENETUNREACH, OUTSIDE), "network_unreachable", "network unreachable"),
    ],
    ids=["refused", "name", "unreachable"],
)
def test_a_proxy_is_named_if_it_is_the_problem(error: Exception, cause: FetchCause, message: str) -> None:
    """Otherwise, an operator would look at the issuer."""
    found = failure(error, is_late=False, is_proxied=True)

    assert (found.cause, str(found)) == (cause, f"{message} (while connecting to the proxy in https_proxy)")


def test_a_proxy_can_refuse_to_connect() -> None:
    """http.client raises an error that quotes the proxy's response."""
    found = failure(OSError(OUTSIDE), is_late=False, is_proxied=True)

    assert (found.cause, str(found)) == ("proxy_refused", "the proxy refused to connect to the host")


def test_a_late_error_is_a_timeout() -> None:
    """At its deadline, a connection is shut down, which causes all kinds of errors."""
    assert failure(ConnectionResetError(), is_late=True, is_proxied=False).cause == "timed_out"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError(), True),
        (BrokenPipeError(), True),
        (ssl.SSLEOFError(), True),
        (ssl.SSLZeroReturnError(), True),
        (TimeoutError(), False),
        (http.client.IncompleteRead(b""), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_a_connection_is_lost_without_a_response(error: Exception, expected: bool) -> None:
    """Only such a request can be sent again on a new connection."""
    assert is_lost(error) is expected


def test_a_failure_can_be_pickled() -> None:
    """An application can run the request in a process pool."""
    copy = pickle.loads(pickle.dumps(FetchFailed("timed out", "timed_out")))

    assert (copy.cause, str(copy)) == ("timed_out", "timed out")


def test_an_unexpected_error_is_described_by_its_class() -> None:
    """Its own text could contain anything."""
    assert FetchFailed.describe(ZeroDivisionError(OUTSIDE)) == "ZeroDivisionError"
