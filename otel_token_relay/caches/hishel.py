"""Hooks for the httpx and httpx2 transports and the requests adapter in hishel 2.

Except in RFC mode, hishel ignores response headers. The hooks insert a layer between hishel and the network. For each
personal response, the layer raises an exception that contains the response, so hishel never processes personal
responses. The hooks catch the exception and return the response.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Final, Generic, TypeVar

from otel_token_relay.caches.layers import build_send
from otel_token_relay.copying import shallow_copy
from otel_token_relay.patching import Function, Patches
from otel_token_relay.personal_responses import (
    is_called_by,
    is_personal,
    is_personal_httpx,
    restore,
    restore_httpx,
)
from otel_token_relay.runtime import Runtime

_METHODS: Final = ("_handle_without_rfc", "_handle_with_rfc")
_CLIENTS: Final = {
    "httpx._client": ("httpx", "hishel"),
    "httpx2._client": ("httpx2", "hishel"),
}
_CONDITIONS: Final = ("if-none-match", "if-modified-since")

T = TypeVar("T")


class _PersonalResponse(Exception, Generic[T]):
    """An exception that wraps a personal response so that the response bypasses the cache."""

    def __init__(self, response: T) -> None:
        super().__init__()
        self.response: T = response


class _Below:
    """A transport below the cache that raises an exception instead of returning a personal response."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def handle_request(self, request: Any) -> Any:
        return _raise_personal(self._transport.handle_request(request))

    async def handle_async_request(self, request: Any) -> Any:
        return _raise_personal(await self._transport.handle_async_request(request))


def _raise_personal(response: Any) -> Any:
    if is_personal_httpx(response):
        raise _PersonalResponse(response)
    return response


def patch_transport(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the transport in *module*, such as ``hishel.httpx._sync``."""
    relay = runtime.relay
    if not relay.settings.protect_caches:
        return
    not_stored = module._not_stored

    def with_original_headers(response: Any, is_outermost: bool) -> Any:
        return not_stored(restore_httpx(response) if is_outermost else response)

    def build(original: Function) -> Function:
        def handle(self: Any, request: Any, *args: Any) -> Any:
            is_outermost = is_called_by(_CLIENTS, 2)
            if relay.may_send(str(request.url), request.headers.__contains__):
                return with_original_headers(self.next_transport.handle_request(request), is_outermost)
            try:
                return original(_above(self), request, *args)
            except _PersonalResponse as personal:
                response = personal.response
            if _is_for_cache(response.status_code, request.headers):
                response.close()
                response = self.next_transport.handle_request(request)
            return with_original_headers(response, is_outermost)

        return handle

    def build_async(original: Function) -> Function:
        async def handle(self: Any, request: Any, *args: Any) -> Any:
            is_outermost = is_called_by(_CLIENTS, 2)
            if relay.may_send(str(request.url), request.headers.__contains__):
                return with_original_headers(await self.next_transport.handle_async_request(request), is_outermost)
            try:
                return await original(_above(self), request, *args)
            except _PersonalResponse as personal:
                response = personal.response
            if _is_for_cache(response.status_code, request.headers):
                await response.aclose()
                response = await self.next_transport.handle_async_request(request)
            return with_original_headers(response, is_outermost)

        return handle

    is_async = hasattr(module, "AsyncCacheTransport")
    transport = module.AsyncCacheTransport if is_async else module.CacheTransport
    for name in _METHODS:
        patches.wrap(transport, name, build_async if is_async else build)


def _above(transport: Any) -> Any:
    """Return a copy of hishel's transport that uses a `_Below` transport. A shallow copy is sufficient, because hishel
    does not modify its transport.
    """
    copy = shallow_copy(transport)
    copy.next_transport = _Below(transport.next_transport)
    return copy


def _is_for_cache(status: int, headers: Any) -> bool:
    """Return whether the response is a 304 response to a request that the cache made conditional."""
    return status == 304 and not any(name in headers for name in _CONDITIONS)


def patch_adapter(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the adapter in *module*, which is ``hishel.requests._adapter``."""
    relay = runtime.relay
    if not relay.settings.protect_caches:
        return
    not_stored = module._not_stored

    def build(original: Function) -> Function:
        def send_cached(self: Any, request: Any, send_upstream: Function, *args: Any) -> Any:
            def send_below(prepared: Any) -> Any:
                response = send_upstream(prepared)
                if is_personal(response):
                    raise _PersonalResponse(response)
                return response

            if relay.may_send(request.url, request.headers.__contains__):
                return not_stored(restore(send_upstream(request)))
            try:
                return original(self, request, send_below, *args)
            except _PersonalResponse as personal:
                response = personal.response
            if _is_for_cache(response.status_code, request.headers):
                response.close()
                response = send_upstream(request)
            return not_stored(restore(response))

        return send_cached

    patches.wrap(module.CacheAdapter, "_send_without_rfc", build)
    patches.wrap(module.CacheAdapter, "_send_with_rfc", build)
    patches.wrap(module.CacheAdapter, "send", build_send)
