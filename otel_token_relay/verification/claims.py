"""The rules for a token's header and claims. The functions in this module have no side effects.

First, `jws.parse_jws` parses the token. Then, the verifier checks the signature. Finally, the verifier calls
`check_type` and `check_claims`. Until the signature is verified, the verifier must use only the ``iss`` claim, and only
to select the keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from otel_token_relay.algorithms import PROFILES, Profile
from otel_token_relay.durations import check_seconds
from otel_token_relay.errors import ConfigurationError, TokenRejected
from otel_token_relay.verification.jws import Claims, has_control_character
from otel_token_relay.verification.token_kinds import read_kinds

# RFC 7519, section 2, defines a NumericDate as the number of seconds since the start of 1970. This limit corresponds to
# a date in the year 36812.
MAX_NUMERIC_DATE: Final = 2**40

# RFC 9068, section 4, requires "at+jwt" or "application/at+jwt". According to RFC 7515, section 4.1.9, media types are
# case-insensitive, and "application/" can be omitted.
_ACCESS_TOKEN_TYPES: Final = frozenset({"at+jwt", "application/at+jwt"})
_PLAIN_TYPES: Final = frozenset({"jwt", "application/jwt"})
ACCEPTED_TYPES: Final[Mapping[Profile, tuple[str, ...]]] = {
    "rfc9068": ("at+jwt",),
    "generic": ("at+jwt", "JWT", "no typ"),
    "id-token": ("JWT", "no typ"),
}
"""The accepted values of the ``typ`` header member, as displayed in messages."""

# RFC 9068, section 2.2; OpenID Connect Core, section 2.
_REQUIRED: Final[Mapping[Profile, tuple[str, ...]]] = {
    "rfc9068": ("iss", "exp", "aud", "sub", "client_id", "iat", "jti"),
    "generic": ("iss", "exp", "aud"),
    "id-token": ("iss", "exp", "aud", "sub", "iat"),
}

CLIENT_NAMES: Final = ("client_id", "azp", "cid", "appid")
"""The claims that identify the client (RFC 9068, section 2.2; OpenID Connect Core, section 2; Okta; Entra v1)."""

DEFAULT_LEEWAY: Final = 30.0
DEFAULT_SCOPE_CLAIMS: Final = ("scope", "scp")
NAMES: Final = ("sub", "jti", *CLIENT_NAMES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules that a token's claims must satisfy.

    Attributes:
        audience: The accepted audiences. The ``aud`` claim must contain at least one of these audiences. An empty tuple
            disables the audience check, which is allowed only with introspection.
        profile: Use ``rfc9068`` for access tokens that comply with RFC 9068. Use ``generic`` for issuers that send a
            ``typ`` of ``JWT`` or no ``typ``, or that omit ``jti``, ``client_id``, or ``iat``. Use ``id-token`` for
            providers whose clients send ID tokens to APIs.
        leeway: The maximum difference, in seconds, between the issuer's clock and the service's clock.
        scope_claims: The names of the claims that contain scopes. The scopes from all of these claims are combined. Use
            dots to specify nested members (for example, ``realm_access.roles``).
        audience_claim: The name of the claim that contains the audience. Change this value for issuers that do not send
            ``aud``. If a token also has an ``aud`` claim, both claims must contain an accepted audience. Any value
            other than ``aud`` requires the ``generic`` profile.
    """

    audience: tuple[str, ...]
    profile: Profile = "rfc9068"
    leeway: float = DEFAULT_LEEWAY
    scope_claims: tuple[str, ...] = DEFAULT_SCOPE_CLAIMS
    audience_claim: str = "aud"

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ConfigurationError("profile", f"expected one of {', '.join(PROFILES)}")
        check_seconds("leeway", self.leeway)
        for setting in ("audience", "scope_claims"):
            if not all(isinstance(name, str) and name for name in getattr(self, setting)):
                raise ConfigurationError(setting, "expected one or more non-empty names")
        if not isinstance(self.audience_claim, str) or not self.audience_claim:
            raise ConfigurationError("audience_claim", "expected the name of a claim")
        if self.audience_claim != "aud" and self.profile != "generic":
            raise ConfigurationError("audience_claim", "any claim other than aud requires the generic profile")

    @property
    def required_claims(self) -> tuple[str, ...]:
        """The claims that every token must have. The ``generic`` profile also requires ``sub`` or a client ID."""
        # If the audience claim is not ``aud``, the profile is always ``generic``.
        return _REQUIRED[self.profile] if self.audience_claim == "aud" else ("iss", "exp", self.audience_claim)

    def find_missing_claim(self, claims: Claims) -> str | None:
        """Return the name of the first missing claim, or ``None`` if all required claims are present."""
        for name in self.required_claims:
            if look_up(claims, name)[1] is None:
                return name
        if self.profile == "generic" and "sub" not in claims and not any(name in claims for name in CLIENT_NAMES):
            return "sub"
        return None


def without_nulls(claims: Claims) -> Claims:
    """Remove members with null values. Some issuers send null instead of omitting a member."""
    return {name: value for name, value in claims.items() if value is not None} if None in claims.values() else claims


