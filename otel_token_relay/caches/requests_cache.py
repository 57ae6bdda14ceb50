"""Hooks for requests-cache, which caches responses in a requests session.

Unless ``cache_control=True`` is set, requests-cache ignores response headers. A session follows redirects before its
cache stores the final response, so the hook checks that response and all preceding redirects for marks.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from otel_token_relay.caches.layers import has_led_to
from otel_token_relay.patching import Function, Patches
from otel_token_relay.personal_responses import is_class_of, is_personal, restore
from otel_token_relay.runtime import Runtime


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the cache actions in *module*, which is ``requests_cache.policy.actions``."""
    relay = runtime.relay
    if not relay.settings.protect_caches:
        return

    def build_actions(original: Function) -> Function:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            request = self._request
            if request is not None and relay.may_send(request.url, request.headers.__contains__):
                self.skip_read = self.skip_write = True

        return __init__

    def build_response(original: Function) -> Function:
        def update_from_response(self: Any, response: Any) -> Any:
            if is_personal(response):
                self.skip_write = True
            return original(self, response)

        return update_from_response

    patches.wrap(module.CacheActions, "__init__", build_actions)
    patches.wrap(module.CacheActions, "update_from_response", build_response, ("self", "response"))


def patch_backend(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the cache backend in *module*, which is ``requests_cache.backends.base``.

    If an unlisted host redirects a request to a listed host, the cache stores the response under the unlisted host's
    URL.
    """
    relay = runtime.relay
    if not relay.settings.protect_caches:
        return

    def build(original: Function) -> Function:
        def get_response(self: Any, key: str, default: Any = None) -> Any:
            found = original(self, key, default)
            return default if found is not default and has_led_to(found, relay.may_send) else found

        return get_response

    patches.wrap(module.BaseCache, "get_response", build, ("self", "key", "default"))


def patch_session(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the sessions in *module*, which is ``requests_cache.session``.

    The hook restores the server's headers for the application unless the application defines its own session subclass,
    which might itself be a cache.
    """
    if not runtime.settings.protect_caches:
        return

    def build(original: Function) -> Function:
        def send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            response = original(self, request, *args, **kwargs)
            return restore(response) if is_class_of(("requests_cache",), self) else response

        return send

    patches.wrap(module.CacheMixin, "send", build)
