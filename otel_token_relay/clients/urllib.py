"""The hook for the standard library's urllib.request.

``do_open`` runs once for each outgoing request, including redirects. An application can reuse a ``Request``, even in
multiple threads simultaneously. The hook therefore adds the token's header to a copy.

A request's destination depends on the connection. If the connection's class is not defined in http.client, the hook
creates the connection early in order to make the decision, and then uses the same connection for the request.
"""

from __future__ import annotations

import socket
from types import ModuleType
from typing import Any

from otel_token_relay.clients.connections import function_of, is_tcp
from otel_token_relay.clients.headers import lower
from otel_token_relay.clients.retrying import Result, is_repeatable
from otel_token_relay.copying import shallow_copy
from otel_token_relay.origin import Target, origin_of_proxied
from otel_token_relay.patching import Function, Patches
from otel_token_relay.personal_responses import CACHE_CONTROL, NO_STORE, marker
from otel_token_relay.relay import HasHeader, Hop
from otel_token_relay.retries import UNAUTHORIZED
from otel_token_relay.runtime import Runtime
from otel_token_relay.signed_urls import is_signed

# The request, and the class or function that creates its connection.
Call = tuple[Any, Function]


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the request handlers in *module* (``urllib.request``)."""
    relay = runtime.relay
    destinations = Destinations(module)
    own_classes, target_of = destinations.classes, destinations.target_of
    header = relay.settings.header
    replaces = relay.settings.on_conflict == "replace"
    personal = marker(relay.settings.protect_caches, _forbid_storing)

    def with_header(request: Any, value: str) -> Any:
        copy = shallow_copy(request)
        own = dict(request.unredirected_hdrs)
        if replaces:
            own = {key: v for key, v in own.items() if lower(key) != relay.header}
            copy.headers = {key: v for key, v in request.headers.items() if lower(key) != relay.header}
        own[header] = value
        copy.unredirected_hdrs = own
        return copy

    def build(original: Function) -> Function:
        def do_open(self: Any, http_class: Any, req: Any, **http_conn_args: Any) -> Any:
            if http_class not in own_classes:
                http_class = _once(http_class, req, http_conn_args)
            value = relay.decide((req, http_class), target_of, _has_header)
            if value is None:
                return original(self, http_class, req, **http_conn_args)
            req = with_header(req, value)
            # Error trackers capture the local variables of every frame in a traceback. A request's `repr` does not
            # include the headers.
            del value
            return personal(original(self, http_class, req, **http_conn_args))

        return do_open

    def build_retrying(original: Function) -> Function:
        plain = build(original)

        def do_open(self: Any, http_class: Any, req: Any, **http_conn_args: Any) -> Any:
            if http_class not in own_classes:  # a retry requires one of http.client's own connection classes
                return plain(self, http_class, req, **http_conn_args)
            hop = relay.decide((req, http_class), target_of, _has_header, is_final=False)
            if hop is None:
                return original(self, http_class, req, **http_conn_args)
            req = _frozen(req)

            def send(hop: Hop) -> Any:
                if not hop.confirm():
                    return original(self, http_class, req, **http_conn_args)
                return personal(original(self, http_class, with_header(req, hop.reveal()), **http_conn_args))

            response = send(hop)
            if response.status != UNAUTHORIZED or not hop.may_repeat(req.get_method()) or not is_repeatable(req.data):
                return response
            try:
                again = hop.again(response.headers.get_all("www-authenticate", ()))
            except BaseException:
                response.close()
                raise
            if again is None:
                return response
            with Result(again) as result:
                response.close()  # urllib opens a new connection for each request
                response = send(again)
                result.status = response.status
            return response

        return do_open

    patches.wrap(module.AbstractHTTPHandler, "do_open", build_retrying if relay.policy.has_retry else build)


def _forbid_storing(response: Any) -> None:
    del response.headers[CACHE_CONTROL]  # deletes every occurrence of the header
    response.headers[CACHE_CONTROL] = NO_STORE


def _frozen(request: Any) -> Any:
    """Return a copy of a request so that other threads cannot change the URL or the headers before a retry."""
    copy = shallow_copy(request)
    copy.headers, copy.unredirected_hdrs = dict(request.headers), dict(request.unredirected_hdrs)
    return copy


def _once(http_class: Function, request: Any, arguments: dict[str, Any]) -> Function:
    """Return a function that creates a connection on the first call and returns the same connection on later calls."""
    made: list[Any] = []

    def connection(*_: Any, **__: Any) -> Any:
        if not made:
            made.append(http_class(request.host, timeout=request.timeout, **arguments))
        return made[0]

    return connection


class Destinations:
    """Determine requests' destinations. Connections that are opened by code outside http.client are rejected.

    Attributes:
        classes: The connection classes in http.client. Only the ``connect`` method of these classes needs to be
            checked.
    """

    def __init__(self, module: ModuleType) -> None:
        client = module.http.client
        self.classes: frozenset[Any] = frozenset({client.HTTPConnection, client.HTTPSConnection})
        self._scheme_of_connect = {
            function_of(client.HTTPConnection, "connect"): "http",
            function_of(client.HTTPSConnection, "connect"): "https",
        }

    def target_of(self, call: Call) -> Target:
        """Return a request's destination.

        Raises:
            ValueError: The request does not have exactly one destination.
            KeyError: Code outside http.client opens the connection.
        """
        request, http_class = call
        connect = getattr(http_class, "connect", None)
        if connect is not None:
            scheme = self._scheme_of_connect[connect]
            host, port = _split(request.host)
        else:
            connection = http_class()
            scheme = self._scheme_of_connect[connection.connect.__func__]
            if connection._create_connection is not socket.create_connection:
                raise ValueError("the connection does not use http.client's own connect function")
            if connection.sock is not None and not is_tcp(connection.sock):
                raise ValueError("the connection is not a TCP connection")
            host, port = connection.host, connection.port
        target = request.selector
        if request._tunnel_host:
            # A tunnel does not imply TLS, because a request keeps its tunnel if the URL is changed.
            host, port = _split(request._tunnel_host)
        elif request.has_proxy():
            if len(request.get_method().split()) != 1:
                raise ValueError("the request's method contains a request target")
            return origin_of_proxied(target)
        if target and not target.startswith("/"):
            raise ValueError("the request target is not a path")
        # Python's sockets encode hostnames according to IDNA 2003.
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
        return scheme, host, port


def _split(authority: str) -> tuple[str, int | None]:
    """Split an authority into a host and a port, as http.client does."""
    host, separator, port = authority.rpartition(":")
    if not separator or port.endswith("]"):
        host, port = authority, ""
    return host, int(port) if port else None


def _has_header(call: Call, name: str) -> HasHeader:
    request, length = call[0], len(name)
    if "?" in request.selector and is_signed(request.selector):
        return "fixed"
    keys = [*request.headers, *request.unredirected_hdrs]
    return name in [lower(key) for key in keys if len(key) == length]
