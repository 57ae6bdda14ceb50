"""The hooks for httpx and httpx2 transports.

A hooked transport method runs once for each outgoing request, including redirects, retries, and authentication flows.
The hook does not modify the application's request object. Instead, the transport receives a copy.

A request might have to wait for a connection from the transport's pool. The hook therefore stores the decision in the
copy's extensions. When the request is sent, `otel_token_relay.clients.httpcore` checks the decision again and records
it.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from operator import itemgetter
from types import MethodType, ModuleType
from typing import Any, Final

from otel_token_relay.clients.connections import check_tls_name
from otel_token_relay.clients.httpcore import HOP, checks_when_sending
from otel_token_relay.clients.retrying import Result
from otel_token_relay.copying import shallow_copy
from otel_token_relay.origin import Origin, Target
from otel_token_relay.patching import Function, Patches, layers_of
from otel_token_relay.personal_responses import mark_httpx, mark_plain_httpx, marker
from otel_token_relay.relay import Exchange, HasHeader, Hop
from otel_token_relay.retries import DISCARD_SECONDS, MAX_DISCARDED, UNAUTHORIZED, read_rejection
from otel_token_relay.runtime import Runtime
from otel_token_relay.signed_urls import is_signed, is_signed_query

# These transports do not use connections, so their requests never wait.
SYNC_TRANSPORTS = ("MockTransport", "WSGITransport")
ASYNC_TRANSPORTS = ("MockTransport", "ASGITransport")


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the transport classes in *module* (``httpx`` or ``httpx2``)."""
    relay = runtime.relay
    headers_class, header = module.Headers, relay.settings.header
    line_name, wanted, length = header.encode("ascii"), relay.header.encode("ascii"), len(relay.header)
    replaces = relay.settings.on_conflict == "replace"
    fast_class = headers_class if _has_plain_lines(headers_class) else None
    personal = marker(relay.settings.protect_caches, mark_httpx if fast_class is None else mark_plain_httpx)
    hooked: dict[Function, Function] = {}

    def has_header(call: tuple[Any, Any], _: str) -> HasHeader:
        request = call[1]
        if (query := request.url.query) and is_signed_query(query.decode("ascii")):
            return "fixed"
        if "target" in request.extensions and is_signed(request.extensions["target"].decode("ascii")):
            return "fixed"
        headers = request.headers
        if type(headers) is fast_class:
            return wanted in map(_lower_name_of, headers._list)
        # The `in` operator would first decode every header to determine the encoding, which is rarely cached.
        return wanted in [key.lower() for key, _ in headers.raw if len(key) == length]

    def with_header(request: Any, value: str) -> Any:
        # The library's own copies of a request do not include the stream. This copy shares everything except the
        # headers, so the transport reads the original body.
        copy = shallow_copy(request)
        if type(request.headers) is fast_class and not replaces:
            copy.headers = headers = shallow_copy(request.headers)
            headers._list = [*headers._list, (line_name, wanted, value.encode("ascii"))]
        else:
            copy.headers = copied(request.headers, value)
        return copy

    def copied(headers: Any, value: str | None = None) -> Any:
        copy = headers_class(headers)
        if value is not None:
            copy[header] = value
        try:
            # The copy does not include the encoding. The encoding is set after the token's header, which must be
            # encoded as ASCII.
            if (encoding := headers._encoding) is not None:
                copy.encoding = encoding
        except AttributeError:
            pass
        return copy

    def with_hop(request: Any, hop: Hop) -> Any:
        copy = with_header(request, hop.reveal())
        copy.extensions = {**request.extensions, HOP: hop}
        if replaces:
            hop.replaced = [line for line in request.headers.raw if line[0].lower() == wanted]
        return copy

    def record_failed(transport: Any, hop: Hop) -> None:
        # A request that failed before being sent is not recorded as a hop. Without the httpcore hook, this function
        # cannot determine whether the request was sent, so it records the hop.
        if not hop.is_recorded and not checks_when_sending(relay, getattr(transport, "_pool", None)):
            hop.record()

    def build_pooled(original: Function) -> Function:
        def handle_request(self: Any, request: Any) -> Any:
            hop = relay.decide((self, request), _target_of_pooled, has_header, is_final=False)
            if hop is None:
                return original(self, request)
            try:
                response = original(self, with_hop(request, hop))
            except BaseException:
                record_failed(self, hop)
                raise
            if not hop.is_recorded:
                hop.record()
            return personal(response)

        hooked[original] = handle_request
        return handle_request

    def build_pooled_async(original: Function) -> Function:
        async def handle_async_request(self: Any, request: Any) -> Any:
            hop = relay.decide((self, request), _target_of_pooled, has_header, is_final=False, may_block=False)
            if isinstance(hop, Exchange):
                hop = await hop.run_async()
            if hop is None:
                return await original(self, request)
            try:
                response = await original(self, with_hop(request, hop))
            except BaseException:
                record_failed(self, hop)
                raise
            if not hop.is_recorded:
                hop.record()
            return personal(response)

        hooked[original] = handle_async_request
        return handle_async_request

    def frozen(request: Any) -> Any:
        """Return a copy of a request that the application cannot modify before a retry."""
        copy = shallow_copy(request)
        copy.headers, copy.extensions = copied(request.headers), {**request.extensions}
        return copy

    def build_retrying(original: Function, target_of: Callable[[tuple[Any, Any]], Target]) -> Function:
        def send(transport: Any, request: Any, hop: Hop) -> Any:
            try:
                response = original(transport, with_hop(request, hop))
            except BaseException:
                record_failed(transport, hop)
                raise
            if not hop.is_recorded:
                hop.record()
            return personal(response)

        def handle_request(self: Any, request: Any) -> Any:
            hop = relay.decide((self, request), target_of, has_header, is_final=False)
            if hop is None:
                return original(self, request)
            request = frozen(request)
            response = send(self, request, hop)
            if response.status_code != UNAUTHORIZED or not can_repeat(request, response, hop):
                return response
            try:
                again = hop.again(challenges_of(response)) if _hold(response, held_stream) else None
            except BaseException:
                response.close()
                raise
            if again is None:
                return response
            with Result(again) as result:
                response = send(self, request, again)
                result.status = response.status_code
            return response

        hooked[original] = handle_request
        return handle_request

    def build_retrying_async(original: Function, target_of: Callable[[tuple[Any, Any]], Target]) -> Function:
        async def send(transport: Any, request: Any, hop: Hop) -> Any:
            try:
                response = await original(transport, with_hop(request, hop))
            except BaseException:
                record_failed(transport, hop)
                raise
            if not hop.is_recorded:
                hop.record()
            return personal(response)

        async def handle_async_request(self: Any, request: Any) -> Any:
            hop = relay.decide((self, request), target_of, has_header, is_final=False, may_block=False)
            if isinstance(hop, Exchange):
                hop = await hop.run_async()
            if hop is None:
                return await original(self, request)
            request = frozen(request)
            response = await send(self, request, hop)
            if response.status_code != UNAUTHORIZED or not can_repeat(request, response, hop):
                return response
            try:
                is_held = await _hold_async(response, held_async_stream)
                again = await hop.again_async(challenges_of(response)) if is_held else None
            except BaseException:
                await response.aclose()
                raise
            if again is None:
                return response
            with Result(again) as result:
                response = await send(self, request, again)
                result.status = response.status_code
            return response

        hooked[original] = handle_async_request
        return handle_async_request

    def can_repeat(request: Any, response: Any, hop: Hop) -> bool:
        # In-memory bodies and empty bodies are instances of this class.
        is_in_memory = type(request.stream) is module.ByteStream
        return is_in_memory and hop.may_repeat(request.method) and read_rejection(challenges_of(response)) is not None

    def challenges_of(response: Any) -> list[str]:
        values: list[str] = response.headers.get_list("www-authenticate")
        return values

    has_retry = relay.policy.has_retry
    held_stream, held_async_stream = _held_streams(module) if has_retry else (None, None)

    # Error trackers capture the local variables of every frame in a traceback, so the value is deleted before the
    # request is sent.
    def build_sync(original: Function) -> Function:
        def handle_request(self: Any, request: Any) -> Any:
            value = relay.decide((self, request), _target_of, has_header)
            if value is None:
                return original(self, request)
            request = with_header(request, value)
            del value
            return personal(original(self, request))

        hooked[original] = handle_request
        return handle_request

    def build_async(original: Function) -> Function:
        async def handle_async_request(self: Any, request: Any) -> Any:
            value = relay.decide((self, request), _target_of, has_header, may_block=False)
            if isinstance(value, Exchange):
                value = await value.run_async()
            if value is None:
                return await original(self, request)
            request = with_header(request, value)
            del value
            return personal(await original(self, request))

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

    pooled, pooled_async, sync, asynchronous = build_pooled, build_pooled_async, build_sync, build_async
    if has_retry:  # avoid the cost of retries if no entry has ;retry=
        pooled, sync = (partial(build_retrying, target_of=locate) for locate in (_target_of_pooled, _target_of))
        pooled_async, asynchronous = (
            partial(build_retrying_async, target_of=locate) for locate in (_target_of_pooled, _target_of)
        )
    patches.wrap(module.HTTPTransport, "handle_request", pooled)
    patches.wrap(module.AsyncHTTPTransport, "handle_async_request", pooled_async)
    for name in SYNC_TRANSPORTS:
        patches.wrap(getattr(module, name), "handle_request", sync)
    for name in ASYNC_TRANSPORTS:
        patches.wrap(getattr(module, name), "handle_async_request", asynchronous)
    for client, method in ((module.Client, "handle_request"), (module.AsyncClient, "handle_async_request")):
        # Without this private method, requests from instrumented transports do not carry the token.
        if "_transport_for_url" in vars(client):
            patches.wrap(client, "_transport_for_url", router(method))


