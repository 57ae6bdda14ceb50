"""Every error that otel-token-relay raises, in one tree.

    RelayError
    ├── ConfigurationError   a setting cannot be used (also a ValueError)
    └── TokenUnavailable     a destination requires a token and there is none to relay

Callers branch on the type and on the typed attributes, never on the text.
No message holds a token, a header value or a secret.
"""

from __future__ import annotations

from otel_token_relay.reasons import Reason


class RelayError(Exception):
    """The root of the tree; catching it catches everything that this package raises on purpose."""


class ConfigurationError(RelayError, ValueError):
    """Raise at start-up when a setting cannot be used.

    Attributes:
        setting: The name of the setting, as a `Settings` field or as an environment variable.
        problem: What is wrong with it, in words, without the value of a secret.
    """

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(setting, problem)
        self.setting = setting
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.setting}: {self.problem}"


class TokenUnavailable(RelayError):
    """Raise from the outgoing call when its destination is `;required` and no token can be relayed.

    No byte of the request has left the process then.

    Attributes:
        reason: Why there is no usable token.
        destination: The destination's entry as it was configured.
    """

    def __init__(self, reason: Reason, destination: str) -> None:
        super().__init__(reason, destination)
        self.reason = reason
        self.destination = destination

    def __str__(self) -> str:
        return f"no token to relay to {self.destination}: {self.reason.value}"
