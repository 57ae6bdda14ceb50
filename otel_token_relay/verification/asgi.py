"""`BearerAuthMiddleware` for ASGI applications (FastAPI, Starlette, Django, Litestar, and more)."""

from __future__ import annotations

from typing import Unpack

from otel_token_relay.authentication import Authenticator
from otel_token_relay.runtime import SettingsInForce, Terms
from otel_token_relay.servers.asgi import App, Receive, Scope, Send, serve
from otel_token_relay.settings import Settings
from otel_token_relay.verification.authenticator import AuthenticatorOptions, Verifier, choose_authenticator
from otel_token_relay.verification.principal import AuthCredentials, Principal, principal_of

__all__ = ["BearerAuthMiddleware", "Principal", "principal_of"]


class BearerAuthMiddleware:
    """ASGI middleware that accepts only requests with a valid bearer token.

    The response to a rejected HTTP request has status 400, 401, 403, or 503. A WebSocket connection without a valid
    token is rejected during the handshake. The middleware stores a `Principal` in ``scope["user"]`` and the token's
    scopes in ``scope["auth"]``, where Starlette's ``request.user`` and ``requires`` look for them.

    Args:
        app: The ASGI 3 application.
        verifier: A `TokenVerifier` or an `AsyncTokenVerifier`. With either class, the middleware does not block the
            event loop.
        authenticator: A custom `BearerAuthenticator` to use instead of *verifier* and *options*.
        settings: The settings that specify the token headers. The middleware uses these settings only if no outer
            boundary has read the headers. If this argument is ``None``, the middleware uses the installed settings or,
            if no settings are installed, the settings from the environment.
        options: Options for `BearerAuthenticator`: ``realm``, ``required_scopes``, ``any_scopes``, ``exclude``,
            ``resource_metadata``, ``acr_values``, and ``max_age``.

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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        else:
            await serve(self._enter, scope, receive, send, Terms(self._settings(), self._authenticator))

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal = principal_of(scope)
        scope["user"] = principal
        scope["auth"] = AuthCredentials(sorted(principal.scopes))
        await self.app(scope, receive, send)
