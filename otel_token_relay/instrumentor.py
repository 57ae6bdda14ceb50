"""A no-op instrumentor that is registered as an ``opentelemetry_instrumentor`` entry point.

In OpenTelemetry's configuration file, the ``instrumentation/development.python.token_relay`` section contains the
relay's settings. `otel_token_relay.configuration_file` reads this section, but without an instrumentor named
``token_relay``, OpenTelemetry would log a warning that the section is skipped.
"""

from __future__ import annotations

from typing import Any


class TokenRelayInstrumentor:
    """A no-op instrumentor. `otel_token_relay.installation` installs the relay, even if instrumentation is disabled."""

    is_instrumented_by_opentelemetry = True

    def instrument(self, /, **kwargs: Any) -> None:
        """Do nothing. *kwargs* contains the settings from the configuration file and can have arbitrary keys."""

    def uninstrument(self, /, **kwargs: Any) -> None:
        """Do nothing."""
