"""Check whether a connection goes to the host in the URL.

For a Unix socket or a pipe, the host in the URL is only a placeholder. Adapters therefore check the connection:
an open socket must be a TCP socket, and a connection that is not open yet must be one that the library's own
code opens.
"""

from __future__ import annotations

import socket
from typing import Any, Final, cast

from otel_token_relay.origin import normalize_host
from otel_token_relay.patching import Function, layers_of

# A plain number, because comparing an enum member would take longer.
TCP: Final = int(socket.IPPROTO_TCP)
_IP_FAMILIES: Final = frozenset({socket.AF_INET, socket.AF_INET6})


def is_tcp(opened: Any) -> bool:
    """Return whether *opened* is a TCP socket, or a library's wrapper around one."""
    # Reading `proto` takes a tenth as long as reading `family`, and only an IP socket's `proto` can be TCP. For a
    # socket created without a protocol, `proto` is 0.
    try:
        if opened.proto == TCP:
            return True
    except AttributeError:
        pass
    family = getattr(opened, "family", None)
    if family is None and hasattr(opened, "socket"):  # urllib3's wrappers for TLS within TLS and pyOpenSSL
        return is_tcp(opened.socket)
    return family in _IP_FAMILIES


def is_ip_peer(peername: Any) -> bool:
    """Return whether the ``peername`` of an asyncio transport is an IP address with a port.

    The ``peername`` is a path or an empty string for a Unix socket, ``None`` for a pipe, and a pair of numbers for a VM
    socket.
    """
    return type(peername) is tuple and (len(peername) == 4 or (len(peername) == 2 and "." in str(peername[0])))


def function_of(owner: type, name: str) -> Function:
    """Return a method's function without any instrumentation proxies around it."""
    *_, (_, function) = layers_of(vars(owner)[name])
    return cast("Function", function)


def check_tls_name(name: Any, host: str) -> None:
    """Check a TLS server name that was set separately from the URL.

    The server's certificate is checked against this name, and proxies may use this name to route the request.

    Raises:
        ValueError: *name* does not match *host*.
    """
    expected = normalize_host(host)
    if expected is None or not isinstance(name, str) or normalize_host(name) != expected:
        raise ValueError("the TLS server name does not match the URL's host")
