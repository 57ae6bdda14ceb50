"""Carry the caller's bearer token through the OpenTelemetry context to listed destinations only."""

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
