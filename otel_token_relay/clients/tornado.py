"""The hooks for ``SimpleAsyncHTTPClient``, the default implementation of Tornado's ``AsyncHTTPClient``.

Tornado opens a new connection for each hop, and copies a request's headers to the next hop if the server responds with
a redirect. The hook therefore adds the token's header only while the headers are being written.

When a request finishes, the client starts the next queued request in the finished request's context. The hook for
``fetch_impl`` therefore stores each request's own context, and the hook for ``run`` restores the stored context.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from opentelemetry import context as otel_context

from otel_token_relay.clients.connections import is_tcp
from otel_token_relay.clients.retrying import check_target, is_repeatable
from otel_token_relay.origin import Origin, Target
from otel_token_relay.patching import Function, Patches
from otel_token_relay.personal_responses import CACHE_CONTROL, MARK, NO_STORE
from otel_token_relay.relay import Exchange, HasHeader, Hop
from otel_token_relay.retries import UNAUTHORIZED
from otel_token_relay.runtime import Runtime
from otel_token_relay.signed_urls import is_signed, is_signed_query

_CONTEXT_NAME = "_token_relay_context"
_HOP_NAME = "_token_relay_hop"
_AGAIN_NAME = "_token_relay_again"
# The lowest status code of a final response.
_FINAL = 200
# The status code that Tornado reports if a request fails without a response.
_FAILED = 599


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the client and connection classes in *module* (``tornado.simple_httpclient``)."""
    relay = runtime.relay

    class WithToken(module.httputil.HTTPHeaders):  # type: ignore[misc,name-defined]
        """A request's headers together with the token's header, for use while the headers are being written.

        An instance shares the original headers' state. A copy is unsuitable, because Tornado's copy method rejects some
        values that Tornado would otherwise send. In addition, headers that Tornado sets while writing must remain on
        the request.
        """

        __slots__ = ("_headers", "_ours")

        def __init__(self, headers: Any, name: str, value: str) -> None:
            self.__dict__ = headers.__dict__  # type: ignore[misc]
            self._headers = headers
            self._ours = name, value

        def get_all(self) -> Iterator[tuple[str, str]]:
            for name, value in self._headers.get_all():
                if name.lower() != relay.header:  # the token's header replaces this header
                    yield name, value
            yield self._ours

    def build_fetch(original: Function) -> Function:
        def fetch_impl(self: Any, request: Any, callback: Any) -> Any:
            # Tornado creates a new proxy object for each fetch.
            vars(request)[_CONTEXT_NAME] = otel_context.get_current()
            return original(self, request, callback)

        return fetch_impl

    def build_run(original: Function) -> Function:
        async def run(self: Any) -> Any:
            # If the request fails, Tornado's exception and the exception's frames form a reference cycle. The request
            # and this frame must not refer to the context. Otherwise, the token would remain in memory until the
            # garbage collector runs.
            context = vars(self.request).pop(_CONTEXT_NAME, None)
            if context is None:  # the request started before the hooks were installed
                return await original(self)
            attached = otel_context.attach(context)
            del context
            try:
                # The headers are written in a synchronous function, which cannot wait for a token.
                if relay.policy.has_exchanged and (target := _read_target(self.request.url)) is not None:
                    has_signature = is_signed(self.request.url)
                    held: HasHeader = "fixed" if has_signature else relay.header in self.request.headers
                    await relay.prepare_hop(target, has_header=held)
                return await original(self)
            finally:
                otel_context.detach(attached)
                del attached
                vars(self).pop(_HOP_NAME, None)

        return run

    def value_of(connection: Any, headers: Any) -> str | None:
        """Return the header value for a request that may be retried."""
        call = connection, headers
        hop: Hop | None = vars(connection.request).pop(_AGAIN_NAME, None)
        if hop is not None:
            check_target(hop, _target_of, call)
        else:
            found = relay.decide(call, _target_of, _has_header, is_final=False, may_block=False)
            hop = found.give_up() if isinstance(found, Exchange) else found
            vars(connection)[_HOP_NAME] = hop
        return hop.reveal() if hop is not None and hop.confirm() else None

    async def send_once_more(connection: Any, hop: Hop, original: Function, first_line: Any, headers: Any) -> None:
        again = await hop.again_async(headers.get_list("WWW-Authenticate"))
        if again is None:
            await original(connection, first_line, headers)
            return
        callback = connection.final_callback
        if callback is None:  # the request has already timed out
            again.settle(is_accepted=False)
            return

        def finish(response: Any) -> None:
            again.settle(is_accepted=response.code not in (UNAUTHORIZED, _FAILED))
            callback(response)

        request, client = connection.request, connection.client
        vars(request)[_AGAIN_NAME] = again
        try:
            client.fetch_impl(request, finish)
        except BaseException:
            again.settle(is_accepted=False)
            raise
        connection.final_callback = None
        connection._remove_timeout()
        # The retry takes over the first attempt's slot. Otherwise, requests that are waiting for the retry's result
        # could occupy all slots.
        client.queue.rotate(1)
        connection._release()
        # Tornado never reuses connections, so this connection can be detached. Otherwise, Tornado would pass a body
        # that has already arrived to the application's streaming callback.
        connection.connection.detach()
        connection._on_end_request()

    def build_headers(original: Function) -> Function:
        def headers_received(self: Any, first_line: Any, headers: Any) -> Any:
            hop: Hop | None = vars(self).pop(_HOP_NAME, None) if first_line.code >= _FINAL else None
            request = self.request
            if (
                hop is None
                or first_line.code != UNAUTHORIZED
                or request.body_producer is not None
                or not is_repeatable(request.body)
                or not hop.may_repeat(request.method)
            ):
                return original(self, first_line, headers)
            return send_once_more(self, hop, original, first_line, headers)

        return headers_received

    def build_connection(original: Function) -> Function:
        def _create_connection(self: Any, stream: Any) -> Any:
            connection = original(self, stream)
            write_headers = connection.write_headers

            def write_with_token(start_line: Any, headers: Any, *args: Any, **kwargs: Any) -> Any:
                # Headers are written only once, so the wrapper is removed to prevent a reference cycle with the
                # connection.
                connection.__dict__.pop("write_headers", None)
                value: Any
                if relay.policy.has_retry:
                    value = value_of(self, headers)
                else:
                    value = relay.decide((self, headers), _target_of, _has_header, may_block=False)
                    if isinstance(value, Exchange):
                        value = value.give_up()
                if value is not None:
                    headers = WithToken(headers, relay.settings.header, value)
                    setattr(self, MARK, True)
                    # Error trackers capture the local variables of every frame in a traceback. `WithToken` exposes the
                    # token's header only while the headers are being written.
                    del value
                return write_headers(start_line, headers, *args, **kwargs)

            connection.write_headers = write_with_token
            return connection

        return _create_connection

    def build_forbidding(original: Function) -> Function:
        def headers_received(self: Any, first_line: Any, headers: Any) -> Any:
            if MARK in self.__dict__:
                headers[CACHE_CONTROL] = NO_STORE
            return original(self, first_line, headers)

        return headers_received

    def build_received(original: Function) -> Function:
        receive = build_forbidding(original) if relay.settings.protect_caches else original
        return build_headers(receive) if relay.policy.has_retry else receive

    def _target_of(call: tuple[Any, Any]) -> Target:
        hop = call[0]
        if not is_tcp(hop.stream.socket):  # a custom resolver can return a Unix socket's address
            raise ValueError("the connection is not a TCP connection")
        _, port = module.httputil.split_host_and_port(hop.parsed.netloc.rpartition("@")[2])
        # The resolver also encodes the host according to IDNA 2003.
        return hop.parsed.scheme, hop.parsed_hostname.encode("idna").decode("ascii"), port

    patches.wrap(module.SimpleAsyncHTTPClient, "fetch_impl", build_fetch)
    patches.wrap(module._HTTPConnection, "run", build_run)
    patches.wrap(module._HTTPConnection, "_create_connection", build_connection)
    if relay.settings.protect_caches or relay.policy.has_retry:
        patches.wrap(module._HTTPConnection, "headers_received", build_received, ("self", "first_line", "headers"))


def _read_target(url: str) -> Target | None:
    """Return a request's expected target. The decision is made later, when the connection is open."""
    origin = Origin.parse(url)
    return None if origin is None else (origin.scheme, origin.host, origin.port)


def _has_header(call: tuple[Any, Any], name: str) -> HasHeader:
    if (query := call[0].parsed.query) and is_signed_query(query):
        return "fixed"
    return name in call[1]
