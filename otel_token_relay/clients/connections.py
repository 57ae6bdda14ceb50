"""Check whether a client's connection goes to the host in the URL.

If a client uses a Unix socket or a pipe, the host in the URL is only a placeholder. The hooks therefore check the
connection. If the socket is already open, it must be a TCP socket. If the socket is not open yet, the library's own
code must open it.
"""

from __future__ import annotations

import socket
from typing import Any, Final, cast

from otel_token_relay.origin import normalize_host
from otel_token_relay.patching import Function, layers_of

# A plain integer is faster to compare than an enum member.
TCP: Final = int(socket.IPPROTO_TCP)
_IP_FAMILIES: Final = frozenset({socket.AF_INET, socket.AF_INET6})


def is_tcp(opened: Any) -> bool:
    """Return whether *opened* is a TCP socket or a library's wrapper around a TCP socket."""
    # Reading `proto` is ten times faster than reading `family`, and only an IP socket can have the TCP protocol. If a
    # socket was created without a protocol, its `proto` is 0.
    try:
        if opened.proto == TCP:
            return True
    except AttributeError:
        pass
    family = getattr(opened, "family", None)
    if family is None and hasattr(opened, "socket"):  # urllib3's wrappers for TLS in TLS and for pyOpenSSL
        return is_tcp(opened.socket)
    return family in _IP_FAMILIES


def is_ip_peer(peername: Any) -> bool:
    """Return whether an asyncio transport's ``peername`` is an IP address with a port.

    The ``peername`` is a path or an empty string for a Unix socket, ``None`` for a pipe, and a pair of numbers for a VM
    socket.
    """
    return type(peername) is tuple and (len(peername) == 4 or (len(peername) == 2 and "." in str(peername[0])))


def function_of(owner: type, name: str) -> Function:
    """Return a method's underlying function, without the proxies that instrumentation libraries add."""
    *_, (_, function) = layers_of(vars(owner)[name])
    return cast("Function", function)


def check_tls_name(name: Any, host: str) -> None:
    """Check a TLS server name that the application set separately from the URL.

    The client checks the server's certificate against this name, and proxies can use the name to route the request.

    Raises:
        ValueError: *name* does not match *host*.
    """
    expected = normalize_host(host)
    if expected is None or not isinstance(name, str) or normalize_host(name) != expected:
        raise ValueError("the TLS server name does not match the URL's host")
