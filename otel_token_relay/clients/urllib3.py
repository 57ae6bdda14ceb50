"""The hook for urllib3, and therefore for requests, botocore, and other libraries that use its pools.

``_make_request`` runs once for each attempt, below retries and redirects, and the pool passes the headers to it.
Hooking ``urlopen`` would not work: it calls itself for a retry, so our header from the first attempt would be
mistaken for the caller's.

The connection, not the pool, determines where a request goes: even a pool for a Unix socket has a host.
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
    """Hook the pools in *module*, which is ``urllib3.connectionpool``."""
    relay = runtime.relay
    target_of = destinations(module)
    # urllib3 1.26 does not import this class into the module that defines the pools.
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
        # The arguments are passed on unchanged: naming them would double the cost of the call.
        def _make_request(*args: Any, **kwargs: Any) -> Any:
            if len(args) == 4:  # self, conn, method, url: every urllib3 release passes these four
                headers = kwargs.get("headers")
                value = relay.decide((args, headers), target_of, _has_header)
                if value is not None:
                    # Error trackers send the local variables of every frame that an exception passes through. The
                    # header must not be in any of this frame's variables; it is in the variables of urllib3's own
                    # frames.
                    passed = [{**kwargs, "headers": with_header(headers, value)}]
                    del value
                    return personal(original(*args, **passed.pop()))
            return original(*args, **kwargs)

        return _make_request

    # Hops must not bear the cost of retries if no entry has ;retry=.
    patches.wrap(module.HTTPConnectionPool, "_make_request", build_retrying if relay.policy.has_retry else build)


def destinations(module: ModuleType) -> Callable[[tuple[Any, Any]], Target]:
    """Return a function that determines where a request goes. Only urllib3's own code may open the connection."""
    # These collections contain only urllib3's functions, so that an application's classes are not kept alive.
    scheme_of_connect = {
        function_of(module.HTTPConnection, "connect"): "http",
        function_of(module.HTTPSConnection, "connect"): "https",
    }
    opens_socket = {function_of(module.HTTPConnection, "_new_conn")}

    def learn(kind: Any) -> str:
        """Add the functions of a urllib3 module that was imported later (for SOCKS or HTTP/2); return the scheme."""
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


def _can_repeat(connection: Any, response: Any, kwargs: dict[str, Any]) -> bool:
    """Return whether a request can be sent once more on its connection."""
    if not is_repeatable(kwargs.get("body")) or type(getattr(response, "_original_response", None)) is not HTTPResponse:
        return False
    # A closed tunnel would be reopened without the CONNECT request to the proxy.
    return connection._tunnel_host is None or _is_short(connection, response._original_response)


def _is_short(connection: Any, raw: HTTPResponse) -> bool:
    return connection.sock is not None and raw.length is not None and raw.length <= MAX_DISCARDED


def _discard(connection: Any, response: Any) -> None:
    """Read the rest of a response if it is short; otherwise, close the connection, which urllib3 then reopens."""
    # Otherwise, the response would return the connection to the pool or close it while the second request is using it.
    response._connection = None
    raw, opened = response._original_response, connection.sock
    try:
        if opened is None:
            return
        timeout = opened.gettimeout()
        opened.settimeout(DISCARD_SECONDS)
        _read(raw)
        opened.settimeout(timeout)
        # A tunnel is not checked here: TLS can make a connection readable at any time, and a tunnel could not be
        # reopened.
        if not raw.isclosed() or (connection._tunnel_host is None and not connection.is_connected):
            connection.close()
    except Exception:  # the connection is no longer usable
        connection.close()
    finally:
        response.close()


def _read(raw: HTTPResponse) -> None:
    """Read the rest of a response until it is too long, or has taken too long."""
    deadline, size = time.monotonic() + DISCARD_SECONDS, 0
    while not raw.isclosed() and size <= MAX_DISCARDED and time.monotonic() < deadline:
        chunk = raw.read1(MAX_DISCARDED)
        if not chunk:
            raw.read()  # at the end; http.client notices it only now
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
    """Return a mutable copy of *headers*. *multiple* is a class that keeps repeated names."""
    if _is_requests(headers):
        return dict(headers._store.values())
    try:
        copy = headers.copy()
        copy[header] = ""
    except Exception:  # some mappings have no `copy` method, or theirs returns an immutable mapping
        return multiple(headers.items())
    return copy


def _is_requests(headers: Any) -> bool:
    """Return whether *headers* is an object from the ``requests`` library.

    Its ``_store`` maps lowercase names to (name, value) pairs. Reading ``_store`` takes a fraction of the time that the
    public methods take.
    """
    return type(headers).__module__ == "requests.structures"
