"""`BearerAuthMiddleware` and a scope check for views in WSGI frameworks such as Flask, Django, and Falcon."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, Unpack

from otel_token_relay.authentication import Authenticator, ErrorResponse
from otel_token_relay.runtime import SettingsInForce, Terms
from otel_token_relay.servers.wsgi import App, Environ, StartResponse, serve
from otel_token_relay.settings import Settings
from otel_token_relay.verification.authenticator import AuthenticatorOptions, Verifier, choose_authenticator
from otel_token_relay.verification.principal import Principal, challenges_of, principal_of

__all__ = ["PRINCIPAL_KEY", "BearerAuthMiddleware", "Principal", "Response", "principal_of", "refuse_without"]

PRINCIPAL_KEY: Final = "otel_token_relay.principal"


class BearerAuthMiddleware:
    """WSGI middleware that accepts only requests with a valid bearer token.

    The response to a rejected request has the status 400, 401, 403, or 503. The middleware stores a `Principal` in
    ``environ["otel_token_relay.principal"]``.

    Args:
        app: The WSGI application, such as ``app.wsgi_app`` in Flask.
        verifier: A `TokenVerifier` or an `AsyncTokenVerifier`.
        authenticator: A custom `BearerAuthenticator` to use instead of *verifier* and *options*.
        settings: The settings that specify the token headers. The middleware uses these settings only if no outer
            boundary has read the headers. If this argument is ``None``, the middleware uses the installed settings or,
            if no settings are installed, the settings from the environment.
        options: The `BearerAuthenticator` options, which are ``realm``, ``required_scopes``, ``any_scopes``,
            ``exclude``, ``resource_metadata``, ``acr_values``, and ``max_age``.

    Raises:
        ConfigurationError: An option is invalid. The error identifies the option.
    """

    def __init__(
        self,
        app: App,
        verifier: Verifier | None = None,
        *,
        authenticator: Authenticator | None = None,
        settings: Settings | None = None,
        **options: Unpack[AuthenticatorOptions],
    ) -> None:
        self.app = app
        self._settings = SettingsInForce(settings)
        self._authenticator = choose_authenticator(verifier, authenticator, self._settings, options)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        return serve(self._enter, environ, start_response, Terms(self._settings(), self._authenticator))

    def _enter(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        environ[PRINCIPAL_KEY] = principal_of(environ)
        return self.app(environ, start_response)


class Response(NamedTuple):
    """A complete response. A Flask view can return this tuple.

    Attributes:
        body: The response body.
        status: The status code, which is 401 or 403.
        headers: All response headers, including the challenge.
    """

    body: bytes
    status: int
    headers: dict[str, str]


def refuse_without(environ: Environ, *scopes: str) -> Response | None:
    """Return an error response if the caller's token does not contain all *scopes*; otherwise, return ``None``::

        if refusal := refuse_without(request.environ, "profiles:read"):
            return refusal

    Args:
        environ: The WSGI environ, which is ``request.environ`` in Flask and ``request.META`` in Django.
        scopes: The required scopes, which are listed in the challenge (RFC 6750, section 3.1). If no scopes are
            specified, every valid token is accepted.

    Raises:
        ConfigurationError: No authenticator has checked this request, or a scope contains a character that
            is not allowed in a challenge.
    """
    principal, challenges = principal_of(environ), challenges_of(environ)
    insufficient = challenges.build_insufficient_scope(scopes)
    if not principal.is_authenticated:
        return _to_response(challenges.unauthenticated)
    return None if principal.scopes.issuperset(scopes) else _to_response(insufficient)


def _to_response(error_response: ErrorResponse) -> Response:
    return Response(error_response.body, error_response.status, dict(error_response.headers))
