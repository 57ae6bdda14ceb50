"""What a caller of a `;required` destination catches."""

from otel_token_relay.errors import TokenUnavailable

__all__ = ["TokenUnavailable"]
