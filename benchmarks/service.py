"""One service of the loopback measurement, run under ``opentelemetry-instrument``.

``python -m benchmarks.service FD [URL]``: serve on the listening socket FD; with a URL, answer each
request with what that URL says to one of our own.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence

import httpx
import uvicorn
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult


class _Nowhere(SpanExporter):
    """What export costs before the wire."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def build(upstream: str | None) -> FastAPI:
    """Give the application: it answers by itself, or asks upstream."""
    app = FastAPI()
    client = httpx.AsyncClient()

    @app.get("/profile")
    async def profile() -> dict[str, str]:
        if upstream is None:
            return {"name": "Alice"}
        answer = await client.get(upstream)
        answer.raise_for_status()
        return dict(answer.json())

    return app


def main(descriptor: str, upstream: str | None = None) -> None:
    """Serve until the process is ended."""
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        raise SystemExit("the SDK is not on: run this under opentelemetry-instrument")
    provider.add_span_processor(BatchSpanProcessor(_Nowhere()))
    server = uvicorn.Server(uvicorn.Config(build(upstream), log_level="warning", access_log=False))
    server.run(sockets=[socket.socket(fileno=int(descriptor))])


if __name__ == "__main__":
    main(*sys.argv[1:])
