"""An instrumentor that does nothing, registered as ``token_relay`` in the ``opentelemetry_instrumentor`` entry points.

In OpenTelemetry's configuration file, ``instrumentation/development.python.token_relay`` contains the relay's settings.
Without an instrumentor of that name, OpenTelemetry would warn that it is skipping this section, even though
`otel_token_relay.configuration_file` has already read the section.
"""

from __future__ import annotations

from typing import Any


class TokenRelayInstrumentor:
    """An empty instrumentor. `otel_token_relay.installation` installs the relay, even if instrumentation is
    disabled.
    """

    is_instrumented_by_opentelemetry = True

    def instrument(self, /, **kwargs: Any) -> None:
        """Do nothing. *kwargs* contains the settings from the configuration file, with arbitrary keys."""

    def uninstrument(self, /, **kwargs: Any) -> None:
        """Do nothing."""
