"""The boundary for Tornado.

``RequestHandler._execute`` is the whole of a request, ``prepare`` and the messages of a WebSocket
included, and runs in a task of its own.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from opentelemetry import context as otel_context

from otel_token_relay.patching import Function, Patches
from otel_token_relay.relay import Relay
from otel_token_relay.servers.boundary import Boundary


def patch(module: ModuleType, relay: Relay, patches: Patches) -> None:
    """Hook the handlers of *module*, which is ``tornado.web``."""

    def build(original: Function) -> Function:
        async def _execute(self: Any, *args: Any, **kwargs: Any) -> Any:
            if relay.is_closed:
                return await original(self, *args, **kwargs)
            boundary = Boundary(self.request.headers.get_list, relay.settings)
            attached = otel_context.attach(boundary.context())
            try:
                return await original(self, *args, **kwargs)
            finally:
                boundary.close()
                otel_context.detach(attached)

        return _execute

    patches.wrap(module.RequestHandler, "_execute", build)
