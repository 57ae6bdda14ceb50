"""The instrumentor that OpenTelemetry loads for our section of a configuration file."""

from __future__ import annotations

from importlib.metadata import entry_points

from otel_token_relay.installation import hook_states


def test_the_entry_point_accepts_any_setting_and_does_nothing() -> None:
    """The launcher calls it with the keys of the section."""
    [entry_point] = entry_points(group="opentelemetry_instrumentor", name="token_relay")
    instrumentor = entry_point.load()()

    assert instrumentor.instrument(self="x", skip_dep_check=True, destinations=["https://a"]) is None
    assert instrumentor.is_instrumented_by_opentelemetry
    assert hook_states() == {}
    assert instrumentor.uninstrument(skip_dep_check=True) is None
