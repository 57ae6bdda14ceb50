"""aiohttp's client.

``ClientRequest.send`` runs once for each request that goes out, redirects and WebSocket handshakes
included. The request is the session's own, but errors and responses show its headers, so what is
put there is taken out when the headers have been written.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from otel_token_relay.patching import Function, Patches
from otel_token_relay.relay import Parts, Relay


def patch(module: ModuleType, relay: Relay, patches: Patches) -> None:
    """Hook the requests of *module*, which is ``aiohttp.client_reqrep``."""

    def build_send(original: Function) -> Function:
        async def send(self: Any, conn: Any) -> Any:
            # CONNECT goes to the proxy in clear text.
            value = None if self.method == "CONNECT" else relay.hop(self, _parts_of, _carries)
            if value is None:
                return await original(self, conn)
            headers, name = self.headers, relay.settings.header
            self._token_relay_covers = covered = headers.getall(name, [])
            headers[name] = value
            del value  # error trackers send the local variables of every frame that an exception passes
            try:
                return await original(self, conn)
            finally:
                del self._token_relay_covers
                _restore(headers, name, covered)

        return send

    def build_trace(original: Function) -> Function:
        def _on_headers_request_sent(self: Any, method: str, url: Any, headers: Any) -> Any:
            # Tracing callbacks are the application's telemetry: they see what it set itself.
            covered = getattr(self, "_token_relay_covers", None)
            if covered is not None:
                headers = headers.copy()
                _restore(headers, relay.settings.header, covered)
            return original(self, method, url, headers)

        return _on_headers_request_sent

    patches.wrap(module.ClientRequest, "send", build_send)
    patches.wrap(module.ClientRequest, "_on_headers_request_sent", build_trace)


def _restore(headers: Any, name: str, values: list[str]) -> None:
    headers.popall(name, None)
    for value in values:
        headers.add(name, value)


def _parts_of(request: Any) -> Parts:
    url = request.url
    return url.scheme, url.raw_host, url.port


def _carries(request: Any, name: str) -> bool:
    return name in request.headers