def _held_streams(module: ModuleType) -> tuple[Any, Any]:
    """Return stream classes for the body of a rejected response. Part of the body is already in memory."""

    class HeldStream(module.SyncByteStream):  # type: ignore[misc,name-defined]
        def __init__(self, chunks: list[bytes], rest: Any, stream: Any) -> None:
            self._chunks, self._rest, self._stream = chunks, rest, stream

        def __iter__(self) -> Iterator[bytes]:
            yield from self._chunks
            yield from self._rest

        def close(self) -> None:
            self._stream.close()

    class HeldAsyncStream(module.AsyncByteStream):  # type: ignore[misc,name-defined]
        def __init__(self, chunks: list[bytes], rest: Any, stream: Any) -> None:
            self._chunks, self._rest, self._stream = chunks, rest, stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            for chunk in self._chunks:
                yield chunk
            async for chunk in self._rest:
                yield chunk

        async def aclose(self) -> None:
            await self._stream.aclose()

    return HeldStream, HeldAsyncStream


def _hold(response: Any, held_stream: Any) -> bool:
    """Read a rejected response's body so that the connection is free while a new token is being obtained.

    The application can still read the response.

    Returns:
        Whether the entire body was read. ``False`` if the body is too long or arrives too slowly.
    """
    deadline = time.monotonic() + DISCARD_SECONDS
    stream = response.stream
    chunks: list[bytes] = []
    rest, size = iter(stream), 0
    response.stream = held_stream(chunks, rest, stream)
    for chunk in rest:
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_DISCARDED or time.monotonic() > deadline:
            return False
    stream.close()
    return True


