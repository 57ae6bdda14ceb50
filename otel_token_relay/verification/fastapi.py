"""FastAPI dependencies that require `BearerAuthMiddleware` or verification at the server boundary::

    app.add_middleware(BearerAuthMiddleware, verifier=verifier)

    @app.get("/profiles/{user}")
    def show(user: str, caller: Annotated[Principal, Depends(require_scopes("profiles:read"))]): ...

The dependencies read the verification result; they do not verify anything themselves. If the request has
not been verified, they fail with a server error and never accept it.
"""

from collections.abc import Callable, Coroutine
from typing import Any

try:
    from fastapi import HTTPException, Security
    from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
    from fastapi.security import OAuth2, SecurityScopes
    from starlette.requests import HTTPConnection
except ImportError as _import_error:
    raise ImportError(
        "these dependencies require FastAPI: pip install 'otel-token-relay[verify]' fastapi", name=_import_error.name
    ) from _import_error

from otel_token_relay.authentication import ErrorResponse
from otel_token_relay.verification.principal import Principal, challenges_of, principal_of

__all__ = ["Principal", "current_principal", "require_scopes"]


class _BearerScheme(OAuth2):
    """Appear in OpenAPI as the HTTP Bearer scheme, and return the request's principal.

    The base class is OAuth2, because older FastAPI versions document scopes only for OAuth2 schemes.
    """

    def __init__(self) -> None:
        self.model = HTTPBearerModel(bearerFormat="JWT")
        self.scheme_name = "BearerAuth"

    def __call__(  # type: ignore[override]  # FastAPI allows a dependency to return any type
        self,
        request: HTTPConnection,
    ) -> Principal:  # pyright: ignore[reportIncompatibleMethodOverride]
        principal = principal_of(request.scope)
        if not principal.is_authenticated:
            raise _error(challenges_of(request.scope).unauthenticated)
        return principal


_SCHEME = _BearerScheme()


async def current_principal(
    request: HTTPConnection,
    scopes: SecurityScopes,
    principal: Principal = Security(_SCHEME),  # noqa: B008  # how FastAPI declares a dependency
) -> Principal:
    """Return the request's principal. Use as ``Depends(current_principal)``.

    Raises:
        HTTPException: Status 401 if the request has no valid token; 403 if the token lacks a scope that
            ``Security(current_principal, scopes=[...])`` requires.
    """
    if not principal.scopes.issuperset(scopes.scopes):
        raise _error(challenges_of(request.scope).build_insufficient_scope(scopes.scopes))
    return principal


def require_scopes(*scopes: str) -> Callable[..., Coroutine[Any, Any, Principal]]:
    """Build a dependency that returns the principal if the token has all of *scopes*."""

    async def principal_with_scopes(
        principal: Principal = Security(current_principal, scopes=scopes),  # noqa: B008
    ) -> Principal:
        return principal

    return principal_with_scopes


def _error(error_response: ErrorResponse) -> HTTPException:
    kept = ("WWW-Authenticate", "Cache-Control")
    headers = {name: value for name, value in error_response.headers if name in kept}
    return HTTPException(error_response.status, headers=headers)
