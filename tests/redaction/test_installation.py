"""Redaction can be installed in any order, reports its state, and can be removed."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry import context as otel_context

from otel_token_relay import Settings, install, uninstall
from otel_token_relay.redaction import installation, known_tokens

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
