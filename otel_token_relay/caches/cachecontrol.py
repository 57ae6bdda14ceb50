"""Hooks for CacheControl, which caches responses in a requests adapter.

CacheControl stores a response after its body has been read, which might happen in a different context. For this reason,
the hook checks the response's mark instead of the context. CacheControl's heuristics can replace the ``Cache-Control``
header, so ``no-store`` alone is not sufficient.
"""

from __future__ import annotations

import weakref
from types import ModuleType
from typing import Any

from otel_token_relay.caches.layers import build_send
from otel_token_relay.patching import Function, Patches
from otel_token_relay.personal_responses import is_personal, restore
from otel_token_relay.runtime import Runtime


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the controller in *module*, which is ``cachecontrol.controller``."""
    relay = runtime.relay
    if not relay.settings.protect_caches:
        return

    def may_send(request: Any) -> bool:
        return relay.may_send(request.url, request.headers.__contains__)

    def build_lookup(original: Function) -> Function:
        def cached_request(self: Any, request: Any) -> Any:
            return False if may_send(request) else original(self, request)

        return cached_request

    def build_conditions(original: Function) -> Function:
        def conditional_headers(self: Any, request: Any) -> Any:
            return {} if may_send(request) else original(self, request)

        return conditional_headers

    def build_store(original: Function) -> Function:
        def cache_response(self: Any, request: Any, response_or_ref: Any, *args: Any, **kwargs: Any) -> Any:
            is_reference = isinstance(response_or_ref, weakref.ReferenceType)
            if is_personal(response_or_ref() if is_reference else response_or_ref):
                return None
            return original(self, request, response_or_ref, *args, **kwargs)

        return cache_response

    def build_update(original: Function) -> Function:
        def update_cached_response(self: Any, request: Any, response: Any) -> Any:
            # A personal response here is a 304 response to a request that the application itself made conditional.
            return response if is_personal(response) else original(self, request, response)

        return update_cached_response

    controller = module.CacheController
    patches.wrap(controller, "cached_request", build_lookup, ("self", "request"))
    patches.wrap(controller, "conditional_headers", build_conditions, ("self", "request"))
    patches.wrap(controller, "cache_response", build_store)
    patches.wrap(controller, "update_cached_response", build_update)


def patch_adapter(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the adapter in *module*, which is ``cachecontrol.adapter``. The hook restores the server's headers before
    CacheControl applies its heuristics.
    """
    if not runtime.settings.protect_caches:
        return

    def build_response(original: Function) -> Function:
        def wrapped(self: Any, request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
            return original(self, request, restore(response), *args, **kwargs)

        return wrapped

    patches.wrap(module.CacheControlAdapter, "build_response", build_response)
    patches.wrap(module.CacheControlAdapter, "send", build_send)
