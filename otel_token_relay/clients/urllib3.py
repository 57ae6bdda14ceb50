"""urllib3, and so requests, botocore and whatever else sends through its pools.

``_make_request`` runs once for each attempt that goes out, after retries and redirects were
decided, and its headers are the pool's own argument. ``urlopen`` calls itself for a retry and
would take our header of the first attempt for the caller's.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from otel_token_relay.patching import Function, Patches
from otel_token_relay.relay import Parts, Relay, origin_of_proxied


def patch(module: ModuleType, relay: Relay, patches: Patches) -> None:
    """Hook the pools of *module*, which is ``urllib3.connectionpool``."""

    def build(original: Function) -> Function:
        # The arguments are handed on as they came: naming them makes the call twice as dear.
        def _make_request(*args: Any, **kwargs: Any) -> Any:
            if len(args) == 4:  # self, conn, method, url: how every release calls it
                headers = kwargs.get("headers")
                value = relay.hop((args[0], args[3], headers), _parts_of, _carries)
                if value is not None:
                    kwargs["headers"] = _with_header(headers, relay, value)
            return original(*args, **kwargs)

        return _make_request

    patches.wrap(module.HTTPConnectionPool, "_make_request", build)


def _parts_of(call: tuple[Any, str, Any]) -> Parts:
    pool, url, _ = call
    if pool.proxy is not None and not url.startswith("/"):
        # A forward proxy is told the destination by the URL; a tunnel's pool names it.
        return origin_of_proxied(url)
    return pool.scheme, pool.host, pool.port


def _carries(call: tuple[Any, str, Any], name: str) -> bool:
    return name in [_lower(key) for key in call[2] or () if len(key) == len(name)]


def _lower(key: str | bytes) -> str:
    return key.decode("latin-1").lower() if isinstance(key, bytes) else key.lower()


def _with_header(headers: Any, relay: Relay, value: str) -> Any:
    name = relay.settings.header
    if headers is None:
        return {name: value}
    if hasattr(headers, "lower_items"):  # requests': no name repeats, and its own copy takes twice as long
        copy = {key: headers[key] for key in headers}
    else:
        copy = headers.copy() if hasattr(headers, "copy") else dict(headers.items())
    if relay.settings.on_conflict == "replace":
        for key in [key for key in copy if _lower(key) == relay.header]:
            del copy[key]
    copy[name] = value
    return copy
