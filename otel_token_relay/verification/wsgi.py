"""`BearerAuthMiddleware` for WSGI applications: Flask, Django, Falcon, plain ones; scopes for single views."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from otel_token_relay.door import Refusal
from otel_token_relay.in_force import SettingsInForce
from otel_token_relay.servers.wsgi import App, Environ, StartResponse, serve
from otel_token_relay.settings import Settings
from otel_token_relay.verification.authenticator import BearerGate, Verifier
from otel_token_relay.verification.principal import Principal, challenges_of, principal_of
from otel_token_relay.verification.span_claims import SpanClaimsInForce

__all__ = ["PRINCIPAL_KEY", "Answer", "BearerAuthMiddleware", "Principal", "principal_of", "refuse_without"]

PRINCIPAL_KEY: Final = "otel_token_relay.principal"


class BearerAuthMiddleware:
    """Let in only requests with a valid bearer token.

    The others are answered with 400, 401, 403 or 503. What is let in finds a `Principal` in
    ``environ["otel_token_relay.principal"]``.

    Args:
        app: The WSGI application; for Flask, ``app.wsgi_app``.
        verifier: A `TokenVerifier` or an `AsyncTokenVerifier`.
        realm: Sent with each challenge; ``None`` for ``api``.
        required_scopes: The token must allow all of them.
        exclude: Paths that need no token, compared exactly with the path that the application routes by,
            without the mount point (``SCRIPT_NAME``).
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

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        return serve(self._enter, environ, start_response, self._settings(), self._gate)

    def _enter(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        environ[PRINCIPAL_KEY] = principal_of(environ)
        return self.app(environ, start_response)


class Answer(NamedTuple):
    """A whole response, in the order in which Flask takes one from a view.

    Attributes:
        body: The same for every request.
        status: 401 or 403.
        headers: The challenge among them.
    """

    body: bytes
    status: int
    headers: dict[str, str]


def refuse_without(environ: Environ, *scopes: str) -> Answer | None:
    """Give the answer to a caller whose token does not allow all of *scopes*; ``None`` for one who may go on::

        if refusal := refuse_without(request.environ, "profiles:read"):
            return refusal

    Args:
        environ: Flask's ``request.environ``, Django's ``request.META``.
        scopes: Named in the challenge (RFC 6750, section 3.1). Without any, a valid token will do.

    Raises:
        ConfigurationError: No gate has checked this request, or a scope cannot stand in a challenge.
    """
    principal, challenges = principal_of(environ), challenges_of(environ)
    needed = challenges.build_insufficient_scope(scopes)
    if not principal.is_authenticated:
        return _answer(challenges.unauthenticated)
    return None if principal.scopes.issuperset(scopes) else _answer(needed)


def _answer(refusal: Refusal) -> Answer:
    return Answer(refusal.body, refusal.status, dict(refusal.headers))
