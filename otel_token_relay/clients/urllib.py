"""urllib.request of the standard library.

``do_open`` runs once for each request that goes out, redirects included. A ``Request`` may be
used again, by another thread at the same moment even, so ours is put on a copy.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from otel_token_relay.clients.names import lower
from otel_token_relay.patching import Function, Patches
from otel_token_relay.relay import Parts, Relay, origin_of_proxied


def patch(module: ModuleType, relay: Relay, patches: Patches) -> None:
    """Hook the handlers of *module*, which is ``urllib.request``."""

    def decided(request: Any) -> Any:
        # No frame that an exception passes may hold the value: error trackers send local variables.
        value = relay.hop(request, _parts_of, _carries)
        if value is None:
            return request
        twin = object.__new__(type(request))
        twin.__dict__ = request.__dict__.copy()
        own = dict(request.unredirected_hdrs)
        if relay.settings.on_conflict == "replace":
            own = {key: v for key, v in own.items() if lower(key) != relay.header}
            twin.headers = {key: v for key, v in request.headers.items() if lower(key) != relay.header}
        own[relay.settings.header] = value
        twin.unredirected_hdrs = own
        return twin

    def build(original: Function) -> Function:
        def do_open(self: Any, http_class: Any, req: Any, **http_conn_args: Any) -> Any:
            return original(self, http_class, decided(req), **http_conn_args)

        return do_open

    patches.wrap(module.AbstractHTTPHandler, "do_open", build)


def _parts_of(request: Any) -> Parts:
    if request._tunnel_host:
        # Not always TLS: a request that is given another URL keeps its tunnel.
        authority = request._tunnel_host
    elif request.has_proxy():
        return origin_of_proxied(request.full_url)
    else:
        authority = request.host
    # http.client splits the port off what it is given, and sockets encode a name by IDNA 2003.
    host, separator, port = authority.rpartition(":")
    if not separator or port.endswith("]"):
        host, port = authority, ""
    if not host.isascii():
        host = host.encode("idna").decode("ascii")
    return request.type, host, int(port) if port else None


def _carries(request: Any, name: str) -> bool:
    return name in [lower(key) for headers in (request.headers, request.unredirected_hdrs) for key in headers]
