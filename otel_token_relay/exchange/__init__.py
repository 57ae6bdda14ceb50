"""The exception to catch when calling a `;required` destination."""

from otel_token_relay.errors import TokenUnavailable

__all__ = ["TokenUnavailable"]
