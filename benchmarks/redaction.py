"""Measure the cost of redaction for a span, a log record, a metric measurement, and a request.

Each measurement alternates between redaction on and off in a single process, so that the machine's load affects
both equally. The ratio is the median of on / off - 1 over all rounds.

Spans and log records are redacted when an exporter reads them in its own thread. The exporters for the
first figures read nothing, so those figures include only the cost in the request's thread. The last two figures
include the whole cost, because their exporters encode everything as OTLP.

    python -m benchmarks.redaction [--quick]
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, InMemoryLogRecordExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from otel_token_relay import Settings, context, install, uninstall, use_token
from otel_token_relay.redaction import installation

Figure = tuple[str, float, float | None]

TOKEN = (
    "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEiLCJ0eXAiOiJhdCtqd3QifQ."
    + "eyJpc3MiOiJodHRwczovL2lkcC5leGFtcGxlIiwic3ViIjoiYWxpY2UiLCJleHAiOjQ4NzAwMDAwMDB9" * 5
    + "."
    + "Qk7dW3xPz0sVbN5mL2rTyU8iOpA4sDfGhJkL1zXcVbNm" * 8
)


class _Nowhere(SpanExporter):
    """Discard all spans without reading them."""

    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None: ...


class _Encoding(_Nowhere):
    """Read and encode all spans, as the OTLP exporter does."""

    def export(self, spans: Any) -> SpanExportResult:
        encode_spans(spans).SerializeToString()
        return SpanExportResult.SUCCESS


class _NoLogs(InMemoryLogRecordExporter):
    def export(self, batch: Any) -> Any:
        return None


class _EncodingLogs(_NoLogs):
    def export(self, batch: Any) -> Any:
        encode_logs(batch).SerializeToString()


class _Switch:
    """Enable and disable redaction immediately, without losing its known tokens."""

    def __init__(self) -> None:
        installation.start(Settings())
        assert set(installation.states().values()) == {installation.HOOKED}
        self._hooks = [hook for patches in installation._hooks._applied.values() for hook in patches._done]
        self._watchers = list(context.token_watchers)

    def turn(self, *, on: bool) -> None:
        for owner, name, original, replacement in self._hooks:
            setattr(owner, name, replacement if on else original)
        context.token_watchers[:] = self._watchers if on else []


@contextmanager
def _switch() -> Iterator[_Switch]:
    switch = _Switch()
    try:
        yield switch
    finally:
        switch.turn(on=True)
        installation.stop()


def _compare(work: Callable[[int], None], rounds: int, size: int, settle: Callable[[], object] = lambda: None) -> float:
    """Return the median of on / off - 1 over *rounds* rounds, each of which times both.

    Args:
        work: A callable that performs the operation the given number of times.
        rounds: The number of rounds.
        size: The number of operations in one timing.
        settle: A callable that waits for other threads' work, whose duration is included.
    """
    ratios = []
    with _switch() as switch:
        gc.collect()
        gc.disable()
        try:
            for number in range(-4, rounds):
                took = {}
                for on in (number % 2 == 0, number % 2 == 1):
                    switch.turn(on=on)
                    with use_token(TOKEN):
                        work(max(1, size // 10))
                        settle()
                        begun = time.process_time_ns()
                        work(size)
                        settle()
                        took[on] = time.process_time_ns() - begun
                if number >= 0:  # the first rounds fill the caches
                    ratios.append(took[True] / took[False] - 1)
                gc.collect()
        finally:
            gc.enable()
    return statistics.median(ratios)


def _batching(processor: Callable[..., Any], exporter: Any) -> Any:
    """Return a batch processor whose queue never fills up, because dropped records would not be redacted or encoded."""
    return processor(exporter, max_queue_size=100_000, max_export_batch_size=512)


def span_ratio(rounds: int, size: int, exporter: SpanExporter | None = None) -> float:
    """Return the ratio for a span without a token, with 15 attributes and an event, in a BatchSpanProcessor."""
    provider = TracerProvider()
    provider.add_span_processor(_batching(BatchSpanProcessor, exporter or _Nowhere()))
    tracer = provider.get_tracer("benchmark", "1.0")

    def work(size: int) -> None:
        for number in range(size // 10):
            # Each trace has ten spans, as a typical request's trace does.
            with tracer.start_as_current_span("request"):
                for child in range(9):
                    make_span(10 * number + child)

    def make_span(number: int) -> None:
        span = tracer.start_span(
            "GET /users/{id}",
            attributes={
                "http.request.method": "GET",
                "url.scheme": "https",
                "server.address": "profile-service.example.com",
                "server.port": 443,
                "url.path": f"/users/{number}",
                "url.query": f"page={number}&sort=name",
                "network.protocol.version": "1.1",
                "user_agent.original": "python-httpx/0.28.1",
            },
        )
        span.set_attribute("http.route", "/users/{id}")
        span.set_attribute("http.response.status_code", 200)
        span.set_attribute("client.address", "10.0.0.17")
        span.set_attribute("enduser.id", f"user-{number}")
        span.set_attribute("db.system", "postgresql")
        span.set_attribute("db.statement", "SELECT id, name FROM users WHERE id = $1")
        span.set_attribute("cache.hit", False)
        span.add_event("cache miss", {"cache.key": f"users:{number}", "cache.size": number})
        span.end()

    try:
        return _compare(work, rounds, size, *([provider.force_flush] if exporter else []))
    finally:
        provider.shutdown()


def log_ratio(rounds: int, size: int, exporter: InMemoryLogRecordExporter | None = None) -> float:
    """Return the ratio for a log record without a token, with five attributes, in a BatchLogRecordProcessor."""
    provider = LoggerProvider()
    provider.add_log_record_processor(_batching(BatchLogRecordProcessor, exporter or _NoLogs()))
    logger = provider.get_logger("benchmark", "1.0")

    def work(size: int) -> None:
        for number in range(size):
            logger.emit(
                LogRecord(
                    timestamp=time.time_ns(),
                    severity_number=SeverityNumber.INFO,
                    severity_text="INFO",
                    body=f'10.0.0.17:51034 - "GET /users/{number} HTTP/1.1" 200',
                    attributes={
                        "code.file.path": "/srv/app/users.py",
                        "code.function.name": "read_user",
                        "code.line.number": 42,
                        "user": f"user-{number}",
                        "elapsed": 0.25,
                    },
                )
            )

    try:
        return _compare(work, rounds, size, *([provider.force_flush] if exporter else []))
    finally:
        provider.shutdown()


def metric_ratio(rounds: int, size: int) -> float:
    """Return the ratio for a histogram measurement without a token, with six attributes."""
    provider = MeterProvider([InMemoryMetricReader()])
    histogram = provider.get_meter("benchmark", "1.0").create_histogram("http.server.request.duration")
    attributes = {
        "http.request.method": "GET",
        "url.scheme": "https",
        "http.route": "/users/{id}",
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
        "server.address": "profile-service.example.com",
    }

    def work(size: int) -> None:
        for number in range(size):
            histogram.record(number % 100, attributes)

    try:
        return _compare(work, rounds, size)
    finally:
        provider.shutdown()


def request_ratio(rounds: int, size: int) -> float:
    """Return the ratio for an instrumented, in-process FastAPI request with three spans and a new token each time."""
    from fastapi import FastAPI
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    provider = TracerProvider()
    provider.add_span_processor(_batching(BatchSpanProcessor, _Nowhere()))
    app = FastAPI()

    @app.get("/users/{number}")
    async def read_user(number: int) -> dict[str, int]:
        return {"id": number}

    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
    numbers = itertools.count()

    async def nothing() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None: ...

    async def run(size: int) -> None:
        for number in itertools.islice(numbers, size):
            await app(_scope(number), nothing, send)

    loop = asyncio.new_event_loop()
    install(Settings())
    try:
        return _compare(lambda size: loop.run_until_complete(run(size)), rounds, size)
    finally:
        uninstall()
        loop.close()
        provider.shutdown()


def _scope(number: int) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": f"/users/{number}",
        "raw_path": f"/users/{number}".encode(),
        "query_string": b"page=2",
        "headers": [
            (b"host", b"profile-service.example.com"),
            (b"user-agent", b"python-httpx/0.28.1"),
            (b"authorization", f"Bearer {TOKEN[:-8]}{number:08}".encode()),
        ],
        "client": ("10.0.0.17", 51034),
        "server": ("10.0.0.1", 8000),
    }


def figures(quick: bool = False) -> list[Figure]:
    """Return each figure's name, ratio, and target; the target is ``None`` for a figure without a target."""
    rounds = 2 if quick else 200
    return [
        ("a span", span_ratio(rounds, 300), 0.15),
        ("a log record", log_ratio(rounds, 300), 0.15),
        ("a metric measurement", metric_ratio(rounds, 1000), 0.10),
        ("an in-process FastAPI request", request_ratio(rounds, 30), 0.04),
        ("a span, encoded as OTLP", span_ratio(rounds, 300, _Encoding()), None),
        ("a log record, encoded as OTLP", log_ratio(rounds, 300, _EncodingLogs()), None),
    ]


def main() -> None:
    """Measure and print the figures."""
    quick = "--quick" in sys.argv[1:]
    print("cost of redaction, relative to running without it; median of the rounds in one process")
    for name, ratio, target in figures(quick):
        result = "" if target is None else f"   target {target:.0%}" + ("" if ratio <= target else "  (missed)")
        print(f"  {name:32} {ratio:+7.1%}{result}")


if __name__ == "__main__":
    main()
