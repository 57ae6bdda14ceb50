"""The hooks for the aiohttp client.

``ClientRequest.send`` runs once for each outgoing request, including redirects and WebSocket handshakes. The session
owns the request object, and client middleware can send the same object twice concurrently. Each ``send`` call therefore
runs on a *twin*, an object that shares the request's state but has its own headers. Responses and errors expose the
twin's headers, so the hook removes the added header after the headers have been written. If the destination requires a
token exchange, the hook obtains the token before the connection is opened.
"""

from __future__ import annotations

import asyncio
import functools
from contextvars import ContextVar
from inspect import signature
from types import ModuleType
from typing import Any, Final

from otel_token_relay.clients.connections import check_tls_name, is_ip_peer
from otel_token_relay.clients.retrying import Result, check_target
from otel_token_relay.origin import Target, origin_of_proxied
from otel_token_relay.patching import Function, Patches
from otel_token_relay.personal_responses import CACHE_CONTROL, MARK, NO_STORE
from otel_token_relay.relay import Exchange, HasHeader, Hop
from otel_token_relay.retries import DISCARD_SECONDS, MAX_DISCARDED, UNAUTHORIZED
from otel_token_relay.runtime import Runtime
from otel_token_relay.signed_urls import is_signed_query


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the request class in *module* (``aiohttp.client_reqrep``)."""
    relay = runtime.relay
    # multidict converts an `istr` to lowercase only once.
    name = type(module.hdrs.AUTHORIZATION)(relay.settings.header)
    replaces = relay.settings.on_conflict == "replace"
    has_retry = relay.policy.has_retry

    @functools.lru_cache(maxsize=16)
    def twin_class(kind: Any) -> Any:
        # A slot takes precedence over the instance's dictionary, which the twin shares with the original request.
        slots = {"__slots__": ("_token_relay_covers", "headers"), "__module__": kind.__module__}
        return type(kind)(kind.__name__, (kind,), slots)

    def target_of(call: tuple[Any, Any]) -> Target:
        kind: Any = type(call[0])
        twin_class(kind)  # if the class cannot be subclassed, this call fails and the token is withheld
        return _target_of(call)

    async def value_of(call: tuple[Any, Any]) -> str | None:
        """Return the header value for a request that may be retried."""
        attempt = _attempt.get()
        hop = None if attempt is None else attempt.again
        if hop is not None:
            check_target(hop, target_of, call)
        else:
            found = relay.decide(call, target_of, _has_header, is_final=False, may_block=False)
            hop = await found.run_async() if isinstance(found, Exchange) else found
            if attempt is not None:
                attempt.hop = hop
        return hop.reveal() if hop is not None and hop.confirm() else None

    def build_send(original: Function) -> Function:
        async def send(self: Any, conn: Any) -> Any:
            # A CONNECT request is intended for the proxy, not for the destination.
            if self.method == "CONNECT":
                return await original(self, conn)
            value: Any
            if has_retry:
                value = await value_of((self, conn))
            else:
                value = relay.decide((self, conn), target_of, _has_header, may_block=False)
                if isinstance(value, Exchange):
                    value = await value.run_async()
            if value is None:
                return await original(self, conn)
            kind: Any = type(self)
            twin = object.__new__(twin_class(kind))
            twin.__dict__ = self.__dict__
            # Error trackers capture the local variables of every frame in a traceback and of every frame that is
            # currently executing. Local variables must therefore not contain the value or the headers. An aiohttp
            # request's `repr` does not include the headers.
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
            # Tracing callbacks belong to the application, so they receive the headers that the application set.
            covered = getattr(self, "_token_relay_covers", None)
            if covered is not None:
                headers = headers.copy()
                _restore(headers, name, covered)
            return original(self, method, url, headers)

        return _on_headers_request_sent

    patches.wrap(module.ClientRequest, "send", build_send)
    patches.wrap(module.ClientRequest, "_on_headers_request_sent", build_trace)


def patch_responses(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the response class in *module* (``aiohttp.client_reqrep``) so that no cache stores a personal response."""
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
    """Replace a response's headers, including the copies that aiohttp caches."""
    response._headers, response._raw_headers = headers, raw_headers
    for name in ("headers", "raw_headers"):
        response._cache.pop(name, None)


