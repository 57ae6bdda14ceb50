"""The hook for httpcore and httpcore2 connections, through which httpx and httpx2 send requests.

The httpx hooks make the decision before a transport requests a connection from the pool. The request can still be
waiting in the pool after the caller's request has ended. This hook therefore checks the decision again immediately
before the request is sent, and removes the header if the token may no longer be sent. When httpcore calls
``_send_request_headers``, the connection is open, tunnels and SOCKS handshakes are complete, and an HTTP/2 stream is
available.

The hook does not modify requests from transports that are not hooked.
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
"""The name of the request extension that contains the transport's decision."""

# The connection classes, and the expected parameters of each class's `_send_request_headers` method.
_CONNECTIONS: Final = {
    "HTTP11Connection": ("self", "request"),
    "AsyncHTTP11Connection": ("self", "request"),
    "HTTP2Connection": ("self", "request", "stream_id"),
    "AsyncHTTP2Connection": ("self", "request", "stream_id"),
}

# Maps each relay to the packages whose connection classes are hooked.
_hooked: Final[WeakKeyDictionary[Relay, set[str]]] = WeakKeyDictionary()


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the connection class in *module* (such as ``httpcore._sync.http11``)."""

    # The wrapper of an asynchronous method is a plain function, so the wrapper checks the decision when the method is
    # called. The method also starts at that time, because httpcore awaits the call immediately.
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
    """Return whether the connections in *pool* check *relay*'s decisions again before they send a request."""
    packages = _hooked.get(relay, ())
    return any(_package_of(kind.__module__) in packages for kind in type(pool).__mro__)


def _package_of(module: str) -> str:
    return module.partition(".")[0]


def _confirmed(request: Any, hop: Hop) -> Any:
    """Return *request*, or a copy without the token if the token may no longer be sent.

    In both cases, httpcore reads the body from *request*.
    """
    # A tunnel's CONNECT request has the same extensions but does not carry the token.
    if request.method == b"CONNECT" or hop.confirm():
        return request
    header = hop.header.encode("ascii")
    copy = shallow_copy(request)
    copy.headers = [line for line in request.headers if line[0].lower() != header] + (hop.replaced or [])
    return copy
