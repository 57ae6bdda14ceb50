"""urllib3, and so requests, botocore and whatever else sends through its pools.

``_make_request`` runs once for each attempt that goes out, after retries and redirects were
decided, and its headers are the pool's own argument. ``urlopen`` calls itself for a retry and
would take our header of the first attempt for the caller's.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from otel_token_relay.clients.names import lower
from otel_token_relay.origin import Origin
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
                    # Error trackers send the local variables of every frame that an exception passes,
                    # and find a token under the name of its header only.
                    del value
            return original(*args, **kwargs)

        return _make_request

    patches.wrap(module.HTTPConnectionPool, "_make_request", build)


def _parts_of(call: tuple[Any, str, Any]) -> Parts:
    pool, url, _ = call
    own = pool.scheme, pool.host, pool.port
    if url.startswith("/"):
        return own
    # A forward proxy is told the destination by the URL; a tunnel's pool names it.
    destination = origin_of_proxied(url)
    proxy = pool.proxy
    is_proxys = proxy is not None and Origin.of(*own) == Origin.of(proxy.scheme, proxy.host, proxy.port)
    if not is_proxys and destination != Origin.of(*own):
        raise ValueError("the connection and the URL name two destinations")
    return destination


def _carries(call: tuple[Any, str, Any], name: str) -> bool:
    return name in [lower(key) for key in call[2] or () if len(key) == len(name)]


def _with_header(headers: Any, relay: Relay, value: str) -> Any:
    name = relay.settings.header
    if headers is None:
        return {name: value}
    if hasattr(headers, "lower_items"):  # requests': no name repeats, and its own copy takes twice as long
        copy = {key: headers[key] for key in headers}
    else:
        copy = headers.copy() if hasattr(headers, "copy") else dict(headers.items())
    if relay.settings.on_conflict == "replace":
        for key in [key for key in copy if lower(key) == relay.header]:
            del copy[key]
    copy[name] = value
    return copy
