"""httpx and httpx2: every transport that sends, one request at a time.

Redirects, retries of the application and authentication flows all pass here once for each
request that goes out. The caller's request is not touched: the transport gets a copy.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from otel_token_relay.patching import Function, Patches
from otel_token_relay.relay import Parts, Relay

SYNC_TRANSPORTS = ("HTTPTransport", "MockTransport", "WSGITransport")
ASYNC_TRANSPORTS = ("AsyncHTTPTransport", "MockTransport", "ASGITransport")


def patch(module: ModuleType, relay: Relay, patches: Patches) -> None:
    """Hook the transports of *module*, which is httpx or httpx2."""
    headers_class = module.Headers

    def with_header(request: Any, value: str) -> Any:
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
            value = relay.hop(request, _parts_of, _carries)
            return original(self, request if value is None else with_header(request, value))

        return handle_request

    def build_async(original: Function) -> Function:
        async def handle_async_request(self: Any, request: Any) -> Any:
            value = relay.hop(request, _parts_of, _carries)
            return await original(self, request if value is None else with_header(request, value))

        return handle_async_request

    for name in SYNC_TRANSPORTS:
        patches.wrap(getattr(module, name), "handle_request", build_sync)
    for name in ASYNC_TRANSPORTS:
        patches.wrap(getattr(module, name), "handle_async_request", build_async)


def _parts_of(request: Any) -> Parts:
    url = request.url
    # raw_host is what goes to the resolver: already IDNA 2008, whatever the URL looked like.
    return url.scheme, url.raw_host.decode("ascii"), url.port


def _carries(request: Any, name: str) -> bool:
    # `in` finds out the encoding first, by decoding every header: instrumentation hands on a fresh copy each time.
    wanted = name.encode("ascii")
    return wanted in [key.lower() for key, _ in request.headers.raw if len(key) == len(wanted)]
