"""Obtain a token for ``otel-token-relay explain --online`` without contacting the destination."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from otel_token_relay.commands.output import escape
from otel_token_relay.configured_exchange import build_token_source
from otel_token_relay.destinations import Destination
from otel_token_relay.errors import ExchangeFailed, KeysUnavailable, RelayError, TokenRejected
from otel_token_relay.relay import AssumedVerification
from otel_token_relay.settings import Settings
from otel_token_relay.token import BearerToken, Lease, Verification, claims_of

if TYPE_CHECKING:
    from otel_token_relay.verification.endpoints import EndpointState
    from otel_token_relay.verification.issuer_endpoints import IssuerReport

_NO_RESPONSE = ("unavailable", "timeout")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The result of an attempt to obtain a token. All strings contain only printable ASCII characters.

    Attributes:
        error: An `ExchangeError`, ``rejected`` if this service rejects the caller's token, or ``None`` if the server
            issued a token.
        detail: A description of the problem or of the issued token.
        advice: The recommended action, or ``None`` if no action is recommended.
    """

    error: str | None
    detail: str
    advice: str | None = None

    @property
    def has_no_response(self) -> bool:
        """Whether the authorization server failed to respond."""
        return self.error in _NO_RESPONSE

    def as_dict(self) -> dict[str, str | None]:
        """Return the result in the JSON format that ``docs/command-line.md`` describes."""
        return {"error": self.error, "detail": self.detail, "advice": self.advice}


def try_exchange(settings: Settings, destination: Destination, value: str | None) -> Attempt:
    """Obtain a token for *destination* in the same way that a hop does.

    Args:
        settings: The settings, including all settings that an exchange requires.
        destination: The destination's entry.
        value: The caller's token, or ``None`` to obtain the service's own token.
    """
    from otel_token_relay.exchange.advice import ADVICE

    issuer = build_token_source(settings)
    if issuer is None:
        return Attempt(error="unavailable", detail="tokens cannot be exchanged with these settings")
    try:
        caller = None if value is None else _caller(settings, value)
    except KeysUnavailable as error:
        return Attempt(error="unavailable", detail=f"the token cannot be verified: {error}")
    except (RelayError, ValueError) as error:
        reason = error.reason if isinstance(error, TokenRejected) else "malformed"
        return Attempt(
            error="rejected",
            detail=f"this service rejects the token: {reason}",
            advice="Pass a token that this service accepts; otel-token-relay verify explains why it rejects this one.",
        )
    try:
        obtained = issuer.obtain(caller, destination)
    except ExchangeFailed as failure:
        return Attempt(
            error=failure.error, detail=escape(failure.detail), advice=ADVICE[failure.error].replace("`", "")
        )
    return Attempt(error=None, detail=_describe(claims_of(obtained.token.reveal())))


# These errors indicate that the server authenticated this service but rejected the random token.
_AS_EXPECTED = ("invalid_request", "invalid_grant", "invalid_scope", "invalid_target", "interaction_required")


def ask_token_endpoints(settings: Settings) -> list[IssuerReport]:
    """Ask each token endpoint to exchange a random token, and return a report on each endpoint."""
    from otel_token_relay.exchange.engine import DEFAULT_TIMEOUT
    from otel_token_relay.exchange.tokens import DestinationTokens
    from otel_token_relay.verification.endpoints import EndpointReport
    from otel_token_relay.verification.issuer_endpoints import IssuerReport

    try:
        asked = list(DestinationTokens(settings).requests())
    except RelayError:
        return []
    found: list[IssuerReport] = []
    for engine, request in asked:
        state: EndpointState = "problem"
        started = time.monotonic()
        try:
            engine.ask(request, DEFAULT_TIMEOUT)
            result = "it issues a token in exchange for a random token"
        except ExchangeFailed as failure:
            result = f"{failure.error} ({failure.detail})" if failure.detail else failure.error
            if failure.error in _AS_EXPECTED:
                state, result = "ok", f"a random token is refused: {result}"
            elif failure.error in _NO_RESPONSE:
                state = "no_response"
        seconds = time.monotonic() - started
        url = str(engine.endpoint)
        report = EndpointReport(kind="token", url=url, state=state, result=escape(result), seconds=seconds)
        found.append(IssuerReport(issuer=engine.endpoint.issuer or url, endpoints=(report,)))
    return found


def _caller(settings: Settings, value: str) -> BearerToken:
    token = BearerToken(value, lease=Lease())
    verification: Verification = AssumedVerification()  # Assume that the application's code verifies the token.
    if settings.verify != "off":
        from otel_token_relay.verification.authenticator import verifier_from

        verification = verifier_from(settings).verify(value)
    token.mark_verified(verification)
    return token


def _describe(claims: Mapping[str, Any] | None) -> str:
    """Describe the issued token's audience, lifetime, and actor, without identifying the user."""
    if claims is None:
        return "The server issued an opaque token."
    audience = claims.get("aud")
    names = audience if isinstance(audience, list) else [audience]
    shown = ", ".join(name for name in names if isinstance(name, str)) or "no audience"
    parts = [f"The server issued a token for {shown[:200]}"]
    expires_at = claims.get("exp")
    if isinstance(expires_at, int | float) and not isinstance(expires_at, bool):
        parts.append(f"valid for {expires_at - time.time():.0f} s")
    parts.append("with an actor" if isinstance(claims.get("act"), dict) else "without an actor (act)")
    return escape(", ".join(parts) + ".")
