"""Applications read a request's identity from an ASGI scope or a WSGI environ."""

from __future__ import annotations

from typing import Any

import pytest

from otel_token_relay import BearerToken, Settings
from otel_token_relay.authentication import ErrorResponse, RequestPath
from otel_token_relay.boundary import BOUNDARY_KEY, Boundary
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.verification import TokenVerifier
from otel_token_relay.verification.authenticator import BearerAuthenticator
from otel_token_relay.verification.principal import AuthCredentials, Principal, challenges_of, principal_of
from tests.support.issuers import Issuer
from tests.support.tokens import AUDIENCE, claims, make_token


class Foreign:
    """An application's own authenticator, which accepts every request."""

    def check(self, credentials: object, path: RequestPath) -> ErrorResponse | None:
        if isinstance(credentials, BearerToken):
            credentials.mark_verified(self)  # type: ignore[arg-type]
        return None


def request_with(token: str | None, *authenticators: Any, path: str = "/") -> dict[str, Any]:
    """Return a request that these authenticators checked, outermost first."""
    lines = [] if token is None else [f"Bearer {token}"]
    boundary = Boundary.of(lambda name: lines if name.lower() == "authorization" else [], Settings())
    for authenticator in authenticators:
        assert boundary.check(authenticator, RequestPath(path, path)) is None
    return {BOUNDARY_KEY: boundary}


def test_a_principal_shows_what_was_verified(issuer: Issuer, verifier: TokenVerifier) -> None:
    """A principal provides the verified claims, and frameworks find the subject under two additional names."""
    token = make_token(claims(issuer.url, scope="a b"))
    principal = principal_of(request_with(token, BearerAuthenticator(verifier)))

    assert principal.is_authenticated
    assert principal.subject == principal.display_name == principal.identity == "alice"
    assert principal.client_id == "web"
    assert principal.scopes == {"a", "b"}
    assert principal.claims["jti"] == "j-1"
    with pytest.raises(TypeError):
        principal.claims["sub"] = "admin"  # type: ignore[index]


def test_the_principal_of_a_machine_has_the_identity_of_its_client(issuer: Issuer) -> None:
    """The principal of a machine, whose token has no subject, has the client's identity under both names."""
    verifier = TokenVerifier([issuer.url], AUDIENCE, profile="generic")
    token = make_token(claims(issuer.url, sub=...), typ="JWT")
    principal = principal_of(request_with(token, BearerAuthenticator(verifier)))

    assert principal.is_authenticated
    assert principal.subject is None
    assert principal.identity == principal.display_name == "client:web"
    assert principal.client_id == "web"


def test_a_principal_without_a_token_has_no_identity(verifier: TokenVerifier) -> None:
    """A principal on an excluded path has no identity, because its token is not verified."""
    authenticator = BearerAuthenticator(verifier, exclude=("/open",))
    for token in (None, "opaque"):
        principal = principal_of(request_with(token, authenticator, path="/open"))

        assert not principal.is_authenticated
        assert (principal.token, principal.subject, principal.client_id) == (None, None, None)
        assert principal.display_name == principal.identity == ""
        assert principal.scopes == frozenset()
        assert dict(principal.claims) == {}


def test_a_request_that_was_not_checked_is_an_error(issuer: Issuer) -> None:
    """Reading the principal of an unchecked request is an error, so a missing middleware does not look like a missing
    token.
    """
    for request in ({}, {BOUNDARY_KEY: None}, request_with(None), request_with(make_token(claims(issuer.url)))):
        with pytest.raises(ConfigurationError, match="BearerAuthMiddleware") as rejected:
            principal_of(request)
        assert rejected.value.setting == "verification"


def test_a_result_of_another_kind_is_not_a_principal() -> None:
    """A custom authenticator's result that lacks the verified token's properties is not a principal."""
    principal = principal_of(request_with("opaque", Foreign()))

    assert not principal.is_authenticated


def test_the_challenges_are_those_of_the_last_authenticator(issuer: Issuer, verifier: TokenVerifier) -> None:
    """The challenges are those of the last built-in authenticator, or have the default realm if there is none."""
    token = make_token(claims(issuer.url))
    outer, inner = (BearerAuthenticator(verifier, realm=realm) for realm in ("outer", "inner"))

    assert challenges_of(request_with(token, outer, inner)) is inner.challenges
    assert challenges_of(request_with(token, outer, Foreign())) is outer.challenges
    for request in ({}, request_with(token), request_with(token, Foreign())):
        challenge = dict(challenges_of(request).unauthenticated.headers)["WWW-Authenticate"]
        assert challenge == 'Bearer realm="api"'


def test_the_scopes_for_starlette_are_a_list_of_its_own() -> None:
    """Each request has its own list of scopes, which Starlette's ``requires`` searches."""
    scopes = ["a", "b"]
    credentials = AuthCredentials(scopes)
    scopes.append("admin")

    assert credentials.scopes == ["a", "b"]


def test_verified_token_does_not_print_its_claims(issuer: Issuer, verifier: TokenVerifier) -> None:
    """The `repr` of a verified token or of a principal does not contain the caller or the token."""
    token = make_token(claims(issuer.url, sub="alice-the-secret"))
    verified = verifier.verify(token)

    for shown in (repr(verified), str(Principal(verified)), f"{verified}"):
        assert "alice" not in shown
        assert token not in shown
