"""The hook for aiohttp's client.

``ClientRequest.send`` runs once for each outgoing request, including redirects and WebSocket handshakes.
The request belongs to the session, and middleware may send it twice at the same time. Each ``send`` therefore runs
on a twin that shares the request's state and has its own headers. Responses and errors expose these headers, so the
added header is removed once they have been written. A token for the destination is obtained before the connection is.
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
from otel_token_relay.relay import Exchange, HasHeader, Hop
from otel_token_relay.retries import DISCARD_SECONDS, MAX_DISCARDED, UNAUTHORIZED
from otel_token_relay.runtime import Runtime
from otel_token_relay.signed_urls import is_signed_query


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the requests of *module*, which is ``aiohttp.client_reqrep``."""
    relay = runtime.relay
    # multidict converts a name of this type to lower case only once.
    name = type(module.hdrs.AUTHORIZATION)(relay.settings.header)
    replaces = relay.settings.on_conflict == "replace"
    has_retry = relay.policy.has_retry

    @functools.lru_cache(maxsize=16)
    def twin_class(kind: Any) -> Any:
        # A slot takes precedence over the instance's dictionary, which the twin shares with its request.
        slots = {"__slots__": ("_token_relay_covers", "headers"), "__module__": kind.__module__}
        return type(kind)(kind.__name__, (kind,), slots)

    def target_of(call: tuple[Any, Any]) -> Target:
        kind: Any = type(call[0])
        twin_class(kind)  # if the application's class cannot be subclassed, the request gets no token
        return _target_of(call)

    async def value_of(call: tuple[Any, Any]) -> str | None:
        """Return the header value for a request that may be sent once more."""
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
            # A CONNECT request goes to the proxy in clear text.
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
            # Error trackers send the local variables of every frame that an exception passes through, or that is being
            # executed. Neither the value nor the headers may be among them; an aiohttp request shows no headers.
            twin.headers = self.headers.copy()
            twin._token_relay_covers = twin.headers.getall(name, []) if replaces else []
            twin.headers[name] = value
            del value
            try:
                return await original(twin, conn)
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
                await relay.prepare_hop(target, has_header=_has_header((req, None), relay.header))
            return await original(self, req, *args, **kwargs)

        return connect

    patches.wrap(module.BaseConnector, "connect", build)


class _Attempt:
    """The decisions for one request of a session, and for the same request when it is sent again."""

    __slots__ = ("again", "hop")

    def __init__(self) -> None:
        self.hop: Hop | None = None
        self.again: Hop | None = None


_attempt: Final[ContextVar[_Attempt | None]] = ContextVar("token_relay_attempt", default=None)


def patch_session(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the sessions of *module*, which is ``aiohttp.client``, if a request may be sent once more.

    aiohttp's own client middleware sends a request again in the same way; ours is the innermost.
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
    """Read the rest of a response if it is short, so that its connection can be used again; else close it."""
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
    if request.server_hostname:
        check_tls_name(request.server_hostname, url.raw_host)
    return url.scheme, url.raw_host, url.port


def _has_header(call: tuple[Any, Any], name: str) -> HasHeader:
    request = call[0]
    if (query := request.url.raw_query_string) and is_signed_query(query):
        return "fixed"
    return name in request.headers
