"""Redaction can be installed in any order, reports its state, and can be removed."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_token_relay import Settings, install, uninstall, use_token
from otel_token_relay.redaction import installation, known_tokens
from otel_token_relay.redaction.scrubber import MASK
from tests.redaction.corpus import OWN_OPAQUE

LOADED = "import sys; assert not [m for m in sys.modules if m.startswith('opentelemetry.sdk')]"


@pytest.mark.parametrize("order", ["sdk-first", "sdk-later"])
@pytest.mark.parametrize("start", ["install", "propagator", "pre_instrument"])
def test_redaction_starts_in_any_order(order, start):
    """Each of the three entry points starts redaction, whether the SDK is imported before or after it."""
    starts = {
        "install": "import otel_token_relay; otel_token_relay.install()",
        "propagator": "from otel_token_relay.installation import propagator_from_env; propagator_from_env()",
        "pre_instrument": "from otel_token_relay.installation import pre_instrument; pre_instrument()",
    }
    sdk = "import opentelemetry.sdk.trace, opentelemetry.sdk._logs, opentelemetry.sdk.metrics"
    program = [sdk, starts[start]] if order == "sdk-first" else [starts[start], LOADED, sdk]
    program.append("from otel_token_relay.redaction.installation import states; print(states())")

    out = subprocess.run(
        [sys.executable, "-c", "\n".join(program)], capture_output=True, text=True, timeout=60, check=True
    )

    assert out.stdout.strip().splitlines()[-1] == repr(dict.fromkeys(("spans", "logs", "metrics"), installation.HOOKED))


def test_uninstall_removes_redaction():
    """Uninstalling restores the SDK's own functions and forgets all tokens."""
    from opentelemetry.sdk.trace import Span

    uninstall()
    while known_tokens._listeners:  # processors and filters of earlier tests still listen
        known_tokens.stop_listening()
    own = vars(Span)["_readable_span"], vars(Span)["start"]
    install(Settings())
    patched = vars(Span)["_readable_span"]
    install(Settings())
    uninstall()

    assert patched is not own[0]
    assert (vars(Span)["_readable_span"], vars(Span)["start"]) == own
    assert not known_tokens.REMEMBERED.recent_traces
    assert installation.states() == dict.fromkeys(("spans", "logs", "metrics"), "not redacted")


def test_check_tries_redaction_in_each_signal():
    """`otel-token-relay check --all` lists the three signals with their self-test results."""
    from otel_token_relay.commands.coverage import try_redaction

    uninstall()
    found = {(library.name, library.state, library.is_covered) for library in try_redaction(Settings())}

    assert found == {(signal, installation.HOOKED, True) for signal in ("spans", "logs", "metrics")}


def test_the_context_of_the_application_is_not_changed():
    """Redaction does not attach a context."""
    before = otel_context.get_current()
    install(Settings())

    assert otel_context.get_current() is before


SELF_TEST_FAILED = "self-test failed: the test token was not redacted"


def _patch_nothing(*args: Any) -> None:
    """A hook on a method that the SDK no longer calls."""


def _find_no_method(*args: Any) -> None:
    raise AttributeError("no such method")


@pytest.fixture
def spans() -> Iterator[installation.Signal]:
    """The signal whose hook a test replaces."""
    yield installation.SIGNALS[0]
    installation.stop()
    known_tokens.stop_listening()  # a wrapped processor also listens


def _start(monkeypatch: pytest.MonkeyPatch, signal: installation.Signal) -> str:
    """Start redaction with one changed signal, and return the signal's state."""
    monkeypatch.setattr(installation, "SIGNALS", (signal, *installation.SIGNALS[1:]))
    installation.start(Settings())
    states = installation.states()
    state = states.pop(signal.name)
    assert set(states.values()) == {installation.HOOKED}
    return state


def test_processors_are_wrapped_if_a_hook_has_no_effect(
    spans: installation.Signal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If a hook has no effect, processors that are registered later are wrapped, and earlier ones are reported."""
    state = _start(monkeypatch, dataclasses.replace(spans, patch=_patch_nothing))
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with use_token(OWN_OPAQUE), provider.get_tracer("t").start_as_current_span(f"GET /{OWN_OPAQUE}"):
        pass

    assert state == f"{installation.FALLEN_BACK} ({SELF_TEST_FAILED})"
    assert exporter.get_finished_spans()[0].name == f"GET /{MASK}"
    assert "registered earlier receive unredacted data" in caplog.text


@pytest.mark.parametrize("fall_back", [None, _find_no_method])
def test_a_signal_that_cannot_be_redacted_is_reported(
    fall_back: installation.Patch | None,
    spans: installation.Signal,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A signal whose conversion point and public methods are missing is reported, and other signals are redacted."""
    state = _start(monkeypatch, dataclasses.replace(spans, patch=_find_no_method, fall_back=fall_back))

    assert state == "NOT redacted (AttributeError: no such method)"
    assert "token relay cannot redact spans: AttributeError: no such method; " in caplog.text


def test_a_hook_that_is_applied_while_redaction_is_off_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """A hook that is applied while redaction is off does not change the SDK, and an error is logged."""
    original = vars(TracerProvider)["add_span_processor"]
    signal = dataclasses.replace(installation.SIGNALS[0], patch=_find_no_method)
    try:
        installation._hooks.switch_on((signal,))
        state = installation._hooks.states[signal]
    finally:
        installation._hooks.switch_off()

    assert state == "RuntimeError: redaction is off"
    assert "token relay cannot redact spans: RuntimeError: redaction is off" in caplog.text
    assert vars(TracerProvider)["add_span_processor"] is original
