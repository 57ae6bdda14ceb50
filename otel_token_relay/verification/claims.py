"""The rules for an access token's header and claims. This module uses no clock, no keys and no I/O.

First, `jws.parse_jws` parses the token; then the caller checks the signature; finally, `check_type` and
`check_claims` run. Before the signature has been checked, ``iss`` alone may be used, only to select the keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from otel_token_relay.algorithms import PROFILES, Profile
from otel_token_relay.durations import check_seconds
from otel_token_relay.errors import ConfigurationError, TokenRejected
from otel_token_relay.verification.jws import Claims, has_control_character

# RFC 7519, section 2: a NumericDate counts seconds since 1970. This limit falls in the year 36812.
MAX_NUMERIC_DATE: Final = 2**40

# RFC 9068, section 4: "at+jwt" or "application/at+jwt". RFC 7515, section 4.1.9: media types
# are case-insensitive, and "application/" may be omitted.
_ACCESS_TOKEN_TYPES: Final = frozenset({"at+jwt", "application/at+jwt"})
_GENERIC_TYPES: Final = _ACCESS_TOKEN_TYPES | {"jwt", "application/jwt"}

# RFC 9068, section 2.2.
_REQUIRED_RFC9068: Final = ("iss", "exp", "aud", "sub", "client_id", "iat", "jti")
_REQUIRED_GENERIC: Final = ("iss", "exp", "aud", "sub")

# OpenID Connect Core, sections 2 and 3.3.2.11: only ID tokens have these claims.
ID_TOKEN_CLAIMS: Final = ("nonce", "at_hash", "c_hash")
# Keycloak puts the token type in the ``typ`` claim: ID, Refresh, Offline, Logout, DPoP and more.
_ACCESS_TOKEN_TYP_CLAIMS: Final = frozenset({"bearer", "jwt", "at+jwt"})

DEFAULT_LEEWAY: Final = 30.0
NAMES: Final = ("sub", "client_id", "jti", "azp", "cid", "appid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules that a token's claims must satisfy.

    Attributes:
        audience: The accepted audiences; ``aud`` must contain at least one of them. Empty to skip this
            check, which is allowed only with introspection.
        profile: ``rfc9068`` for access tokens that follow that RFC; ``generic`` for issuers that send
            ``typ: JWT`` or no ``typ``, and that omit ``jti``, ``client_id`` or ``iat``.
        leeway: The number of seconds by which the issuer's clock and the service's clock may differ.
        scope_claims: The names of claims that contain scopes; the first one present is used. A dot
            separates the names of nested members: ``realm_access.roles``.
    """

    audience: tuple[str, ...]
    profile: Profile = "rfc9068"
    leeway: float = DEFAULT_LEEWAY
    scope_claims: tuple[str, ...] = ("scope", "scp")

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ConfigurationError("profile", f"expected {' or '.join(PROFILES)}")
        check_seconds("leeway", self.leeway)
        for setting in ("audience", "scope_claims"):
            if not all(isinstance(name, str) and name for name in getattr(self, setting)):
                raise ConfigurationError(setting, "expected one or more names, none of them empty")


def check_type(header: Claims, claims: Claims, profile: Profile) -> None:
    """Reject tokens that are signed with the same keys but are not access tokens.

    Source: RFC 9068, section 4; RFC 8725, sections 3.11 and 3.12.
    """
    typ = header.get("typ")
    if profile == "rfc9068":
        if typ is None or typ.lower() not in _ACCESS_TOKEN_TYPES:
            raise TokenRejected("wrong_type")
        return
    if typ is not None and typ.lower() not in _GENERIC_TYPES:
        raise TokenRejected("wrong_type")
    if any(name in claims for name in ID_TOKEN_CLAIMS):
        raise TokenRejected("wrong_type")
    if "typ" in claims:
        kind = claims["typ"]
        if not isinstance(kind, str) or kind.lower() not in _ACCESS_TOKEN_TYP_CLAIMS:
            raise TokenRejected("wrong_type")