def check_type(header: Claims, claims: Claims, profile: Profile) -> None:
    """Reject a token whose kind does not match the profile. See `token_kinds`.

    Source: RFC 9068, section 4; RFC 8725, sections 3.11 and 3.12.
    """
    typ = header.get("typ")
    is_access_token = typ is not None and typ.lower() in _ACCESS_TOKEN_TYPES
    if is_access_token:
        is_other = profile == "id-token"
    else:
        is_other = profile == "rfc9068" or (typ is not None and typ.lower() not in _PLAIN_TYPES)
    if is_other:
        raise TokenRejected("wrong_type", "typ")
    if profile == "rfc9068":
        return
    kinds = read_kinds(claims)
    if kinds.foreign is not None and (profile, kinds.foreign_kind) != ("id-token", "ID"):
        raise TokenRejected("wrong_type", kinds.foreign.members[0])
    if profile == "id-token":
        if kinds.access is not None and kinds.access.is_statement:
            raise TokenRejected("wrong_type", kinds.access.members[0])
    elif kinds.access is None and not is_access_token:
        raise TokenRejected("wrong_type")


def check_claims(claims: Claims, rules: Rules, *, now: float) -> frozenset[str]:
    """Check a token's claims after its signature and issuer have been verified.

    Args:
        now: The current time as seconds since the epoch.

    Returns:
        The token's scopes.

    Raises:
        TokenRejected: The token violates a rule. The reason identifies the first violated rule.

    Source: RFC 7519, section 4.1; RFC 9068, sections 2.2 and 4.
    """
    missing = rules.find_missing_claim(claims)
    if missing is not None:
        raise TokenRejected("missing_claim", missing)
    return check_values(claims, rules, now=now)


def check_values(claims: Claims, rules: Rules, *, now: float) -> frozenset[str]:
    """Check the claims that the token contains. Only the audience, if required, must be present."""
    for name in NAMES:
        if name in claims:
            check_name(claims[name], name)
    scopes = read_scopes(claims, rules.scope_claims)
    if "cnf" in claims:
        # RFC 7800, section 3.1; RFC 9449, section 7.1; RFC 8705, section 3.
        raise TokenRejected("sender_constrained", "cnf")
    check_times(claims, rules.leeway, now=now)
    if rules.audience:
        if rules.audience_claim != "aud":
            check_audience(look_up(claims, rules.audience_claim)[1], rules.audience, rules.audience_claim)
        if rules.audience_claim == "aud" or "aud" in claims:
            check_audience(claims.get("aud"), rules.audience)
    return scopes


def check_name(value: object, claim: str | None = None) -> None:
    """Check that a claim value is safe for an application to use in logs, span attributes, or database keys."""
    if not isinstance(value, str) or not value or has_control_character(value):
        raise TokenRejected("invalid_claim", claim)


def check_times(claims: Mapping[str, object], leeway: float, *, now: float) -> None:
    """Check the ``exp``, ``nbf``, and ``iat`` claims if they are present."""
    dates = {}
    for name in ("exp", "nbf", "iat"):
        if name in claims:
            value = claims[name]
            # Use type(), because bool is a subclass of int. A numeric string is not a NumericDate.
            if type(value) not in (int, float) or not 0 <= value < MAX_NUMERIC_DATE:  # type: ignore[operator]
                raise TokenRejected("invalid_claim", name)
            dates[name] = value
    # According to RFC 7519, section 4.1.4, the token must not be accepted at or after the time in ``exp``.
    if "exp" in dates and now >= dates["exp"] + leeway:  # type: ignore[operator]
        raise TokenRejected("expired", "exp")
    for name in ("nbf", "iat"):
        if name in dates and now < dates[name] - leeway:  # type: ignore[operator]
            raise TokenRejected("not_yet_valid", name)


def check_audience(value: object, accepted: Sequence[str], claim: str = "aud") -> None:
    """Check that the audience contains only strings and that at least one of them is in *accepted*."""
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise TokenRejected("missing_claim" if value is None else "invalid_claim", claim)
    if not any(entry in accepted for entry in entries):
        raise TokenRejected("wrong_audience", claim)


def read_scopes(claims: Mapping[str, object], names: Sequence[str]) -> frozenset[str]:
    """Return the combined scopes from all claims in *names*.

    Source: RFC 8693, section 4.2. The RFC requires a space-separated string, but many issuers send a list.
    """
    scopes: set[str] = set()
    for name in names:
        found, value = look_up(claims, name)
        if not found or value is None:
            continue
        words = value.split(" ") if isinstance(value, str) else value
        if not isinstance(words, list) or not all(isinstance(w, str) and not has_control_character(w) for w in words):
            raise TokenRejected("invalid_claim", name)
        scopes.update(words)
    scopes.discard("")
    return frozenset(scopes)


def look_up(claims: Mapping[str, object], name: str) -> tuple[bool, object]:
    """Return whether the *name* claim exists and, if so, its value. Dots in *name* separate the names of nested
    members."""
    if name in claims:
        return True, claims[name]
    value: object = claims
    if "." not in name:
        return False, None
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False, None
        value = value[part]
    return True, value
