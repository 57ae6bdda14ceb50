"""The hook for httpcore and httpcore2 connections, through which httpx and httpx2 send requests.

httpx transports make the decision before they request a connection from the pool, where a request may still be waiting
when its caller's request has ended. ``_send_request_headers`` is the last httpcore method before the wire: the
connection is open, tunnels and SOCKS handshakes are complete, and HTTP/2 has a free stream. There, the hook checks the
transport's decision again and removes the header if the token may no longer be sent.

Requests that do not come from a hooked transport are not changed.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Final
from weakref import WeakKeyDictionary

from otel_token_relay.copying import shallow_copy
from otel_token_relay.patching import Function, Patches
from otel_token_relay.relay import Hop, Relay
from otel_token_relay.runtime import Runtime

HOP: Final = "otel_token_relay.hop"
"""The request extension that contains the transport's decision."""

# The connection classes, and the parameters that each class's sending method must have.
_CONNECTIONS: Final = {
    "HTTP11Connection": ("self", "request"),
    "AsyncHTTP11Connection": ("self", "request"),
    "HTTP2Connection": ("self", "request", "stream_id"),
    "AsyncHTTP2Connection": ("self", "request", "stream_id"),
}

# For each relay, the packages whose connections are hooked.
_hooked: Final[WeakKeyDictionary[Relay, set[str]]] = WeakKeyDictionary()


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the connection class in *module*, which is, for example, ``httpcore._sync.http11``."""

    # Asynchronous methods are wrapped in plain functions. The decision is therefore checked when the method is called.
    # That is also when the method starts, because httpcore awaits the call immediately.
    def build_http1(original: Function) -> Function:
        def _send_request_headers(self: Any, request: Any) -> Any:
            hop = request.extensions.get(HOP)
            return original(self, request if hop is None else _confirmed(request, hop))

        return _send_request_headers

    def build_http2(original: Function) -> Function:
        def _send_request_headers(self: Any, request: Any, stream_id: int) -> Any:
            hop = request.extensions.get(HOP)
            return original(self, request if hop is None else _confirmed(request, hop), stream_id)

        return _send_request_headers

    found = False
    for name, parameters in _CONNECTIONS.items():
        if name in vars(module):
            found = True
            build = build_http2 if "stream_id" in parameters else build_http1
            patches.wrap(getattr(module, name), "_send_request_headers", build, parameters)
    if not found:
        raise AttributeError(f"{module.__name__} has none of the connection classes {', '.join(_CONNECTIONS)}")
    _hooked.setdefault(runtime.relay, set()).add(_package_of(module.__name__))


def checks_when_sending(relay: Relay, pool: object) -> bool:
    """Return whether *pool*'s connections check *relay*'s decisions again."""
    packages = _hooked.get(relay, ())
    return any(_package_of(kind.__module__) in packages for kind in type(pool).__mro__)


def _package_of(module: str) -> str:
    return module.partition(".")[0]


def _confirmed(request: Any, hop: Hop) -> Any:
    """Return the request to send: *request*, or a copy without the token. The body is always read from *request*."""
    # A tunnel's CONNECT request has the same extensions, but it does not carry the token and needs no decision.
    if request.method == b"CONNECT" or hop.confirm():
        return request
    header = hop.header.encode("ascii")
    copy = shallow_copy(request)
    copy.headers = [line for line in request.headers if line[0].lower() != header] + (hop.replaced or [])
    return copy
