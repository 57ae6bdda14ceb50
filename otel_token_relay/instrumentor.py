"""The ``opentelemetry_instrumentor: token_relay`` entry point, which instruments nothing.

The settings in OpenTelemetry's configuration file are in ``instrumentation/development.python.token_relay``. Without an
instrumentor by that name, OpenTelemetry would log a warning that it skips the section, even though
`otel_token_relay.configuration_file` has read it.
"""

from __future__ import annotations

from typing import Any


class TokenRelayInstrumentor:
    """Do nothing. `otel_token_relay.installation` installs the relay, whether or not instrumentations are disabled."""

    is_instrumented_by_opentelemetry = True

    def instrument(self, /, **kwargs: Any) -> None:
        """Do nothing. *kwargs* are the settings in the configuration file, whose keys can have any name."""

    def uninstrument(self, /, **kwargs: Any) -> None:
        """Do nothing."""
