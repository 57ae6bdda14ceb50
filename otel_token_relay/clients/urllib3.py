"""The hook for urllib3 and for libraries that use urllib3's connection pools, such as requests and botocore.

``_make_request`` receives the headers and runs once for each attempt, including retries and redirects. A hook in
``urlopen`` would not work, because ``urlopen`` calls itself for each retry. The hook would then mistake the header from
the first attempt for the application's own header.

The destination is read from the connection, not from the pool, because even a pool for a Unix socket has a host.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from http.client import HTTPResponse
from types import ModuleType
from typing import Any

from otel_token_relay.clients.connections import TCP, check_tls_name, function_of, is_tcp
from otel_token_relay.clients.headers import lower
from otel_token_relay.clients.retrying import Result, check_target, is_repeatable
from otel_token_relay.origin import Origin, Target, origin_of_proxied
from otel_token_relay.patching import Function, Patches
from otel_token_relay.personal_responses import mark_urllib3, marker
from otel_token_relay.relay import HasHeader, Hop
from otel_token_relay.retries import DISCARD_SECONDS, MAX_DISCARDED, UNAUTHORIZED
from otel_token_relay.runtime import Runtime
from otel_token_relay.signed_urls import is_signed


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the connection pools in *module* (``urllib3.connectionpool``)."""
    relay = runtime.relay
    target_of = destinations(module)
    # In urllib3 1.26, *module* does not contain this class.
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

    def build_retrying(original: Function) -> Function:
        def _make_request(*args: Any, **kwargs: Any) -> Any:
            if len(args) != 4:
                return original(*args, **kwargs)
            headers = kwargs.get("headers")
            hop = relay.decide((args, headers), target_of, _has_header, is_final=False)
            if hop is None:
                return original(*args, **kwargs)

            def send(hop: Hop) -> Any:
                if not hop.confirm():
                    return original(*args, **kwargs)
                passed = [{**kwargs, "headers": with_header(headers, hop.reveal())}]
                return personal(original(*args, **passed.pop()))

            response = send(hop)
            if (
                response.status != UNAUTHORIZED
                or not hop.may_repeat(args[2])
                or not _can_repeat(args[1], response, kwargs)
            ):
                return response
            again = hop.again(response.headers.getlist("www-authenticate"))
            if again is None:
                return response
            with Result(again) as result:
                _discard(args[1], response)
                check_target(again, target_of, (args, headers))
                response = send(again)
                result.status = response.status
            return response

        return _make_request

    def build(original: Function) -> Function:
        # The wrapper forwards its arguments without naming them, because named parameters would double the cost of the
        # call.
        def _make_request(*args: Any, **kwargs: Any) -> Any:
            if len(args) == 4:  # self, conn, method, and url, which every urllib3 version passes by position
                headers = kwargs.get("headers")
                value = relay.decide((args, headers), target_of, _has_header)
                if value is not None:
                    # Error trackers capture the local variables of every frame in a traceback. This frame's variables
                    # must not contain the header, although the variables in urllib3's own frames do.
                    passed = [{**kwargs, "headers": with_header(headers, value)}]
                    del value
                    return personal(original(*args, **passed.pop()))
            return original(*args, **kwargs)

        return _make_request

    # Avoid the cost of retries if no entry has ;retry=.
    patches.wrap(module.HTTPConnectionPool, "_make_request", build_retrying if relay.policy.has_retry else build)


def destinations(module: ModuleType) -> Callable[[tuple[Any, Any]], Target]:
    """Return a function that determines a request's destination.

    The function rejects connections that are opened by code outside urllib3.
    """
    # These collections contain only urllib3's functions, so they do not keep an application's classes alive.
    scheme_of_connect = {
        function_of(module.HTTPConnection, "connect"): "http",
        function_of(module.HTTPSConnection, "connect"): "https",
    }
    opens_socket = {function_of(module.HTTPConnection, "_new_conn")}

    def learn(kind: Any) -> str:
        """Add the functions from a SOCKS or HTTP/2 connection class, and return the class's scheme."""
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
            ValueError: The request does not have exactly one destination.
            AttributeError: The connection is not a urllib3 connection.
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
            raise ValueError("the connection does not use urllib3's own connect functions")
        opened = connection.sock
        # The `proto` check repeats the first check in `is_tcp` to avoid a function call.
        if opened is not None and getattr(opened, "proto", None) != TCP and not is_tcp(opened):
            raise ValueError("the connection is not a TCP connection")
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
    """Return the destination of a request that uses a proxy or whose target is a complete URL."""
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


def _can_repeat(connection: Any, response: Any, kwargs: dict[str, Any]) -> bool:
    """Return whether a request can be sent again on the same connection."""
    if not is_repeatable(kwargs.get("body")) or type(getattr(response, "_original_response", None)) is not HTTPResponse:
        return False
    # urllib3 would reopen a closed tunnel without sending the CONNECT request to the proxy.
    return connection._tunnel_host is None or _is_short(connection, response._original_response)


def _is_short(connection: Any, raw: HTTPResponse) -> bool:
    return connection.sock is not None and raw.length is not None and raw.length <= MAX_DISCARDED


def _discard(connection: Any, response: Any) -> None:
    """Drain a response so that its connection can be reused.

    If the rest of the response is too long or arrives too slowly, close the connection. urllib3 then reopens the
    connection for the retry.
    """
    # The response must not return the connection to the pool or close the connection while the retry is using it.
    response._connection = None
    raw, opened = response._original_response, connection.sock
    try:
        if opened is None:
            return
        timeout = opened.gettimeout()
        opened.settimeout(DISCARD_SECONDS)
        _read(raw)
        opened.settimeout(timeout)
        # Tunnels are not checked, because TLS messages can make a connection readable at any time, and urllib3 cannot
        # reopen a tunnel.
        if not raw.isclosed() or (connection._tunnel_host is None and not connection.is_connected):
            connection.close()
    except Exception:  # the connection is no longer usable
        connection.close()
    finally:
        response.close()


def _read(raw: HTTPResponse) -> None:
    """Read the rest of a response, up to a maximum size and duration."""
    deadline, size = time.monotonic() + DISCARD_SECONDS, 0
    while not raw.isclosed() and size <= MAX_DISCARDED and time.monotonic() < deadline:
        chunk = raw.read1(MAX_DISCARDED)
        if not chunk:
            raw.read()  # lets http.client detect the end of the response
            return
        size += len(chunk)


def _owner(kind: type, name: str) -> type:
    return next(owner for owner in kind.__mro__ if name in vars(owner))


def _has_header(call: tuple[Any, Any], name: str) -> HasHeader:
    url = call[0][3]
    if "?" in url and is_signed(url):
        return "fixed"
    keys, length = call[1], len(name)
    if type(keys) is not dict:
        if _is_requests(keys):
            return name in keys._store or name.encode("latin-1") in keys._store
        keys = keys or ()
    return name in [lower(key) for key in keys if len(key) == length]


def _copy(headers: Any, header: str, multiple: Function) -> Any:
    """Return a mutable copy of *headers*. The *multiple* class supports repeated header names."""
    if _is_requests(headers):
        return dict(headers._store.values())
    try:
        copy = headers.copy()
        copy[header] = ""
    except Exception:  # some mappings have no `copy` method or return an immutable copy
        return multiple(headers.items())
    return copy


def _is_requests(headers: Any) -> bool:
    """Return whether *headers* is the ``requests`` library's headers mapping.

    The mapping's ``_store`` attribute maps lowercase names to pairs of a name and a value. Reading this attribute is
    much faster than calling the public methods.
    """
    return type(headers).__module__ == "requests.structures"
