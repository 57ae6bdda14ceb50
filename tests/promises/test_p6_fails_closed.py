"""P6: a mistake is reported and relays no token, and the application continues to run."""

from __future__ import annotations

import logging
import sys
from typing import Any

import httpx
import pytest
import urllib3
from opentelemetry import metrics, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider

from otel_token_relay import Settings, TokenRelayPropagator, install, use_token
from otel_token_relay.errors import TokenUnavailable
from otel_token_relay.installation import hook_states, propagator_from_env
from otel_token_relay.reasons import Reason
from tests.support.clients import Client, every_client
from tests.support.loopback import Party

TOKEN = "p6-sample-token"
LINE = [f"Bearer {TOKEN}"]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Capture the package's log at debug level and above."""
    caplog.set_level(logging.DEBUG, "otel_token_relay")
    return caplog


def errors(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    "bad",
    [
        "https://*good.example",
        "http://user:pw@127.0.0.1",
        "ftp://127.0.0.1",
        "http://127.0.0.1/path",
        "http://a;audience",
    ],
)
def test_an_invalid_entry_is_skipped_and_reported(
    bad: str, one: Party, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One error identifies the invalid entry, and the other entry still works."""
    monkeypatch.setenv("OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS", f"{bad},{one.url}")
    install()
    with use_token(TOKEN):
        httpx.get(one.url, trust_env=False)

    assert one.lines() == [LINE]
    assert len(errors(log)) == 1
    assert "is skipped" in errors(log)[0]
    assert "pw" not in errors(log)[0]


def test_an_invalid_header_name_relays_no_token(
    one: Party, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the configured header name is invalid, no destination gets the token."""
    monkeypatch.setenv("OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS", one.url)
    monkeypatch.setenv("OTEL_PYTHON_TOKEN_RELAY_HEADER", "Host")
    install()
    with use_token(TOKEN):
        httpx.get(one.url, trust_env=False)

    assert not one.requests[0].holds(TOKEN)
    assert len(errors(log)) == 1


def test_the_entry_point_never_raises(monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture) -> None:
    """If the entry point fails, it returns a propagator that relays nothing, and the application starts."""

    def fail(settings: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(sys.modules["otel_token_relay.installation"], "_install_hooks", fail)
    propagator = propagator_from_env()

    assert isinstance(propagator, TextMapPropagator)
    assert isinstance(propagator, TokenRelayPropagator)
    assert propagator.relay.settings.entries == ()
    assert "no tokens are relayed" in errors(log)[0]


def test_a_changed_library_is_not_patched(
    one: Party, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a library's method is missing, one error is logged, and only this client relays no token."""
    with monkeypatch.context() as gone:
        gone.delattr(urllib3.HTTPConnectionPool, "_make_request")
        install(Settings(destinations=[one.url]))
    with use_token(TOKEN):
        urllib3.request("GET", one.url)
        httpx.get(one.url, trust_env=False)

    assert one.lines() == [[], LINE]
    assert len(errors(log)) == 1
    assert "_make_request" in hook_states()["urllib3.connectionpool"]
    assert hook_states()["httpx"] == "hooked"


@every_client
def test_required_stops_the_request_before_it_is_sent(client: Client, one: Party) -> None:
    """Without a token, a call to a `;required` destination fails before anything is sent."""
    install(Settings(destinations=[f"{one.url};required"]))
    with use_token(None), pytest.raises(TokenUnavailable) as caught:
        client.call(one.url)

    assert caught.value.reason is Reason.NO_TOKEN
    assert caught.value.destination == f"{one.url};required"
    assert one.requests == []


@every_client
def test_a_session_works_after_a_stopped_request(client: Client, one: Party) -> None:
    """After a stopped request, the session, the pool, and the request object are still usable."""
    install(Settings(destinations=[f"{one.url};required"]))
    with client.reusing(one.url) as send:
        with use_token(TOKEN):
            send()
        for _ in range(3):
            with pytest.raises(TokenUnavailable):
                send()
        with use_token(TOKEN):
            send()

    assert one.lines() == [LINE, LINE]


@every_client
def test_required_allows_other_credentials_and_telemetry(client: Client, one: Party) -> None:
    """A required token does not stop requests with their own credential or an exporter's requests."""
    install(Settings(destinations=[f"{one.url};required"]))
    client.call(one.url, headers={"authorization": "Basic own"})
    with suppress_instrumentation():
        client.call(one.url)

    assert one.lines() == [["Basic own"], []]


@every_client
def test_required_does_not_affect_other_destinations(client: Client, one: Party) -> None:
    """A required token for one destination does not affect requests to other destinations."""
    install(Settings(destinations=["http://elsewhere.example;required"]))

    assert client.call(one.url).status == 200


class _Raises(SpanProcessor):
    """A span processor that makes spans raise exceptions, as a faulty subclass might."""

    def on_start(self, span: Span, parent_context: object = None) -> None:
        def refuse(*args: object) -> None:
            raise RuntimeError("no attributes here")

        span.set_attribute = span.set_attributes = refuse  # type: ignore[method-assign]


@every_client
def test_a_broken_span_does_not_change_the_decision(client: Client, one: Party, log: pytest.LogCaptureFixture) -> None:
    """If a span raises an exception, the error is logged without the token, and the token is still relayed."""
    provider = TracerProvider()
    provider.add_span_processor(_Raises())
    install(Settings(destinations=[one.url]))
    with (
        provider.get_tracer("test").start_as_current_span("call", kind=trace.SpanKind.CLIENT),
        use_token(TOKEN),
    ):
        client.call(one.url)
    provider.shutdown()

    assert one.lines() == [LINE]
    assert "cannot record a decision" in log.text
    assert TOKEN not in log.text


@every_client
def test_a_broken_meter_does_not_change_the_decision(
    client: Client, one: Party, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    """If a meter raises an exception, the error is logged without the token, and the token is still relayed."""

    class Broken(metrics.NoOpCounter):
        def add(self, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("no metrics here")

    monkeypatch.setattr(metrics.NoOpMeter, "create_counter", lambda self, name, **kwargs: Broken(name))
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", metrics.NoOpMeterProvider())
    install(Settings(destinations=[one.url]))
    with use_token(TOKEN):
        client.call(one.url)

    assert one.lines() == [LINE]
    assert "cannot record a decision" in log.text
    assert TOKEN not in log.text
