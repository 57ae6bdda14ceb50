"""The identity of a verified request, which applications can use."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from otel_token_relay.boundary import BOUNDARY_KEY, Boundary
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.verification.authenticator import DEFAULT_REALM, BearerAuthenticator
from otel_token_relay.verification.challenges import Challenges
from otel_token_relay.verification.verifier import VerifiedToken


class Principal:
    """A request's identity. An instance has the attributes of a user object in Starlette and similar frameworks.

    Attributes:
        token: The verified token, or ``None`` if the request was accepted without a token.
    """

    __slots__ = ("token",)

    def __init__(self, token: VerifiedToken | None) -> None:
        self.token: VerifiedToken | None = token

    @property
    def is_authenticated(self) -> bool:
        """Whether the request contained a valid token."""
        return self.token is not None

    @property
    def subject(self) -> str | None:
        """The ``sub`` claim."""
        return None if self.token is None else self.token.subject

    @property
    def client_id(self) -> str | None:
        """The client that the token was issued to."""
        return None if self.token is None else self.token.client_id

    @property
    def scopes(self) -> frozenset[str]:
        """The token's scopes. The set is empty if the request has no token."""
        return frozenset() if self.token is None else self.token.scopes

    @property
    def claims(self) -> Mapping[str, Any]:
        """The verified claims. The mapping is read-only and is empty if the request has no token."""
        return {} if self.token is None else self.token.claims

    @property
    def identity(self) -> str:
        """The token's identity, or an empty string if the request has no token. See `VerifiedToken.identity`."""
        return "" if self.token is None else self.token.identity

    @property
    def display_name(self) -> str:
        """An alias for `identity`."""
        return self.identity

    def __repr__(self) -> str:
        return f"Principal({self.token!r})"


class AuthCredentials:
    """A request's scopes, in the format that Starlette's ``requires`` decorator expects."""

    __slots__ = ("scopes",)

    def __init__(self, scopes: Sequence[str]) -> None:
        self.scopes: list[str] = list(scopes)


def principal_of(request: MutableMapping[str, Any]) -> Principal:
    """Return the principal for an ASGI scope or a WSGI environ.

    Raises:
        ConfigurationError: The request has not been verified by `BearerAuthMiddleware` or at the server boundary.
    """
    boundary: Boundary | None = request.get(BOUNDARY_KEY)
    if boundary is None or not boundary.admitted_by:
        raise ConfigurationError("verification", "request not verified; add BearerAuthMiddleware to the application")
    verification = None if boundary.token is None else boundary.token.verification
    return Principal(verification if isinstance(verification, VerifiedToken) else None)


def challenges_of(request: MutableMapping[str, Any]) -> Challenges:
    """Return the error responses from the last authenticator that accepted this request."""
    boundary: Boundary | None = request.get(BOUNDARY_KEY)
    admitted_by = () if boundary is None else boundary.admitted_by
    return next(
        (
            authenticator.challenges
            for authenticator, _, _ in reversed(admitted_by)
            if isinstance(authenticator, BearerAuthenticator)
        ),
        Challenges(realm=DEFAULT_REALM),
    )
