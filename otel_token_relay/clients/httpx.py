"""httpx and httpx2: every transport that sends, one request at a time.

Redirects, retries of the application and authentication flows all pass here once for each
request that goes out. The caller's request is not touched: the transport gets a copy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from types import MethodType, ModuleType
from typing import Any, Final

from otel_token_relay.clients.connections import check_tls_name
from otel_token_relay.origin import Origin, Target
from otel_token_relay.patching import Function, Patches, layers_of
from otel_token_relay.runtime import Runtime

SYNC_TRANSPORTS = ("HTTPTransport", "MockTransport", "WSGITransport")
ASYNC_TRANSPORTS = ("AsyncHTTPTransport", "MockTransport", "ASGITransport")

PartsOf = Callable[[tuple[Any, Any]], Target]


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the transports of *module*, which is httpx or httpx2."""
    relay = runtime.relay
    headers_class, header = module.Headers, relay.settings.header
    wanted, length = relay.header.encode("ascii"), len(relay.header)
    hooked: dict[Function, Function] = {}

    def has_header(call: tuple[Any, Any], _: str) -> bool:
        # `in` finds out the encoding first, by decoding every header: instrumentation hands on a fresh copy each time.
        return wanted in [key.lower() for key, _ in call[1].headers.raw if len(key) == length]

    def with_header(request: Any, value: str) -> Any:
        # The library's own way to copy a request drops its stream. Everything but the headers
        # is shared, so that a body is still read from where it lies.
        headers = headers_class(request.headers)
        headers[header] = value
        try:
            # The copy loses it. It is set after our header, which must be encoded as ASCII.
            if (encoding := request.headers._encoding) is not None:
                headers.encoding = encoding
        except AttributeError:
            pass
        copy = object.__new__(type(request))
        copy.__dict__ = fields = request.__dict__.copy()
        fields["headers"] = headers
        return copy

    # Error trackers send the local variables of every frame that an exception passes, so ours drop the
    # value before the request is sent.
    def build_sync(target_of: PartsOf, original: Function) -> Function:
        def handle_request(self: Any, request: Any) -> Any:
            value = relay.decide((self, request), target_of, has_header)
            if value is not None:
                request = with_header(request, value)
                del value
            return original(self, request)

        hooked[original] = handle_request
        return handle_request

    def build_async(target_of: PartsOf, original: Function) -> Function:
        async def handle_async_request(self: Any, request: Any) -> Any:
            value = relay.decide((self, request), target_of, has_header)
            if value is not None:
                request = with_header(request, value)
                del value
            return await original(self, request)

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
        target_of = _parts_of_pooled if name == "HTTPTransport" else _target_of
        patches.wrap(getattr(module, name), "handle_request", partial(build_sync, target_of))
    for name in ASYNC_TRANSPORTS:
        target_of = _parts_of_pooled if name == "AsyncHTTPTransport" else _target_of
        patches.wrap(getattr(module, name), "handle_async_request", partial(build_async, target_of))
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


# A path with a query (RFC 9112, section 3.2.1). Two slashes at the start could be read as an authority.
_is_path: Final = re.compile(rb"/(?![/\\])[!-~]*").fullmatch
# The network backends of httpcore that were seen so far. They connect to the host that they are given.
_backends: Final[set[type]] = set()


def _parts_of_pooled(call: tuple[Any, Any]) -> Target:
    pool = call[0]._pool
    try:
        if pool._uds is not None:
            raise ValueError("the transport connects to a Unix socket")
        if type(pool._network_backend) not in _backends:
            _learn(type(pool._network_backend))
    except AttributeError:
        if _is_httpcores(type(pool)):
            raise
        # A pool that the application defined is judged by the URL, like `MockTransport`.
    return _target_of(call)


def _target_of(call: tuple[Any, Any]) -> Target:
    request = call[1]
    url, extensions = request.url, request.extensions
    # raw_host is what goes to the resolver: already IDNA 2008, whatever the URL looked like.
    parts = url.scheme, url.raw_host.decode("ascii"), url.port
    if "target" in extensions:
        _check_target(extensions["target"], request, parts)
    if "sni_hostname" in extensions:
        check_tls_name(extensions["sni_hostname"] or parts[1], parts[1])
    return parts


def _learn(backend: type) -> None:
    """Add a network backend of httpcore. Other classes are not added, so that they are not kept alive here."""
    if not _is_httpcores(backend):
        raise ValueError("the transport is not connected by httpcore")
    _backends.add(backend)


def _is_httpcores(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("httpcore", "httpcore2")


def _check_target(target: Any, request: Any, parts: Target) -> None:
    """Check the target that is sent instead of the URL's path. A forward proxy takes the destination from it.

    Raises:
        ValueError: The target is not a path, or the ``Host`` header is not the URL's host.
    """
    if not isinstance(target, bytes) or (target != b"*" and not _is_path(target)):
        raise ValueError("the request target is not a path")
    hosts = [value for key, value in request.headers.raw if key.lower() == b"host"]
    if [Origin.parse(f"{parts[0]}://{host.decode('ascii')}") for host in hosts] != [Origin.of(*parts)]:
        raise ValueError("the Host header is not the host of the URL")
