"""Hooks for aiohttp-client-cache, which caches responses in an aiohttp session.

Unless ``cache_control=True`` is set, aiohttp-client-cache ignores response headers. A request that bypasses the cache
does not wait for concurrent requests to the same URL.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from otel_token_relay.caches.layers import has_led_to
from otel_token_relay.clients.aiohttp import show_headers
from otel_token_relay.patching import Function, Patches
from otel_token_relay.personal_responses import MARK, is_class_of, is_personal
from otel_token_relay.runtime import Runtime


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the cache backend in *module*, which is ``aiohttp_client_cache.backends.base``."""
    relay = runtime.relay
    if not relay.settings.protect_caches:
        return

    def build_request(original: Function) -> Function:
        def create_cache_actions(self: Any, key: str, url: Any, *args: Any, **kwargs: Any) -> Any:
            actions = original(self, key, url, *args, **kwargs)
            names = {str(name).lower() for name in kwargs.get("headers") or ()}
            if kwargs.get("auth") is not None:
                names.add("authorization")
            if relay.may_send(str(url), names.__contains__):
                actions.skip_read = actions.skip_write = True
            return actions

        return create_cache_actions

    def build_response(original: Function) -> Function:
        async def is_cacheable(self: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
            return False if is_personal(response) else await original(self, response, *args, **kwargs)

        return is_cacheable

    def build_lookup(original: Function) -> Function:
        async def get_response(self: Any, key: str) -> Any:
            found = await original(self, key)
            return None if found is not None and has_led_to(found, relay.may_send) else found

        return get_response

    patches.wrap(module.CacheBackend, "create_cache_actions", build_request)
    patches.wrap(module.CacheBackend, "get_response", build_lookup, ("self", "key"))
    patches.wrap(module.CacheBackend, "is_cacheable", build_response)


def patch_session(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the sessions in *module*, which is ``aiohttp_client_cache.session``.

    The hook restores the server's headers for the application unless the application defines its own session subclass,
    which might itself be a cache.
    """
    if not runtime.settings.protect_caches:
        return

    def build(original: Function) -> Function:
        async def _request(self: Any, *args: Any, **kwargs: Any) -> Any:
            response = await original(self, *args, **kwargs)
            if not is_class_of(("aiohttp_client_cache",), self):
                return response
            for one in (response, *response.history):
                if mark := getattr(one, MARK, None):
                    show_headers(one, *mark)
            return response

        return _request

    patches.wrap(module.CacheMixin, "_request", build)
