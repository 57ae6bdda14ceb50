"""FastAPI dependencies on a `BearerAuthMiddleware`, or on the boundary's own verification::

    app.add_middleware(BearerAuthMiddleware, verifier=verifier)

    @app.get("/profiles/{user}")
    def show(user: str, caller: Annotated[Principal, Depends(require_scopes("profiles:read"))]): ...

They read what was verified and verify nothing themselves. Without a middleware around the
application they fail with an error of the server, never by letting somebody in.
"""

from collections.abc import Callable, Coroutine
from typing import Any

try:
    from fastapi import HTTPException, Security
    from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
    from fastapi.security import OAuth2, SecurityScopes
    from starlette.requests import HTTPConnection
except ImportError as error:
    raise ImportError(
        "these dependencies need FastAPI: pip install 'otel-token-relay[verify]' fastapi", name=error.name
    ) from error

from otel_token_relay.door import Refusal
from otel_token_relay.verification.principal import Principal, challenges_of, principal_of

__all__ = ["Principal", "current_principal", "require_scopes"]


class _BearerScheme(OAuth2):
    """Stand in OpenAPI as the HTTP scheme Bearer, and give the principal of the request.

    It is an OAuth2 scheme for FastAPI, since older versions write down no scopes for other ones.
    """

    def __init__(self) -> None:
        self.model = HTTPBearerModel(bearerFormat="JWT")
        self.scheme_name = "BearerAuth"

    def __call__(  # type: ignore[override]  # FastAPI takes what a dependency gives
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
    """Give who the request speaks for: ``Depends(current_principal)``.

    Raises:
        HTTPException: 401 without a valid token; 403 where scopes named by
            ``Security(current_principal, scopes=[...])`` are missing.
    """
    if not principal.scopes.issuperset(scopes.scopes):
        raise _error(challenges_of(request.scope).build_insufficient_scope(scopes.scopes))
    return principal


def require_scopes(*scopes: str) -> Callable[..., Coroutine[Any, Any, Principal]]:
    """Build a dependency that gives the principal if the token allows all of *scopes*."""

    async def principal_with_scopes(
        principal: Principal = Security(current_principal, scopes=scopes),  # noqa: B008
    ) -> Principal:
        return principal

    return principal_with_scopes


def _error(refusal: Refusal) -> HTTPException:
    kept = ("WWW-Authenticate", "Cache-Control")
    headers = {name: value for name, value in refusal.headers if name in kept}
    return HTTPException(refusal.status, headers=headers)
