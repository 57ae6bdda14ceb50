"""The hierarchy of errors that otel-token-relay raises.

    RelayError
    ├── ConfigurationError   a setting cannot be used (also a ValueError)
    ├── TokenUnavailable     a destination requires a token, but there is none to relay
    ├── ExchangeFailed       no token could be obtained in exchange for the caller's
    ├── TokenRejected        an incoming token does not pass verification
    └── KeysUnavailable      a token cannot be verified now because the issuer does not respond

Callers should branch on the type and the typed attributes, never on the message.
No message contains a token, a header value, or a secret.
"""

from __future__ import annotations

from typing import Literal

from otel_token_relay.reasons import Reason

RejectReason = Literal[
    "malformed",  # is not a compact JWS, is not strict JSON, or contains a forbidden member
    "too_long",
    "algorithm_not_allowed",  # not in the configured list, or not the key's algorithm
    "wrong_type",  # not an access token: has a different `typ`, or has claims of an ID token or refresh token
    "unknown_issuer",
    "unknown_key",
    "bad_signature",
    "missing_claim",
    "invalid_claim",  # a claim has the wrong type or form
    "wrong_audience",
    "expired",
    "not_yet_valid",
    "sender_constrained",  # bound to a key by `cnf`; proof of possession is not supported
    "inactive",  # reported by the authorization server (RFC 7662)
    "revoked",
]


ExchangeError = Literal[
    # The server refused the request (RFC 6749, section 5.2; RFC 8693, section 2.2.2).
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "invalid_scope",
    "invalid_target",
    "unauthorized_client",
    "unsupported_grant_type",
    "interaction_required",  # the user must sign in again or consent; see `ExchangeFailed.claims_challenge`
    "unavailable",  # the server does not respond, or reports that it is overloaded or broken
    "timeout",
    "bad_response",  # the response cannot be used
    "wrong_audience",  # the server issued a token for a different audience
]


class RelayError(Exception):
    """The base class of the hierarchy. Catch it to handle every error that this package deliberately raises."""


class ConfigurationError(RelayError, ValueError):
    """The error raised at startup when a setting cannot be used.

    Attributes:
        setting: The setting's name: a `Settings` field or an environment variable.
        problem: What is wrong with the setting. This text never contains a secret.
    """

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(setting, problem)
        self.setting = setting
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.setting}: {self.problem}"


class TokenUnavailable(RelayError):
    """The error that an outgoing call raises if its destination has ``;required`` but no token can be relayed.

    The request has not been sent.

    Attributes:
        reason: Why no token can be relayed.
        destination: The destination entry, as configured.
        claims_challenge: Entra's ``claims`` parameter; see `ExchangeFailed`. The message does not include this
            parameter.
    """

    def __init__(self, reason: Reason, destination: str, *, claims_challenge: str | None = None) -> None:
        super().__init__(reason, destination)
        self.reason = reason
        self.destination = destination
        self.claims_challenge = claims_challenge

    def __str__(self) -> str:
        return f"no token to relay to {self.destination}: {self.reason.value}"


class ExchangeFailed(RelayError):
    """The error raised when no token can be obtained in exchange for the caller's token.

    Attributes:
        error: One of the `ExchangeError` values.
        detail: What is wrong, without quoting the response; empty if *error* is sufficient.
        claims_challenge: Entra's ``claims`` parameter, which the service returns to its caller so that the user can
            sign in again; ``None`` if there is none. The message does not include this parameter, which may identify
            the user.
    """

    def __init__(self, error: ExchangeError, detail: str = "", *, claims_challenge: str | None = None) -> None:
        super().__init__(error, detail)
        self.error: ExchangeError = error
        self.detail = detail
        self.claims_challenge = claims_challenge

    def __str__(self) -> str:
        return f"token exchange failed: {self.error}" + (f" ({self.detail})" if self.detail else "")


class TokenRejected(RelayError):
    """The error raised when an incoming token does not pass verification. The error does not contain the token.

    The message contains the reason and the claim, but no values. *expected* and *found* contain issuers, audiences,
    scopes, times, and values of ``typ``, ``alg``, and ``kid``, in which credentials are masked.

    Attributes:
        reason: One of the `RejectReason` values.
        claim: The claim, or the member of the header or introspection response, that was checked; ``None`` unless there
            is exactly one.
        expected: The accepted values, in printable form and at most 100 characters each; empty if the claim is not
            compared with specific values.
        found: The values in the token, in the same form; empty if the token has none. `TokenVerifier.verify` sets both
            *expected* and *found*.
    """

    def __init__(
        self,
        reason: RejectReason,
        claim: str | None = None,
        expected: tuple[str, ...] = (),
        found: tuple[str, ...] = (),
    ) -> None:
        super().__init__(reason, claim)
        self.reason: RejectReason = reason
        self.claim: str | None = claim
        self.expected: tuple[str, ...] = expected
        self.found: tuple[str, ...] = found

    def __str__(self) -> str:
        return f"token rejected: {self.reason}" + ("" if self.claim is None else f" ({self.claim})")

    def __repr__(self) -> str:
        return f"TokenRejected({self.reason!r}, {self.claim!r})"


class KeysUnavailable(RelayError):
    """The error raised when a token can be neither accepted nor rejected because the issuer does not respond.

    The caller is not at fault, so respond with 503, not 401.

    Attributes:
        retry_after: The number of seconds to wait before retrying.
    """

    def __init__(self, retry_after: float = 1.0) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return "signing keys or introspection result unavailable"
