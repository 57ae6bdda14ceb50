"""The exceptions that otel-token-relay raises.

    RelayError
    ├── ConfigurationError   a setting cannot be used (also a ValueError)
    ├── TokenUnavailable     a destination requires a token, but no token can be relayed
    ├── ExchangeFailed       the caller's token cannot be exchanged
    ├── TokenRejected        an incoming token fails verification
    └── KeysUnavailable      a token cannot currently be verified

Error-handling code should check an exception's type and attributes, not its message. Messages do not contain tokens,
header values, or secrets.
"""

from __future__ import annotations

from typing import Literal

from otel_token_relay.reasons import Reason

RejectReason = Literal[
    "malformed",  # the token is not a compact JWS, is not strict JSON, or contains a forbidden member
    "too_long",
    "algorithm_not_allowed",  # the algorithm is not in the configured list or is not the key's algorithm
    "wrong_type",  # the `typ` or claims do not indicate the expected kind of token, which is usually an access token
    "unknown_issuer",
    "unknown_key",
    "bad_signature",
    "missing_claim",
    "invalid_claim",  # a claim has the wrong type or format
    "wrong_audience",
    "expired",
    "not_yet_valid",
    "sender_constrained",  # `cnf` binds the token to a key, but proof of possession is not supported
    "inactive",  # the authorization server reports that the token is inactive (RFC 7662)
    "revoked",
]


ExchangeError = Literal[
    # The authorization server rejected the request (RFC 6749, section 5.2; RFC 8693, section 2.2.2).
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "invalid_scope",
    "invalid_target",
    "unauthorized_client",
    "unsupported_grant_type",
    "interaction_required",  # the user must sign in again or give consent; see `ExchangeFailed.claims_challenge`
    "unavailable",  # the server does not respond or reports an outage, or the exchange cannot be started
    "timeout",
    "bad_response",  # the response is invalid
    "wrong_audience",  # the server issued a token for a different audience
]


class RelayError(Exception):
    """The base class of all exceptions that this package deliberately raises."""


class ConfigurationError(RelayError, ValueError):
    """An exception raised at startup if a setting cannot be used.

    Attributes:
        setting: The name of the `Settings` field or environment variable.
        problem: A description of the problem, which never contains a secret.
    """

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(setting, problem)
        self.setting = setting
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.setting}: {self.problem}"


class TokenUnavailable(RelayError):
    """An exception raised if a destination has ``;required`` but no token can be relayed.

    The outgoing request is not sent.

    Attributes:
        reason: Why no token can be relayed.
        destination: The destination entry, as configured.
        claims_challenge: Microsoft Entra's ``claims`` parameter; see `ExchangeFailed`. The message does not include
            this parameter.
    """

    def __init__(self, reason: Reason, destination: str, *, claims_challenge: str | None = None) -> None:
        super().__init__(reason, destination)
        self.reason = reason
        self.destination = destination
        self.claims_challenge = claims_challenge

    def __str__(self) -> str:
        return f"no token to relay to {self.destination}: {self.reason.value}"


class ExchangeFailed(RelayError):
    """An exception raised if the caller's token cannot be exchanged.

    Attributes:
        error: One of the `ExchangeError` values.
        detail: Additional information that does not quote the response; empty if *error* is sufficient.
        claims_challenge: The ``claims`` parameter in Microsoft Entra's response; ``None`` if the response contains no
            such parameter. Return this parameter to the caller so that the user can sign in again. The message does not
            include this parameter, because its value might identify the user.
    """

    def __init__(self, error: ExchangeError, detail: str = "", *, claims_challenge: str | None = None) -> None:
        super().__init__(error, detail)
        self.error: ExchangeError = error
        self.detail = detail
        self.claims_challenge = claims_challenge

    def __str__(self) -> str:
        return f"token exchange failed: {self.error}" + (f" ({self.detail})" if self.detail else "")


class TokenRejected(RelayError):
    """An exception raised if an incoming token fails verification. The exception does not contain the token.

    The message contains the reason and the claim, but no values. The *expected* and *found* attributes can contain
    issuers, audiences, scopes, times, and values of ``typ``, ``alg``, and ``kid``. Credentials in these values are
    masked.

    Attributes:
        reason: One of the `RejectReason` values.
        claim: The claim, header parameter, or introspection response member that failed the check; ``None`` unless
            exactly one of these failed.
        expected: The accepted values as printable strings, each truncated to 100 characters; empty if the claim is not
            compared with specific values. `TokenVerifier.verify` sets *expected* and *found*.
        found: The values in the token as printable strings, each truncated to 100 characters; empty if the token does
            not contain the claim.
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
    """An exception raised if a token cannot currently be verified.

    The signing keys, the introspection result, or the revocation check is unavailable. For example, the issuer might
    not respond.

    The caller did not cause the error, so respond with a 503 status code instead of 401.

    Attributes:
        retry_after: The number of seconds to wait before retrying.
    """

    def __init__(self, retry_after: float = 1.0) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return "the signing keys, the introspection result, or the revocation check is unavailable"