def patch_connector(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the connector class in *module* (``aiohttp.connector``) if any entry requires a token exchange.

    A request that is waiting for an exchange must not occupy a connection that other requests could use.
    """
    relay = runtime.relay
    if not relay.policy.has_exchanged:
        return

    def build(original: Function) -> Function:
        async def connect(self: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
            if (host := req.url.raw_host) is not None and req.method != "CONNECT":
                target = req.url.scheme, host, req.url.port
                await relay.prepare_hop(target, has_header=_has_header((req, None), relay.header))
            return await original(self, req, *args, **kwargs)

        return connect

    patches.wrap(module.BaseConnector, "connect", build)


class _Attempt:
    """The decisions for a request and its retry."""

    __slots__ = ("again", "hop")

    def __init__(self) -> None:
        self.hop: Hop | None = None
        self.again: Hop | None = None


_attempt: Final[ContextVar[_Attempt | None]] = ContextVar("token_relay_attempt", default=None)


def patch_session(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the session class in *module* (``aiohttp.client``) if any entry allows retries.

    The hook adds an innermost client middleware that retries requests.
    """
    has_middlewares = "middlewares" in signature(module.ClientSession._request).parameters  # since aiohttp 3.12
    if not (runtime.relay.policy.has_retry and has_middlewares):
        return
    in_memory: Any = module.payload.BytesPayload

    def is_repeatable(request: Any) -> bool:
        return request._body is None or isinstance(request._body, in_memory)

    async def send_once_more(request: Any, handler: Function) -> Any:
        attempt = _Attempt()
        outer = _attempt.set(attempt)
        try:
            response = await handler(request)
            hop = attempt.hop
            if (
                response.status != UNAUTHORIZED
                or hop is None
                or not hop.may_repeat(request.method)
                or not is_repeatable(request)
            ):
                return response
            try:
                again = await hop.again_async(response.headers.getall("WWW-Authenticate", ()))
            except BaseException:
                response.close()
                raise
            if again is None:
                return response
            attempt.again = again
            with Result(again) as result:
                await _discard(response)
                response = await handler(request)
                result.status = response.status
            return response
        finally:
            _attempt.reset(outer)

    def build(original: Function) -> Function:
        def _request(self: Any, *args: Any, **kwargs: Any) -> Any:
            given = kwargs.get("middlewares")
            kwargs["middlewares"] = (*(self._middlewares if given is None else given), send_once_more)
            return original(self, *args, **kwargs)

        return _request

    patches.wrap(module.ClientSession, "_request", build)


async def _discard(response: Any) -> None:
    """Drain a response so that its connection can be reused.

    If the rest of the response is too long or arrives too slowly, the response is closed instead.
    """
    size = 0
    try:
        async with asyncio.timeout(DISCARD_SECONDS):
            while size <= MAX_DISCARDED and (chunk := await response.content.readany()):
                size += len(chunk)
    except BaseException as error:
        response.close()
        if not isinstance(error, Exception):
            raise
    response.release()


def _settle(own: Any, twin: Any, name: str) -> None:
    """Remove the token's header from the twin, and add the headers that aiohttp set to the original request."""
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
    # Some connectors open Unix sockets or pipes.
    if not is_ip_peer(connection.transport.get_extra_info("peername")):
        raise ValueError("the connection is not a TCP connection")
    url = request.url
    if request.proxy and not request.is_ssl():
        return origin_of_proxied(str(url))
    if not url.raw_path_qs.startswith("/"):
        raise ValueError("the request target is not a path")
    # aiohttp versions before 3.9 do not have this option.
    if server_hostname := getattr(request, "server_hostname", None):
        check_tls_name(server_hostname, url.raw_host)
    return url.scheme, url.raw_host, url.port


def _has_header(call: tuple[Any, Any], name: str) -> HasHeader:
    request = call[0]
    if (query := request.url.raw_query_string) and is_signed_query(query):
        return "fixed"
    return name in request.headers
