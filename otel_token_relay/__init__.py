"""Relay the caller's bearer token through the OpenTelemetry Context to the destinations on an allow-list.

Public names are imported on first use so that pytest can load the `otel_token_relay.pytest_plugin` plug-in without
importing OpenTelemetry.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from otel_token_relay.carrying import carry
    from otel_token_relay.context import as_service, current_token, to_destination, use_token
    from otel_token_relay.decisions import Decision
    from otel_token_relay.destinations import Destination
    from otel_token_relay.installation import install, uninstall
    from otel_token_relay.propagator import TokenRelayPropagator
    from otel_token_relay.reasons import Reason
    from otel_token_relay.settings import Settings
    from otel_token_relay.token import BearerToken

__all__ = [
    "BearerToken",
    "Decision",
    "Destination",
    "Reason",
    "Settings",
    "TokenRelayPropagator",
    "as_service",
    "carry",
    "current_token",
    "install",
    "to_destination",
    "uninstall",
    "use_token",
]

_MODULES = {
    "BearerToken": "token",
    "Decision": "decisions",
    "Destination": "destinations",
    "Reason": "reasons",
    "Settings": "settings",
    "TokenRelayPropagator": "propagator",
    "as_service": "context",
    "carry": "carrying",
    "current_token": "context",
    "install": "installation",
    "to_destination": "context",
    "uninstall": "installation",
    "use_token": "context",
}


if not TYPE_CHECKING:  # type checkers that see `__getattr__` accept any name

    def __getattr__(name: str) -> object:
        """Import a public name on first use (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return value


def __dir__() -> list[str]:
    """Return the module's names for tab completion, including public names that have not been imported yet."""
    return sorted({*globals(), *__all__})
