"""Fixtures for the client tests: telemetry, listed and unlisted servers, and a server on a Unix socket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_token_relay import Settings, install
from tests.support.loopback import PLACEHOLDER, Party, Proxy, party, proxy, unix_party
from tests.support.rejecting_tokens import Guarded, guarded, turn_on
from tests.support.token_endpoint import Endpoint


@pytest.fixture
def telemetry(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TracerProvider, InMemorySpanExporter]]:
    """Provide a tracer provider that keeps its spans, and enable instrumentation that captures every header."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_REQUEST", ".*")
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider, exporter
    provider.shutdown()


@pytest.fixture
def listed() -> Iterator[Party]:
    """Run a server that is listed as a destination."""
    with party() as one:
        install(Settings(destinations=[one.url]))
        yield one


@pytest.fixture
def unlisted() -> Iterator[Party]:
    """Run a server that is not listed as a destination."""
    with party() as one:
        yield one


@pytest.fixture
def between() -> Iterator[Proxy]:
    """Run a forward proxy."""
    with proxy() as one:
        yield one


@pytest.fixture
def served() -> Iterator[tuple[Party, str]]:
    """Run a server on a Unix socket whose placeholder host is listed, and return the server and the socket's path."""
    with unix_party() as pair:
        install(Settings(destinations=[PLACEHOLDER, "https://localhost"]))
        yield pair


@pytest.fixture
def rejecting(numbered: Endpoint, serving_process: None) -> Iterator[Guarded]:
    """Run a listed server that rejects the first token that is issued for it."""
    with guarded() as server:
        turn_on(numbered, server)
        yield server
