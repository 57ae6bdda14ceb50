"""Validate the settings that are durations."""

from __future__ import annotations

from otel_token_relay.errors import ConfigurationError


def check_seconds(setting: str, value: object) -> None:
    """Check that *value* is a valid number of seconds.

    Raises:
        ConfigurationError: The value is not a number, is negative, or is longer than about 31 years.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
        raise ConfigurationError(setting, "expected a number of seconds, 0 or more")
