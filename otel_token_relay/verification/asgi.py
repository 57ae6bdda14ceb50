"""`BearerAuthMiddleware` for ASGI applications: FastAPI, Starlette, Django, Litestar, plain ones."""

from __future__ import annotations

from collections.abc import Sequence

from otel_token_relay.in_force import SettingsInForce
from otel_token_relay.servers.asgi import App, Receive, Scope, Send, serve
from otel_token_relay.settings import Settings
from otel_token_relay.verification.authenticator import BearerGate, Verifier
from otel_token_relay.verification.principal import Credentials, Principal, principal_of
from otel_token_relay.verification.span_claims import SpanClaimsInForce

__all__ = ["BearerAuthMiddleware", "Principal", "principal_of"]


class BearerAuthMiddleware:
    """Let in only requests with a valid bearer token.

    HTTP requests are answered with 400, 401, 403 or 503, websockets are refused before they are
    accepted. What is let in finds a `Principal` in ``scope["user"]`` and its scopes in
    ``scope["auth"]``, as Starlette's ``request.user`` and ``requires`` expect them.

    Args:
        app: The ASGI 3 application.
        verifier: A `TokenVerifier` or an `AsyncTokenVerifier`; neither stalls the event loop here.
        realm: Sent with each challenge; ``None`` for ``api``.
        required_scopes: The token must allow all of them.
        exclude: Paths that need no token, compared exactly with the path that the application routes by,
            without the mount point (``root_path``).
        resource_metadata: The URL of this resource's metadata (RFC 9728).
        acr_values: The token's ``acr`` must be one of these (RFC 9470).
        max_age: Seconds since the token's ``auth_time``, at most (RFC 9470).
        settings: Which headers hold the token, where no boundary has read them already; ``None``
            for the installed settings, else those of the environment.
    """

    def __init__(
        self,
        app: App,
        verifier: Verifier,
        *,
        realm: str | None = None,
        required_scopes: Sequence[str] = (),
        exclude: Sequence[str] = (),
        resource_metadata: str | None = None,
        acr_values: Sequence[str] = (),
        max_age: float | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.app = app
        self._settings = SettingsInForce(settings)
        self._gate = BearerGate(
            verifier,
            realm=realm,
            required_scopes=required_scopes,
            exclude=exclude,
            resource_metadata=resource_metadata,
            acr_values=acr_values,
            max_age=max_age,
            span_claims=SpanClaimsInForce(self._settings),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        else:
            await serve(self._enter, scope, receive, send, self._settings(), self._gate)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal = principal_of(scope)
        scope["user"] = principal
        scope["auth"] = Credentials(sorted(principal.scopes))
        await self.app(scope, receive, send)
