"""Determine a token's kind from the members of the token or its introspection response.

An issuer typically uses the same keys to sign access tokens, ID tokens, refresh tokens, and other JWTs. Only RFC 9068
requires a distinct type for access tokens. `MARKERS` lists the members that common providers use to distinguish between
kinds of tokens. To support an additional provider, add an entry to `MARKERS`.

The providers document the member names publicly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

TokenKind = Literal["access", "ID", "refresh", "other"]


class Marker(NamedTuple):
    """An entry in `MARKERS`.

    Attributes:
        provider: The name of the provider or specification.
        members: The members, all of which must be present. Messages mention only the first member.
        kind: The kind of token that has these members, or ``None`` if the value of the first member determines the
            kind.
        source: The document that describes these members.
        has_value: A callable that checks whether the value of the first member matches this marker. If this attribute
            is ``None``, any value matches.
        is_statement: Whether the marker explicitly identifies an access token. Such a marker takes precedence over
            ``nonce``, which some providers copy into access tokens.
        is_closed: Whether an unknown value of the first member indicates a different kind of token. If false, unknown
            values are ignored, because applications might use the member for other purposes.
        accepted: The values that the provider uses in access tokens. Messages list these values with the provider's
            spelling. If *is_closed* is true, these values are accepted even if they do not identify a kind.
    """

    provider: str
    members: tuple[str, ...]
    kind: TokenKind | None
    source: str
    has_value: Callable[[object], bool] | None = None
    is_statement: bool = False
    is_closed: bool = False
    accepted: tuple[str, ...] = ()

    def kind_of(self, claims: Mapping[str, Any]) -> TokenKind | None:
        """Return the kind of token that this marker indicates, or ``None`` if the marker does not match."""
        if not all(claims.get(name) is not None for name in self.members):
            return None
        value = claims[self.members[0]]
        if self.kind is not None:
            return self.kind if self.has_value is None or self.has_value(value) else None
        word = _normalize(value) if isinstance(value, str) else ""
        if word in _WORDS:
            return _WORDS[word]
        return "other" if self.is_closed and word not in map(_normalize, self.accepted) else None


def _normalize(word: str) -> str:
    return word.lower().replace("-", "").replace("_", "").replace(" ", "")


_WORDS: Final[Mapping[str, TokenKind]] = {
    **dict.fromkeys(("access", "accesstoken", "bearer", "at", "at+jwt"), "access"),
    **dict.fromkeys(("id", "idtoken", "idt", "identity", "identitytoken"), "ID"),
    **dict.fromkeys(("refresh", "refreshtoken", "rt", "offline", "offlinetoken"), "refresh"),
}
"""A mapping from normalized words (see `_normalize`) to kinds of tokens."""


def _is_scope(value: object) -> bool:
    return isinstance(value, (str, list))


def _is_version_2(value: object) -> bool:
    return value == "2.0"


def _is_spiffe_id(value: object) -> bool:
    return isinstance(value, str) and value.startswith("spiffe://")


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_app(value: object) -> bool:
    return value == "app"


def _names(provider: str, member: str, source: str, *accepted: str, is_closed: bool = True) -> Marker:
    """Build the marker for a member whose value determines the kind of token."""
    return Marker(provider, (member,), None, source, None, True, is_closed, accepted)


def _access(
    provider: str,
    *members: str,
    source: str,
    has_value: Callable[[object], bool] | None = None,
    is_statement: bool = False,
) -> Marker:
    return Marker(provider, members, "access", source, has_value, is_statement)


MARKERS: Final[tuple[Marker, ...]] = (
    # The value of each of these members determines the kind of token.
    _names("Keycloak", "typ", "Keycloak: TokenUtil (Bearer, ID, Refresh, Offline, Logout)", "Bearer", "JWT", "at+jwt"),
    _names("Amazon Cognito", "token_use", "Cognito: Verifying JSON web tokens; Hydra: introspection", "access"),
    _names("RFC 7662", "token_type", "RFC 7662, section 2.2; djangorestframework-simplejwt", "Bearer", "access", "JWT"),
    _names("Casdoor", "tokenType", "Casdoor: object.Claims.TokenType; PingAM: client-side tokens", "access-token"),
    _names("PingAM", "tokenName", "PingAM: client-side tokens", "access_token"),
    _names("OpenIddict", "token_usage", "OpenIddict: Claims.TokenUsage", "access_token"),
    _names("flask-jwt-extended", "type", "flask-jwt-extended: claim type", "access", is_closed=False),
    _names("FusionAuth", "tty", "FusionAuth: OAuth tokens, access token claims", "at", is_closed=False),
    # These members indicate that a token is not an access token.
    Marker("OpenID Connect", ("at_hash",), "ID", "OpenID Connect Core, section 3.1.3.6"),
    Marker("OpenID Connect", ("c_hash",), "ID", "OpenID Connect Core, section 3.3.2.11"),
    Marker("Financial-grade API", ("s_hash",), "ID", "FAPI 1.0 part 2, section 5.1"),
    Marker("OpenID Connect", ("nonce",), "ID", "OpenID Connect Core, section 2"),
    Marker("OpenID Connect", ("sub_jwk",), "ID", "OpenID Connect Core, section 7.4"),
    Marker(
        "RFC 8417", ("events",), "other", "RFC 8417, section 2.2; OpenID Connect Back-Channel Logout, 2.4", _is_object
    ),
    # These members indicate an access token.
    _access("RFC 9068; RFC 8693", "scope", source="RFC 8693, section 4.2", has_value=_is_scope),
    _access(
        "Microsoft Entra; Azure AD B2C; Okta; Hydra",
        "scp",
        source="Microsoft: Access token claims reference; Okta: Tokens and claims; Hydra: strategies.jwt.scope_claim",
        has_value=_is_scope,
        is_statement=True,
    ),
    _access("RFC 9068", "client_id", "jti", source="RFC 9068, section 2.2"),
    _access("Microsoft Entra v2", "azpacr", source="Microsoft: Access token claims reference"),
    _access("Microsoft Entra v2", "ver", "azp", "tid", source="Microsoft: ID token claims", has_value=_is_version_2),
    _access("Microsoft Entra v1", "appidacr", source="Microsoft: Access token claims reference"),
    _access("Microsoft Entra v1; AD FS", "appid", source="Microsoft: Access token claims; AD FS: OAuth concepts"),
    _access("Microsoft Entra", "idtyp", source="Microsoft: Optional claims reference"),
    _access("Okta", "cid", source="Okta: Access token claims"),
    _access("Auth0", "gty", source="Auth0: Access token profiles"),
    _access("FusionAuth", "authenticationType", "applicationId", source="FusionAuth: OAuth tokens"),
    _access("Supabase", "session_id", "role", "aal", source="Supabase: JWT claims reference"),
    _access("Clerk", "sid", "fva", source="Clerk: Session tokens"),
    _access("Clerk", "sid", "sts", source="Clerk: Session tokens"),
    _access(
        "Cloudflare Access", "type", "identity_nonce", source="Cloudflare One: Application token", has_value=_is_app
    ),
    _access("Cloudflare Access", "type", "common_name", source="Cloudflare One: Application token", has_value=_is_app),
    _access("Kubernetes", "kubernetes.io", source="Kubernetes: Managing service accounts, schema for bound tokens"),
    _access("GitHub Actions", "repository", "repository_owner", source="GitHub: OpenID Connect reference"),
    _access("GitLab CI", "project_path", "namespace_path", source="GitLab: OpenID Connect in CI/CD, token payload"),
    _access("SPIFFE", "sub", source="SPIFFE: JWT-SVID, section 3.1", has_value=_is_spiffe_id),
)


class Kinds(NamedTuple):
    """The markers that match a token's members.

    Attributes:
        access: A marker that indicates an access token, or ``None``. An explicit marker takes precedence.
        foreign: The first marker that indicates a different kind of token, or ``None``.
        foreign_kind: The kind of token that *foreign* indicates.
    """

    access: Marker | None
    foreign: Marker | None
    foreign_kind: TokenKind | None


def _by_first_member() -> dict[str, tuple[Marker, ...]]:
    found: dict[str, tuple[Marker, ...]] = {}
    for marker in MARKERS:
        found[marker.members[0]] = (*found.get(marker.members[0], ()), marker)
    return found


_MARKERS_OF: Final = _by_first_member()


def read_kinds(claims: Mapping[str, Any]) -> Kinds:
    """Find the markers that match the members of a token or an introspection response."""
    access = statement = foreign = foreign_kind = nonce = None
    for name in claims:
        for marker in _MARKERS_OF.get(name, ()):
            kind = marker.kind_of(claims)
            if kind is None:
                continue
            if kind == "access":
                access = access or marker
                statement = statement or (marker if marker.is_statement else None)
            elif name == "nonce":
                nonce = marker
            elif foreign is None:
                foreign, foreign_kind = marker, kind
    if foreign is None and nonce is not None and statement is None:
        foreign, foreign_kind = nonce, "ID"
    return Kinds(statement or access, foreign, foreign_kind)


# Source: OpenID Connect Core, sections 2 and 5.1; OpenID Connect Front-Channel Logout, section 3 (sid); the Keycloak,
# Microsoft Entra, and Cognito claim references.
_OF_USERS: Final = (
    *("preferred_username", "username", "cognito:username", "upn", "unique_name", "email", "name", "given_name"),
    *("family_name", "nickname", "phone_number", "auth_time", "amr", "nonce", "sid", "session_state", "session_id"),
)


def names_user(claims: Mapping[str, Any]) -> bool:
    """Return whether a token without ``sub`` might represent a user rather than a client."""
    return any(claims.get(name) is not None for name in _OF_USERS)
