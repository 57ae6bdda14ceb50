"""httpx and httpx2: every transport that sends, one request at a time.

Redirects, retries of the application and authentication flows all pass here once for each
request that goes out. The caller's request is not touched: the transport gets a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MethodType, ModuleType
from typing import Any

from otel_token_relay.patching import Function, Patches, layers_of
from otel_token_relay.relay import Parts, Relay

SYNC_TRANSPORTS = ("HTTPTransport", "MockTransport", "WSGITransport")
ASYNC_TRANSPORTS = ("AsyncHTTPTransport", "MockTransport", "ASGITransport")


def patch(module: ModuleType, relay: Relay, patches: Patches) -> None:
    """Hook the transports of *module*, which is httpx or httpx2."""
    headers_class = module.Headers
    hooked: dict[Function, Function] = {}

    def decided(request: Any) -> Any:
        # No frame that an exception passes may hold the value: error trackers send local variables.
        value = relay.hop(request, _parts_of, _carries)
        if value is None:
            return request
        # The library's own way to copy a request drops its stream. Everything but the headers
        # is shared, so that a body is still read from where it lies.
        headers = headers_class(request.headers)
        headers[relay.settings.header] = value
        twin = object.__new__(type(request))
        twin.__dict__ = fields = request.__dict__.copy()
        fields["headers"] = headers
        return twin

    def build_sync(original: Function) -> Function:
        def handle_request(self: Any, request: Any) -> Any:
            return original(self, decided(request))

        hooked[original] = handle_request
        return handle_request

    def build_async(original: Function) -> Function:
        async def handle_async_request(self: Any, request: Any) -> Any:
            return await original(self, decided(request))

        hooked[original] = handle_async_request
        return handle_async_request

    def router(name: str) -> Callable[[Function], Function]:
        def build(original: Function) -> Function:
            def _transport_for_url(self: Any, url: Any) -> Any:
                transport = original(self, url)
                if name in getattr(transport, "__dict__", ()):
                    _reach_through(transport, name, hooked)
                return transport

            return _transport_for_url

        return build

    for name in SYNC_TRANSPORTS:
        patches.wrap(getattr(module, name), "handle_request", build_sync)
    for name in ASYNC_TRANSPORTS:
        patches.wrap(getattr(module, name), "handle_async_request", build_async)
    for client, method in ((module.Client, "handle_request"), (module.AsyncClient, "handle_async_request")):
        if "_transport_for_url" in vars(client):  # private: without it those transports get nothing
            patches.wrap(client, "_transport_for_url", router(method))


def _reach_through(transport: Any, name: str, hooked: Mapping[Function, Function]) -> None:
    """Hook a transport that has a method of its own, made from the class's before we were there.

    ``instrument_client`` binds the method that it finds into a proxy on the instance, for good.
    """
    *_, (proxy, method) = layers_of(vars(transport)[name])
    function = getattr(method, "__func__", None)
    if function is None or method.__self__ is not transport:
        return
    for original, replacement in hooked.items():
        # One of a former installation, which is inert now, has the same code in another closure.
        is_former = function.__code__ is replacement.__code__ and function.__wrapped__ is original
        if function is original or (is_former and function is not replacement):
            bound = MethodType(replacement, transport)
            if proxy is None:
                setattr(transport, name, bound)
            else:
                proxy.__wrapped__ = bound
            return


def _parts_of(request: Any) -> Parts:
    url = request.url
    # raw_host is what goes to the resolver: already IDNA 2008, whatever the URL looked like.
    return url.scheme, url.raw_host.decode("ascii"), url.port


def _carries(request: Any, name: str) -> bool:
    # `in` finds out the encoding first, by decoding every header: instrumentation hands on a fresh copy each time.
    wanted = name.encode("ascii")
    return wanted in [key.lower() for key, _ in request.headers.raw if len(key) == len(wanted)]
