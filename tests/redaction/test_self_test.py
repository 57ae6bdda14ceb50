"""The self-test of redaction detects an ineffective hook and produces no telemetry."""

from __future__ import annotations

import pytest

from otel_token_relay import Settings, install
from otel_token_relay.redaction import installation, spans
from tests.redaction.pipeline import Pipeline


def test_the_self_test_detects_a_hook_that_does_nothing(monkeypatch):
    """A conversion point that exists but is not used is reported as missing."""
    monkeypatch.setattr(spans, "redact", lambda *args: None)

    installation.start(Settings())

    assert "self-test failed: the test token was not redacted" in installation.states()["spans"]


def test_the_self_test_reaches_no_exporter_of_the_application():
    """The self-test of redaction sends nothing to the application's exporters."""
    pipeline = Pipeline()
    install(Settings())
    try:
        pipeline.exported()
        finished = [s.name for e in pipeline.spans for s in e.get_finished_spans()]
    finally:
        pipeline.close()

    assert finished == []


@pytest.mark.parametrize("part", [*installation.SIGNALS, *installation.STATICS], ids=lambda part: part.name)
def test_each_self_test_succeeds_only_while_its_hook_is_installed(part: installation.Signal) -> None:
    """The self-test of each signal and each shared component finds its test token unless the hook masks the token."""
    assert not part.try_out()
    installation.start(Settings())
    try:
        assert part.try_out()
    finally:
        installation.stop()
    assert not part.try_out()
