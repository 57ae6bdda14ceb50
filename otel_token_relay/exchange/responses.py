"""Validate a token endpoint's response. This module performs no I/O and does not read any settings.

A response is accepted only if it contains a new bearer token. If that token is a JWT, it must be intended for the
requested audience. These checks are necessary because some servers ignore the requested audience, return the subject
token unchanged, or return a different type of token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from otel_token_relay.errors import ExchangeError, ExchangeFailed
from otel_token_relay.exchange.grants import ACCESS_TOKEN, JWT, Request
from otel_token_relay.token import claims_of, is_b64token

_TYPES: Final = frozenset({ACCESS_TOKEN, JWT})

# These error codes are defined in RFC 6749 (section 5.2), RFC 8693 (section 2.2.2), and OpenID Connect Core (section
# 3.1.2.6, which Entra uses).
_ERRORS: Final[Mapping[str, ExchangeError]] = {
    "invalid_request": "invalid_request",
    "invalid_client": "invalid_client",
    "invalid_grant": "invalid_grant",
    "invalid_scope": "invalid_scope",
    "invalid_target": "invalid_target",
    "unauthorized_client": "unauthorized_client",
    "unsupported_grant_type": "unsupported_grant_type",
    "interaction_required": "interaction_required",
    "consent_required": "interaction_required",
    "login_required": "interaction_required",
    "temporarily_unavailable": "unavailable",
    "server_error": "unavailable",
    "slow_down": "unavailable",
    # Some servers return error codes that are defined for other endpoints (RFC 6750, section 3.1; RFC 6749, section
    # 4.1.2.1).
    "invalid_token": "invalid_grant",
    "insufficient_scope": "invalid_scope",
    "access_denied": "unauthorized_client",
    # authgent-server.
    "token_revoked": "invalid_grant",
    "scope_escalation": "invalid_scope",
}
# The maximum length of a claims challenge. Entra's challenges contain a few hundred characters.
_MAX_CHALLENGE: Final = 4096


class Issued(NamedTuple):
    """A token that a token endpoint issued.

    Attributes:
        token: The token's value, which is a b64token.
        expires_in: The token's lifetime, in seconds; ``None`` if the response does not specify it.
        expires_at: The ``exp`` claim of a JWT, as seconds since the epoch; ``None`` if the token has no ``exp`` claim.
        has_claims: Whether the token is a JWT.
        has_actor: Whether the token is a JWT that identifies an actor (``act``, RFC 8693, section 4.1).
    """

    token: str
    expires_in: float | None
    expires_at: float | None
    has_claims: bool
    has_actor: bool

    def __repr__(self) -> str:
        return f"Issued({len(self.token)} chars, expires_in={self.expires_in}, expires_at={self.expires_at})"


def read_response(
    status: int, members: Mapping[str, Any] | None, request: Request, given: tuple[str, ...], max_length: int
) -> Issued:
    """Validate a response and return the issued token.

    Args:
        status: The HTTP status code.
        members: The JSON object in the body; ``None`` if the body is not a JSON object.
        request: The request for the token.
        given: The tokens that the request contained, which can include a subject token and an actor token.
        max_length: The maximum length of the issued token, in characters.

    Raises:
        ExchangeFailed: The server refused the request, or the response cannot be used. The error message does not quote
            the response.
    """
    if status != 200:
        raise _refusal(status, members or {})
    if members is None:
        raise ExchangeFailed("bad_response", "the body is not a JSON object")
    kind = members.get("issued_token_type")
    is_access_token = isinstance(kind, str) and kind in _TYPES
    if not is_access_token and not (kind is None and request.grant != "token-exchange"):
        raise ExchangeFailed("bad_response", "issued_token_type is not an access token type")
    token_type = members.get("token_type")
    if not isinstance(token_type, str) or token_type.lower() != "bearer":
        raise ExchangeFailed("bad_response", "token_type is not Bearer")
    token = members.get("access_token")
    if not isinstance(token, str) or not is_b64token(token):
        raise ExchangeFailed("bad_response", "access_token is not a bearer token")
    if len(token) > max_length:
        raise ExchangeFailed("bad_response", f"the issued token has more than {max_length} characters")
    if token in given:
        raise ExchangeFailed("bad_response", "the issued token is the token that was sent")
    claims = claims_of(token)
    if claims is not None:
        _check_claims(claims, request)
    return Issued(
        token,
        _seconds(members.get("expires_in")),
        None if claims is None else _number(claims.get("exp")),
        claims is not None,
        claims is not None and isinstance(claims.get("act"), dict),
    )


def _check_claims(claims: Mapping[str, Any], request: Request) -> None:
    if claims.get("cnf") is not None:
        raise ExchangeFailed("bad_response", "the issued token is bound to a key (cnf)")
    audience = claims.get("aud")
    found = audience if isinstance(audience, list) else [audience]
    if request.audiences and request.audiences.isdisjoint(name for name in found if isinstance(name, str)):
        raise ExchangeFailed("wrong_audience", "the issued token is for a different audience")


def _refusal(status: int, members: Mapping[str, Any]) -> ExchangeFailed:
    error = members.get("error")
    known = _ERRORS.get(error) if isinstance(error, str) else None
    if status >= 500 or status == 429:
        return ExchangeFailed("unavailable", f"status {status}")
    if known is None:
        # A 401 response without an error code means that the server rejected this service's credential. A 401 response
        # with an unknown error code can have a different cause.
        known = "invalid_client" if status == 401 and error is None else "bad_response"
    challenge = members.get("claims")
    is_usable = isinstance(challenge, str) and 0 < len(challenge) <= _MAX_CHALLENGE and challenge.isprintable()
    return ExchangeFailed(known, f"status {status}", claims_challenge=challenge if is_usable else None)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _seconds(value: object) -> float | None:
    """Return a lifetime in seconds. Some servers send it as a string."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 12:
        value = int(value)
    number = _number(value)
    return None if number is None else max(number, 0.0)
