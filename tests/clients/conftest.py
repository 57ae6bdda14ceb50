"""Fixtures for the clients: telemetry, and servers that are listed, not listed, or reached over a Unix socket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_token_relay import Settings, install
from tests.support.loopback import PLACEHOLDER, Party, Proxy, party, proxy, unix_party


@pytest.fixture
def telemetry(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TracerProvider, InMemorySpanExporter]]:
    """A tracer provider that keeps its spans, and instrumentation that captures every header."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_REQUEST", ".*")
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider, exporter
    provider.shutdown()


@pytest.fixture
def listed() -> Iterator[Party]:
    """A server that is on the list."""
    with party() as one:
        install(Settings(destinations=[one.url]))
        yield one


@pytest.fixture
def unlisted() -> Iterator[Party]:
    """A server that is not on the list."""
    with party() as one:
        yield one


@pytest.fixture
def between() -> Iterator[Proxy]:
    """A forward proxy."""
    with proxy() as one:
        yield one


@pytest.fixture
def served() -> Iterator[tuple[Party, str]]:
    """A server on a Unix socket whose placeholder host is listed, and the path of the socket."""
    with unix_party() as pair:
        install(Settings(destinations=[PLACEHOLDER, "https://localhost"]))
        yield pair
