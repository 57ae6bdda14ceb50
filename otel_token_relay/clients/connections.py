"""What a connection reaches: the host of the URL by TCP, or something that only borrows the URL's host.

A client that speaks HTTP over a Unix socket, a pipe or another program has URLs, too, with a placeholder
for a host. So an adapter looks at the connection: an open socket shows its family, and for one that is
still to be opened, the code that opens it must be the library's own.
"""

from __future__ import annotations

import socket
from typing import Any, Final, cast

from otel_token_relay.origin import normalize_host
from otel_token_relay.patching import Function, Proxy

TCP: Final = int(socket.IPPROTO_TCP)
_IP_FAMILIES: Final = frozenset({socket.AF_INET, socket.AF_INET6})


def is_tcp(opened: Any) -> bool:
    """Return whether *opened*, a socket or an object that a library wraps around one, is a TCP connection."""
    # Only sockets of the IP families have this protocol. `family` makes an enum member and costs ten times as
    # much, but a socket that was opened without a protocol shows 0 here.
    try:
        if opened.proto == TCP:
            return True
    except AttributeError:
        pass
    family = getattr(opened, "family", None)
    if family is None and hasattr(opened, "socket"):  # urllib3's, for TLS within TLS and for pyOpenSSL
        return is_tcp(opened.socket)
    return family in _IP_FAMILIES


def is_ip_peer(peername: Any) -> bool:
    """Return whether the ``peername`` of an asyncio transport is an IP address with a port.

    That of a Unix socket is a path or empty, a pipe has none, and a VM socket has two numbers.
    """
    return type(peername) is tuple and (len(peername) == 4 or (len(peername) == 2 and "." in str(peername[0])))


def function_of(owner: type, name: str) -> Function:
    """Return the function of a method, without the proxies of instrumentation around it."""
    function: Any = vars(owner)[name]
    while isinstance(function, Proxy):
        function = function.__wrapped__
    return cast("Function", function)


def check_tls_name(name: Any, host: str) -> None:
    """Check the name that TLS asks for where it is given apart from the URL.

    The server proves to have this name, and a proxy on the way may route by it.

    Raises:
        ValueError: It is not *host*.
    """
    expected = normalize_host(host)
    if expected is None or not isinstance(name, str) or normalize_host(name) != expected:
        raise ValueError("TLS asks for another name than the URL has")