def required_claims(profile: Profile) -> tuple[str, ...]:
    """Return the names of the claims that every token must have."""
    return _REQUIRED_RFC9068 if profile == "rfc9068" else _REQUIRED_GENERIC


def check_claims(claims: Claims, rules: Rules, *, now: float) -> frozenset[str]:
    """Check the claims of a token whose signature and issuer have been verified.

    Args:
        now: The current time in seconds since the epoch.

    Returns:
        The token's scopes.

    Raises:
        TokenRejected: The token violates a rule; the reason identifies the first such rule.

    Source: RFC 7519, section 4.1; RFC 9068, sections 2.2 and 4.
    """
    if not all(name in claims for name in required_claims(rules.profile)):
        raise TokenRejected("missing_claim")
    return check_values(claims, rules, now=now)


def check_values(claims: Claims, rules: Rules, *, now: float) -> frozenset[str]:
    """Check the claims that are present. Missing claims are accepted, except ``aud`` if an audience is required."""
    for name in NAMES:
        if name in claims:
            check_name(claims[name])
    scopes = read_scopes(claims, rules.scope_claims)
    if "cnf" in claims:
        # RFC 7800, section 3.1; RFC 9449, section 7.1; RFC 8705, section 3.
        raise TokenRejected("sender_constrained")
    check_times(claims, rules.leeway, now=now)
    if rules.audience:
        check_audience(claims.get("aud"), rules.audience)
    return scopes


def check_name(value: object) -> None:
    """Check a claim that applications use in logs, span attributes and database keys."""
    if not isinstance(value, str) or not value or has_control_character(value):
        raise TokenRejected("invalid_claim")


def check_times(claims: Mapping[str, object], leeway: float, *, now: float) -> None:
    """Check ``exp``, ``nbf`` and ``iat`` if present."""
    dates = {}
    for name in ("exp", "nbf", "iat"):
        if name in claims:
            value = claims[name]
            # Use type(), because bool is a subclass of int. A numeric string is not a NumericDate.
            if type(value) not in (int, float) or not 0 <= value < MAX_NUMERIC_DATE:  # type: ignore[operator]
                raise TokenRejected("invalid_claim")
            dates[name] = value
    # RFC 7519, section 4.1.4: the token must not be accepted on or after ``exp``.
    if "exp" in dates and now >= dates["exp"] + leeway:  # type: ignore[operator]
        raise TokenRejected("expired")
    for name in ("nbf", "iat"):
        if name in dates and now < dates[name] - leeway:  # type: ignore[operator]
            raise TokenRejected("not_yet_valid")


def check_audience(value: object, accepted: Sequence[str]) -> None:
    """Check that every entry in ``aud`` is a string and that at least one of them is in *accepted*."""
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise TokenRejected("missing_claim" if value is None else "invalid_claim")
    if not any(entry in accepted for entry in entries):
        raise TokenRejected("wrong_audience")


def read_scopes(claims: Mapping[str, object], names: Sequence[str]) -> frozenset[str]:
    """Return the scopes from the first claim in *names* that is present.

    Source: RFC 8693, section 4.2 (a space-separated string). Many issuers send a list instead.
    """
    for name in names:
        found, value = look_up(claims, name)
        if not found:
            continue
        words = value.split(" ") if isinstance(value, str) else value
        if not isinstance(words, list) or not all(isinstance(w, str) and not has_control_character(w) for w in words):
            raise TokenRejected("invalid_claim")
        return frozenset(word for word in words if word)
    return frozenset()


def look_up(claims: Mapping[str, object], name: str) -> tuple[bool, object]:
    """Return whether there is a claim with that name, and its value. A dot separates the names of nested members."""
    if name in claims:
        return True, claims[name]
    value: object = claims
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False, None
        value = value[part]
    return True, value
