"""The hook for urllib3, and thereby for requests, botocore and other libraries that use its pools.

``_make_request`` runs once for each attempt, below retries and redirects, and the pool passes the headers to it.
Hooking ``urlopen`` would not work: it calls itself for a retry, so our header from the first attempt would be
mistaken for the caller's.

The connection, not the pool, determines where a request goes: even a pool for a Unix socket has a host.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from otel_token_relay.clients.connections import TCP, check_tls_name, function_of, is_tcp
from otel_token_relay.clients.headers import lower
from otel_token_relay.origin import Origin, Target, origin_of_proxied
from otel_token_relay.patching import Function, Patches
from otel_token_relay.personal_responses import mark_urllib3, marker
from otel_token_relay.runtime import Runtime


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the pools of *module*, which is ``urllib3.connectionpool``."""
    relay = runtime.relay
    target_of = destinations(module)
    # urllib3 1.26 does not import it into the module of the pools.
    multiple = sys.modules["urllib3._collections"].HTTPHeaderDict
    header = relay.settings.header
    replaces = relay.settings.on_conflict == "replace"
    personal = marker(relay.settings.protect_caches, mark_urllib3)

    def with_header(headers: Any, value: str) -> Any:
        if type(headers) is dict:
            copy = headers.copy()
        elif headers is None:
            return {header: value}
        else:
            copy = _copy(headers, header, multiple)
        if replaces:
            for key in [key for key in copy if lower(key) == relay.header]:
                del copy[key]
        copy[header] = value
        return copy

    def build(original: Function) -> Function:
        # The arguments are passed on unchanged: naming them would double the cost of the call.
        def _make_request(*args: Any, **kwargs: Any) -> Any:
            if len(args) == 4:  # self, conn, method, url: every urllib3 release passes these four
                headers = kwargs.get("headers")
                value = relay.decide((args, headers), target_of, _has_header)
                if value is not None:
                    # Error trackers send the local variables of every frame that an exception passes through. The
                    # header must not be in a variable of this frame; it is in variables of urllib3's own frames.
                    passed = [{**kwargs, "headers": with_header(headers, value)}]
                    del value
                    return personal(original(*args, **passed.pop()))
            return original(*args, **kwargs)

        return _make_request

    patches.wrap(module.HTTPConnectionPool, "_make_request", build)


def destinations(module: ModuleType) -> Callable[[tuple[Any, Any]], Target]:
    """Return a function that determines where a request goes. Only urllib3's own code may open the connection."""
    # These contain only urllib3's functions, so that an application's classes are not kept alive.
    scheme_of_connect = {
        function_of(module.HTTPConnection, "connect"): "http",
        function_of(module.HTTPSConnection, "connect"): "https",
    }
    opens_socket = {function_of(module.HTTPConnection, "_new_conn")}

    def learn(kind: Any) -> str:
        """Add the functions of a urllib3 module that was imported later, for SOCKS or HTTP/2; return the scheme."""
        connect, new_conn = (function_of(_owner(kind, name), name) for name in ("connect", "_new_conn"))
        for function in (connect, new_conn):
            if not function.__globals__["__name__"].startswith("urllib3."):
                raise ValueError("the connection is not opened by urllib3")
        opens_socket.add(new_conn)
        scheme = "https" if issubclass(_owner(kind, "connect"), module.HTTPSConnection) else "http"
        scheme_of_connect[connect] = scheme
        return scheme

    def target_of(call: tuple[Any, Any]) -> Target:
        """Return a request's destination, given the positional arguments of ``_make_request`` and the headers.

        Raises:
            ValueError: The request has no destination, or more than one.
            AttributeError: The connection is not one of urllib3's.
        """
        _, connection, _, url = call[0]
        kind = type(connection)
        try:
            scheme = scheme_of_connect[kind.connect]
        except KeyError:
            scheme = learn(kind)
        if kind._new_conn not in opens_socket:
            learn(kind)
        attributes = connection.__dict__
        if "connect" in attributes or "_new_conn" in attributes:
            raise ValueError("the connection replaces a function with which urllib3 connects")
        opened = connection.sock
        # The second condition repeats the first check in `is_tcp` to save a call.
        if opened is not None and getattr(opened, "proto", None) != TCP and not is_tcp(opened):
            raise ValueError("not a TCP connection")
        tunnel = connection._tunnel_host
        own: Target
        if tunnel is None:
            own = scheme, connection._dns_host, connection.port
        else:
            own = scheme, tunnel, connection._tunnel_port
        if scheme == "https" and connection.server_hostname is not None:
            check_tls_name(connection.server_hostname, own[1])
        if connection.proxy is None and url.startswith("/"):
            return own
        return _target_of_proxied(own, connection, url)

    return target_of


def _target_of_proxied(own: Target, connection: Any, url: str) -> Target:
    """Return the destination of a request that uses a proxy or has a complete URL as its target."""
    proxy = connection.proxy
    if url.startswith("/"):
        if connection._tunnel_host is None:
            raise ValueError("expected a complete URL as the target for a forward proxy")
        return own
    # A forward proxy reads the destination from the URL; a tunnel ends at the connection's destination.
    destination = origin_of_proxied(url)
    is_proxys = proxy is not None and Origin.of(*own) == Origin.of(proxy.scheme, proxy.host, proxy.port)
    if not is_proxys and destination != Origin.of(*own):
        raise ValueError("the connection and the URL have different destinations")
    return destination


def _owner(kind: type, name: str) -> type:
    return next(owner for owner in kind.__mro__ if name in vars(owner))


def _has_header(call: tuple[Any, Any], name: str) -> bool:
    keys, length = call[1], len(name)
    if type(keys) is not dict:
        if _is_requests(keys):
            return name in keys._store or name.encode("latin-1") in keys._store
        keys = keys or ()
    return name in [lower(key) for key in keys if len(key) == length]


def _copy(headers: Any, header: str, multiple: Function) -> Any:
    """Return a mutable copy of *headers*. *multiple* is a class that keeps repeated names."""
    if _is_requests(headers):
        return dict(headers._store.values())
    try:
        copy = headers.copy()
        copy[header] = ""
    except Exception:  # some mappings have no `copy`, or it returns an immutable mapping
        return multiple(headers.items())
    return copy


def _is_requests(headers: Any) -> bool:
    """Return whether *headers* is an object of the library named requests.

    Its ``_store`` maps lower-case names to (name, value) pairs. Reading ``_store`` takes a fraction of the time
    that the public methods take.
    """
    return type(headers).__module__ == "requests.structures"
