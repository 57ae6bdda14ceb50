"""Tornado's AsyncHTTPClient, in its standard implementation, which needs no library.

Every hop is a connection of its own, and its headers are written once, so ours is added to a copy
there: a header of the request itself would go along with a redirect.

The client starts waiting requests from whichever request is done first, in that one's context. So
the context is taken in ``fetch`` and put back in ``run``.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from opentelemetry import context as otel_context

from otel_token_relay.patching import Function, Patches
from otel_token_relay.relay import Parts, Relay

_CONTEXT_NAME = "_token_relay_context"


def patch(module: ModuleType, relay: Relay, patches: Patches) -> None:
    """Hook the connections of *module*, which is ``tornado.simple_httpclient``."""

    def build_fetch(original: Function) -> Function:
        def fetch_impl(self: Any, request: Any, callback: Any) -> Any:
            # A proxy of the caller's request, made for this one fetch.
            vars(request)[_CONTEXT_NAME] = otel_context.get_current()
            return original(self, request, callback)

        return fetch_impl

    def build_run(original: Function) -> Function:
        async def run(self: Any) -> Any:
            context = vars(self.request).get(_CONTEXT_NAME)
            if context is None or relay.is_closed:
                return await original(self)
            attached = otel_context.attach(context)
            try:
                return await original(self)
            finally:
                otel_context.detach(attached)

        return run

    def build_connection(original: Function) -> Function:
        def _create_connection(self: Any, stream: Any) -> Any:
            connection = original(self, stream)
            write_headers = connection.write_headers

            def write_with_token(start_line: Any, headers: Any, *args: Any, **kwargs: Any) -> Any:
                value = relay.hop((self, headers), _parts_of, _carries)
                if value is not None:
                    headers = headers.copy()
                    headers[relay.settings.header] = value
                return write_headers(start_line, headers, *args, **kwargs)

            connection.write_headers = write_with_token
            return connection

        return _create_connection

    def _parts_of(call: tuple[Any, Any]) -> Parts:
        hop = call[0]
        _, port = module.httputil.split_host_and_port(hop.parsed.netloc.rpartition("@")[2])
        # As the resolver will encode it, which is IDNA 2003.
        return hop.parsed.scheme, hop.parsed_hostname.encode("idna").decode("ascii"), port

    patches.wrap(module.SimpleAsyncHTTPClient, "fetch_impl", build_fetch)
    patches.wrap(module._HTTPConnection, "run", build_run)
    patches.wrap(module._HTTPConnection, "_create_connection", build_connection)


def _carries(call: tuple[Any, Any], name: str) -> bool:
    return name in call[1]
