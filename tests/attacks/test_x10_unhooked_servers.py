"""x10: a server without a boundary never sends the service's own token for a request without a token."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
import requests
from opentelemetry import context as otel_context
from opentelemetry.instrumentation.asgi import asgi_getter
from opentelemetry.instrumentation.wsgi import wsgi_getter
from opentelemetry.propagators.textmap import default_getter

from otel_token_relay import Settings, context, install
from otel_token_relay.configured_exchange import build_token_source
from otel_token_relay.propagator import TokenRelayPropagator
from tests.support.loopback import Party, party
from tests.support.token_endpoint import SECRET, serving

OWN = ["Bearer service.for.billing"]


@pytest.fixture
def billing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Party]:
    build_token_source.cache_clear()
    monkeypatch.setattr(context, "has_served", False)
    with serving() as endpoint, party() as billing:
        install(
            Settings(
                destinations=(f"{billing.url};audience=billing;without-user=client",),
                token_endpoint=endpoint.url,
                client_id="user-service",
                client_secret=SECRET,
            )
        )
        yield billing
    build_token_source.cache_clear()


def environ() -> dict[str, Any]:
    made: dict[str, Any] = {"wsgi.input": io.BytesIO()}
    setup_testing_defaults(made)
    return made


SCOPE = {"type": "http", "asgi": {"version": "3.0"}, "path": "/", "headers": [(b"accept", b"*/*")]}


@contextmanager
def extracted(carrier: Any, getter: Any) -> Iterator[None]:
    attached = otel_context.attach(TokenRelayPropagator(Settings()).extract(carrier, getter=getter))
    try:
        yield
    finally:
        otel_context.detach(attached)


@pytest.mark.parametrize(
    ("carrier", "getter"),
    [pytest.param(environ(), wsgi_getter, id="WSGI"), pytest.param(SCOPE, asgi_getter, id="ASGI")],
)
def test_a_server(billing: Party, carrier: Any, getter: Any) -> None:
    """After a server without a boundary has served a request, work without a context gets no token either."""
    requests.get(billing.url)
    with extracted(carrier, getter):
        requests.get(billing.url)
    requests.get(billing.url)
    assert billing.lines() == [OWN, [], []]


@pytest.mark.parametrize("name", ["Host", "host", "User-Agent", ":authority"])
def test_the_headers_of_a_request(billing: Party, name: str) -> None:
    """Extracting a request's headers disables the service's own token, but extracting a message does not."""
    with extracted({name: "user-service"}, default_getter):
        requests.get(billing.url)
    for message in ({"traceparent": "00-x"}, {}, {"type": "x", "headers": "y", "wsgi.input": "z", "asgi": "3.0"}):
        with extracted(message, default_getter):
            requests.get(billing.url)
    assert billing.lines() == [[], OWN, OWN, OWN]
