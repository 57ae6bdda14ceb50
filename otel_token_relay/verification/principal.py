"""The identity behind a verified request, in the form that applications use."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from otel_token_relay.boundary import BOUNDARY_KEY, Boundary
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.verification.authenticator import DEFAULT_REALM, BearerAuthenticator
from otel_token_relay.verification.challenges import Challenges
from otel_token_relay.verification.verifier import VerifiedToken


class Principal:
    """A request's identity, with the attributes that Starlette and similar frameworks expect a user object to have.

    Attributes:
        token: The verified token; ``None`` on a path that does not require one.
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
        """The client to which the token was issued."""
        return None if self.token is None else self.token.client_id

    @property
    def scopes(self) -> frozenset[str]:
        """The token's scopes; empty if the request has no token."""
        return frozenset() if self.token is None else self.token.scopes

    @property
    def claims(self) -> Mapping[str, Any]:
        """The verified claims, as a read-only mapping; empty if the request has no token."""
        return {} if self.token is None else self.token.claims

    @property
    def identity(self) -> str:
        """The identity; see `VerifiedToken.identity`. Empty if the request has no token."""
        return "" if self.token is None else self.token.identity

    @property
    def display_name(self) -> str:
        """The same as `identity`."""
        return self.identity

    def __repr__(self) -> str:
        return f"Principal({self.token!r})"


class AuthCredentials:
    """A request's scopes, in the form that Starlette's ``requires`` expects."""

    __slots__ = ("scopes",)

    def __init__(self, scopes: Sequence[str]) -> None:
        self.scopes: list[str] = list(scopes)


def principal_of(request: MutableMapping[str, Any]) -> Principal:
    """Return the principal for an ASGI scope or a WSGI environ.

    Raises:
        ConfigurationError: No authenticator has checked this request, because neither `BearerAuthMiddleware`
            nor the server boundary verifies tokens for this application.
    """
    boundary: Boundary | None = request.get(BOUNDARY_KEY)
    if boundary is None or not boundary.admitted_by:
        raise ConfigurationError("verification", "request not verified; add BearerAuthMiddleware to the application")
    verification = None if boundary.token is None else boundary.token.verification
    return Principal(verification if isinstance(verification, VerifiedToken) else None)


def challenges_of(request: MutableMapping[str, Any]) -> Challenges:
    """Return the error responses of the last authenticator that accepted this request."""
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
