"""Describe failed requests to issuers without quoting any text from external sources."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
from typing import Final, Literal

from urllib3.exceptions import HTTPError

FetchCause = Literal[
    "connection_refused",
    "host_not_found",  # the host name does not exist
    "name_server_failed",
    "network_unreachable",
    "proxy_refused",
    "certificate_not_trusted",
    "tls_failed",
    "timed_out",
    "connection_closed",  # the connection was closed before the complete response arrived
    "bad_response",  # a response arrived but cannot be used
    "not_configured",  # a setting, or the file that it specifies, cannot be used
]

# These error codes are defined in OpenSSL's x509_vfy.h. OpenSSL's own messages can quote the certificate.
_CERTIFICATE_PROBLEMS: Final = {
    9: "the certificate is not valid yet",
    10: "the certificate has expired",
    18: "the certificate is self-signed",
    19: "the certificate authority is not trusted",
    20: "the certificate authority is not trusted",
    21: "the certificate authority is not trusted",
    62: "the certificate is for a different host name",
    64: "the certificate is for a different IP address",
}

# OpenSSL's names for alerts about the client certificate (RFC 8446, section 6.2), without the prefix for the TLS
# version.
_REFUSALS: Final = frozenset(
    {
        "BAD_CERTIFICATE",
        "CERTIFICATE_EXPIRED",
        "CERTIFICATE_REQUIRED",
        "CERTIFICATE_REVOKED",
        "CERTIFICATE_UNKNOWN",
        "UNKNOWN_CA",
        "UNSUPPORTED_CERTIFICATE",
    }
)


class FetchFailed(Exception):
    """An error that is raised if no usable response arrives in time. The message does not quote the response.

    Attributes:
        cause: The kind of failure.
    """

    def __init__(self, message: str, cause: FetchCause = "bad_response") -> None:
        super().__init__(message, cause)
        self.cause: FetchCause = cause

    def __str__(self) -> str:
        return str(self.args[0])

    @staticmethod
    def describe(error: Exception) -> str:
        """Return a description of *error* that is safe to log. For an unexpected error, return its class name."""
        return str(error) if isinstance(error, FetchFailed) else type(error).__name__


def is_lost(error: Exception) -> bool:
    """Return whether *error* indicates that the server closed the connection."""
    return isinstance(error, (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError))


def failure(error: Exception, *, is_late: bool, is_proxied: bool) -> FetchFailed:
    """Convert a connection error to a `FetchFailed` exception.

    Args:
        error: An error from urllib3, ``http.client``, or a socket.
        is_late: Whether the deadline has passed.
        is_proxied: Whether the connection uses a proxy.
    """
    if isinstance(error, HTTPError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # urllib3 wraps errors that occur while the body is being read
    if is_late or isinstance(error, TimeoutError):
        return FetchFailed("timed out", "timed_out")
    if isinstance(error, ssl.SSLCertVerificationError):
        problem = _CERTIFICATE_PROBLEMS.get(error.verify_code, f"OpenSSL error code {error.verify_code}")
        return FetchFailed(f"certificate not trusted: {problem}", "certificate_not_trusted")
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return FetchFailed("connection closed during the TLS handshake", "connection_closed")
    if isinstance(error, ssl.SSLError):
        if (error.reason or "").partition("_ALERT_")[2] in _REFUSALS:  # the server sent the alert
            return FetchFailed("the server does not accept the client certificate, or requires one", "tls_failed")
        speaks_http = error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")
        hint = "; the server does not use https on this port" if speaks_http else ""
        return FetchFailed(f"TLS handshake failed{hint}", "tls_failed")
    if isinstance(error, ConnectionError):  # RemoteDisconnected is also an HTTPException
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
    if is_proxied and error.errno is None:  # http.client raises a plain OSError that contains text from the proxy
        return FetchFailed("the proxy refused to connect to the host", "proxy_refused")
    if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN):
        return _connection_failure("network unreachable", "network_unreachable", is_proxied)
    return FetchFailed(f"connection failed: {errno.errorcode.get(error.errno or 0, 'OSError')}", "connection_closed")


def _connection_failure(text: str, cause: FetchCause, is_proxied: bool) -> FetchFailed:
    return FetchFailed(f"{text} (while connecting to the proxy in https_proxy)" if is_proxied else text, cause)
