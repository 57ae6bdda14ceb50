"""The hook for aiohttp's client.

``ClientRequest.send`` runs once for each outgoing request, including redirects and WebSocket handshakes.
The request belongs to the session, and middleware may send it twice at the same time. Each ``send`` therefore runs
on a twin that shares the request's state and has its own headers. Responses and errors expose these headers, so the
added header is removed once they have been written. A token for the destination is obtained before the connection is.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, Final

from otel_token_relay.clients.connections import check_tls_name, is_ip_peer
from otel_token_relay.origin import Target, origin_of_proxied
from otel_token_relay.patching import Function, Patches
from otel_token_relay.personal_responses import CACHE_CONTROL, MARK, NO_STORE
from otel_token_relay.relay import Exchange
from otel_token_relay.runtime import Runtime


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the requests of *module*, which is ``aiohttp.client_reqrep``."""
    relay = runtime.relay
    # multidict converts a name of this type to lower case only once.
    name = type(module.hdrs.AUTHORIZATION)(relay.settings.header)
    replaces = relay.settings.on_conflict == "replace"

    @functools.lru_cache(maxsize=16)
    def twin_class(kind: Any) -> Any:
        # A slot takes precedence over the instance's dictionary, which the twin shares with its request.
        slots = {"__slots__": ("_token_relay_covers", "headers"), "__module__": kind.__module__}
        return type(kind)(kind.__name__, (kind,), slots)

    def target_of(call: tuple[Any, Any]) -> Target:
        kind: Any = type(call[0])
        twin_class(kind)  # if the application's class cannot be subclassed, the request gets no token
        return _target_of(call)

    def build_send(original: Function) -> Function:
        async def send(self: Any, conn: Any) -> Any:
            # A CONNECT request goes to the proxy in clear text.
            value = (
                None
                if self.method == "CONNECT"
                else relay.decide((self, conn), target_of, _has_header, may_block=False)
            )
            if isinstance(value, Exchange):
                value = await value.run_async()
            if value is None:
                return await original(self, conn)
            kind: Any = type(self)
            twin = object.__new__(twin_class(kind))
            twin.__dict__ = self.__dict__
            # Error trackers send the local variables of every frame that an exception passes through, or that is being
            # executed. Neither the value nor the headers may be among them; an aiohttp request shows no headers.
            twin.headers = self.headers.copy()
            twin._token_relay_covers = twin.headers.getall(name, []) if replaces else []
            twin.headers[name] = value
            del value
            try:
                response = await original(twin, conn)
                setattr(response, MARK, ())
                return response
            finally:
                _settle(self.headers, twin, name)

        return send

    def build_trace(original: Function) -> Function:
        def _on_headers_request_sent(self: Any, method: str, url: Any, headers: Any) -> Any:
            # Tracing callbacks are the application's own telemetry: they see the headers that the application set.
            covered = getattr(self, "_token_relay_covers", None)
            if covered is not None:
                headers = headers.copy()
                _restore(headers, name, covered)
            return original(self, method, url, headers)

        return _on_headers_request_sent

    patches.wrap(module.ClientRequest, "send", build_send)
    patches.wrap(module.ClientRequest, "_on_headers_request_sent", build_trace)


def patch_responses(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the responses of *module*, which is ``aiohttp.client_reqrep``: no cache may store a personal one."""
    if not runtime.relay.settings.protect_caches:
        return
    name = type(module.hdrs.AUTHORIZATION)(CACHE_CONTROL)

    def build(original: Function) -> Function:
        async def start(self: Any, connection: Any) -> Any:
            started = await original(self, connection)
            if getattr(self, MARK, None) is not None:
                setattr(self, MARK, (self._headers, self._raw_headers))
                headers = self._headers.copy()
                headers[name] = NO_STORE
                others = (line for line in self._raw_headers if line[0].lower() != b"cache-control")
                show_headers(self, module.CIMultiDictProxy(headers), (*others, _NO_STORE_LINE))
            return started

        return start

    patches.wrap(module.ClientResponse, "start", build, ("self", "connection"))


_NO_STORE_LINE: Final = CACHE_CONTROL.encode("ascii"), NO_STORE.encode("ascii")


def show_headers(response: Any, headers: Any, raw_headers: Any) -> None:
    """Replace the headers of a response. aiohttp remembers those that it has shown before."""
    response._headers, response._raw_headers = headers, raw_headers
    for name in ("headers", "raw_headers"):
        response._cache.pop(name, None)


def patch_connector(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the connectors of *module*, which is ``aiohttp.connector``, if tokens are exchanged.

    A request that waits for an exchange must not hold a connection that other requests could use.
    """
    relay = runtime.relay
    if not relay.policy.has_exchanged:
        return

    def build(original: Function) -> Function:
        async def connect(self: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
            if (host := req.url.raw_host) is not None and req.method != "CONNECT":
                target = req.url.scheme, host, req.url.port
                await relay.prepare_hop(target, has_header=relay.header in req.headers)
            return await original(self, req, *args, **kwargs)

        return connect

    patches.wrap(module.BaseConnector, "connect", build)


def _settle(own: Any, twin: Any, name: str) -> None:
    """Remove the added header from the twin, and show the application the headers that ``send`` has added."""
    headers = twin.headers
    _restore(headers, name, twin._token_relay_covers)
    if len(headers) != len(own):
        for key, default in headers.items():
            own.setdefault(key, default)


def _restore(headers: Any, name: str, values: list[str]) -> None:
    headers.popall(name, None)
    for value in values:
        headers.add(name, value)


def _target_of(call: tuple[Any, Any]) -> Target:
    request, connection = call
    # The connector may have opened a Unix socket or a pipe.
    if not is_ip_peer(connection.transport.get_extra_info("peername")):
        raise ValueError("not a TCP connection")
    url = request.url
    if request.proxy and not request.is_ssl():
        return origin_of_proxied(str(url))
    if not url.raw_path_qs.startswith("/"):
        raise ValueError("the request target is not a path")
    # aiohttp before 3.9 has no such option.
    if server_hostname := getattr(request, "server_hostname", None):
        check_tls_name(server_hostname, url.raw_host)
    return url.scheme, url.raw_host, url.port


def _has_header(call: tuple[Any, Any], name: str) -> bool:
    return name in call[0].headers
