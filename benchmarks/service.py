"""A service for the loopback measurement, which runs with OpenTelemetry's automatic instrumentation.

The service listens on the socket with the given file descriptor. If a URL is given, the service calls it for each
request and returns the response.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

import httpx
import uvicorn
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult


class _Nowhere(SpanExporter):
    """Discard all spans, so that only the cost before export is measured."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def build(upstream: str | None) -> FastAPI:
    """Return an application that calls *upstream*, or responds itself if *upstream* is ``None``."""
    app = FastAPI()
    client = httpx.AsyncClient()

    @app.get("/profile")
    async def profile() -> dict[str, str]:
        if upstream is None:
            return {"name": "Alice"}
        response = await client.get(upstream)
        response.raise_for_status()
        return dict(response.json())

    return app


def main(descriptor: str, upstream: str | None = None) -> None:
    """Serve until the process ends."""
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        raise SystemExit("the SDK is not configured: start this program with automatic instrumentation")
    provider.add_span_processor(BatchSpanProcessor(_Nowhere()))
    server = uvicorn.Server(uvicorn.Config(build(upstream), log_level="warning", access_log=False))
    server.run(sockets=[socket.socket(fileno=int(descriptor))])
