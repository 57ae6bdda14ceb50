"""Every error that otel-token-relay raises, in one tree.

    RelayError
    ├── ConfigurationError   a setting cannot be used (also a ValueError)
    ├── TokenUnavailable     a destination requires a token and there is none to relay
    ├── TokenRejected        a token that came in does not pass verification
    └── KeysUnavailable      it cannot be verified now: the issuer does not answer

Callers branch on the type and on the typed attributes, never on the text.
No message holds a token, a header value or a secret.
"""

from __future__ import annotations

from typing import Literal

from otel_token_relay.reasons import Reason

RejectReason = Literal[
    "malformed",  # no compact JWS, no strict JSON, a member that must not be there
    "too_long",
    "algorithm_not_allowed",  # not on the list, or not what the key is for
    "wrong_type",  # not an access token: `typ`, or the marks of an ID or refresh token
    "unknown_issuer",
    "unknown_key",
    "bad_signature",
    "missing_claim",
    "invalid_claim",  # of the wrong shape
    "wrong_audience",
    "expired",
    "not_yet_valid",
    "sender_constrained",  # bound to a key by `cnf`: nobody here can prove to hold it
    "inactive",  # the authorization server says so (RFC 7662)
    "revoked",
]


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


class TokenRejected(RelayError):
    """Raise when a token that came in does not pass verification. It does not say which token.

    Attributes:
        reason: One of the closed set `RejectReason`.
    """

    def __init__(self, reason: RejectReason) -> None:
        super().__init__(reason)
        self.reason: RejectReason = reason

    def __str__(self) -> str:
        return f"token rejected: {self.reason}"


class KeysUnavailable(RelayError):
    """Raise when a token can be neither accepted nor rejected, since the issuer cannot be asked.

    This is an outage of ours and not the caller's mistake: 503, not 401.

    Attributes:
        retry_after: Seconds after which asking again makes sense.
    """

    def __init__(self, retry_after: float = 1.0) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return "the keys or the verdict of the issuer are not available"