async def _hold_async(response: Any, held_stream: Any) -> bool:
    """Read the body of a rejected asynchronous response, as `_hold` does for a synchronous response."""
    deadline = time.monotonic() + DISCARD_SECONDS
    stream = response.stream
    chunks: list[bytes] = []
    rest, size = aiter(stream), 0
    response.stream = held_stream(chunks, rest, stream)
    async for chunk in rest:
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_DISCARDED or time.monotonic() > deadline:
            return False
    await stream.aclose()
    return True


_lower_name_of: Final = itemgetter(1)


def _has_plain_lines(headers_class: Any) -> bool:
    """Return whether a headers class stores each line as a tuple of the original name, lowercase name, and value."""
    lines = getattr(headers_class({"Name": "value"}), "_list", None)
    return lines == [(b"Name", b"name", b"value")]


def _reach_through(transport: Any, name: str, hooked: Mapping[Function, Function]) -> None:
    """Hook a transport instance that stores a reference to the unhooked method.

    OpenTelemetry's ``instrument_client`` permanently stores a proxy for the class's current method on the instance.
    """
    *_, (proxy, method) = layers_of(vars(transport)[name])
    function = getattr(method, "__func__", None)
    if function is None or method.__self__ is not transport:
        return
    for original, replacement in hooked.items():
        # A function from a previous installation has the same code but a different closure, and no longer has any
        # effect.
        is_former = function.__code__ is replacement.__code__ and function.__wrapped__ is original
        if function is original or (is_former and function is not replacement):
            bound = MethodType(replacement, transport)
            if proxy is None:
                setattr(transport, name, bound)
            else:
                proxy.__wrapped__ = bound
            return


# Matches a path with an optional query (RFC 9112, section 3.2.1). A path with two leading slashes does not match,
# because the slashes could introduce an authority.
_is_path: Final = re.compile(rb"/(?![/\\])[!-~]*").fullmatch
# The classes of httpcore's network backends that have been used so far. These backends always connect to the requested
# host.
_backends: Final[set[type]] = set()


def _target_of_pooled(call: tuple[Any, Any]) -> Target:
    pool = call[0]._pool
    try:
        if pool._uds is not None:
            raise ValueError("the transport connects to a Unix socket")
        if type(pool._network_backend) not in _backends:
            _learn(type(pool._network_backend))
    except AttributeError:
        if _is_httpcores(type(pool)):
            raise
        # The application provides the pool, so the URL determines the target, as with `MockTransport`.
    return _target_of(call)


def _target_of(call: tuple[Any, Any]) -> Target:
    request = call[1]
    if request.method == "CONNECT":
        raise ValueError("a CONNECT request is sent to a proxy")
    url, extensions = request.url, request.extensions
    # The resolver receives `raw_host`, which is always encoded according to IDNA 2008.
    target = url.scheme, url.raw_host.decode("ascii"), url.port
    if "target" in extensions:
        _check_request_target(extensions["target"], request, target)
    if "sni_hostname" in extensions:
        check_tls_name(extensions["sni_hostname"] or target[1], target[1])
    return target


def _learn(backend: type) -> None:
    """Add a network backend's class to `_backends`.

    An application's classes are rejected, because the set would prevent them from being garbage-collected.
    """
    if not _is_httpcores(backend):
        raise ValueError("the connection is not opened by httpcore")
    _backends.add(backend)


def _is_httpcores(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("httpcore", "httpcore2")


def _check_request_target(request_target: Any, request: Any, target: Target) -> None:
    """Check a request target that replaces the URL's path.

    A forward proxy would read the destination from the request target.

    Raises:
        ValueError: The request target is not a path, or the ``Host`` header does not match the URL's host.
    """
    if not isinstance(request_target, bytes) or (request_target != b"*" and not _is_path(request_target)):
        raise ValueError("the request target is not a path")
    hosts = [value for key, value in request.headers.raw if key.lower() == b"host"]
    if [Origin.parse(f"{target[0]}://{host.decode('ascii')}") for host in hosts] != [Origin.of(*target)]:
        raise ValueError("the Host header does not match the URL's host")
