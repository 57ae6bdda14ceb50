"""FastAPI dependencies that return the principal of a verified request, as in this example::

    app.add_middleware(BearerAuthMiddleware, verifier=verifier)

    @app.get("/profiles/{user}")
    def show(user: str, caller: Annotated[Principal, Depends(require_scopes("profiles:read"))]): ...

The dependencies do not verify tokens. The application must verify tokens with `BearerAuthMiddleware` or at the server
boundary. If a request has not been verified, the dependencies raise `ConfigurationError` instead of accepting the
request.

A dependency must raise an exception to reject a request. FastAPI's default handler for `HTTPException` does not send
this package's standard response body. For this reason, the dependencies raise a subclass of `HTTPException` and add a
handler for the subclass to the application's handlers. Starlette provides these handlers in the scope. An application's
own handler for `HTTPException` or for the status code takes precedence. Applications that do not use the dependencies
are not affected.
"""

from collections.abc import Callable, Coroutine, MutableMapping
from typing import Any, Final

try:
    from fastapi import HTTPException, Security
    from fastapi.exception_handlers import http_exception_handler
    from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
    from fastapi.security import OAuth2, SecurityScopes
    from starlette.requests import HTTPConnection
    from starlette.responses import Response
except ImportError as _import_error:
    raise ImportError(
        "these dependencies require FastAPI: pip install 'otel-token-relay[verify]' fastapi", name=_import_error.name
    ) from _import_error

from otel_token_relay.authentication import ErrorResponse
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.verification.principal import Principal, challenges_of, principal_of

__all__ = ["Principal", "current_principal", "require_any_scope", "require_scopes"]


class _BearerScheme(OAuth2):
    """A dependency that returns the request's principal and appears in OpenAPI documents as the HTTP Bearer scheme.

    The base class is `OAuth2`, because older FastAPI versions document scopes only for OAuth2 schemes.
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
            raise _build_error(request.scope, challenges_of(request.scope).unauthenticated)
        return principal


_SCHEME = _BearerScheme()


async def current_principal(
    request: HTTPConnection,
    scopes: SecurityScopes,
    principal: Principal = Security(_SCHEME),  # noqa: B008  # how FastAPI declares a dependency
) -> Principal:
    """Return the request's principal. Use this dependency as ``Depends(current_principal)``.

    Raises:
        HTTPException: The request does not contain a valid token (status 401), or the token lacks a scope that
            ``Security(current_principal, scopes=[...])`` requires (status 403).
    """
    if not principal.scopes.issuperset(scopes.scopes):
        raise _build_error(request.scope, challenges_of(request.scope).build_insufficient_scope(scopes.scopes))
    return principal


def require_scopes(*scopes: str) -> Callable[..., Coroutine[Any, Any, Principal]]:
    """Build a dependency that returns the principal if the token has all of *scopes*."""

    async def principal_with_scopes(
        principal: Principal = Security(current_principal, scopes=scopes),  # noqa: B008
    ) -> Principal:
        return principal

    return principal_with_scopes


def require_any_scope(*scopes: str) -> Callable[..., Coroutine[Any, Any, Principal]]:
    """Build a dependency that returns the principal if the token has at least one of *scopes*.

    OpenAPI cannot express alternative scopes, so the OpenAPI document contains the scheme without these scopes.

    Raises:
        ConfigurationError: *scopes* is empty.
    """
    if not scopes:
        raise ConfigurationError("scopes", "expected at least one scope")

    async def principal_with_any_scope(
        request: HTTPConnection,
        principal: Principal = Security(current_principal),  # noqa: B008
    ) -> Principal:
        if principal.scopes.isdisjoint(scopes):
            raise _build_error(request.scope, challenges_of(request.scope).build_insufficient_scope(scopes))
        return principal

    return principal_with_any_scope


class _Rejected(HTTPException):
    """An exception that contains a complete error response.

    For the application's own exception handlers, the exception's attributes also contain the status and the
    ``WWW-Authenticate`` and ``Cache-Control`` headers.
    """

    def __init__(self, error_response: ErrorResponse) -> None:
        kept = ("WWW-Authenticate", "Cache-Control")
        headers = {name: value for name, value in error_response.headers if name in kept}
        super().__init__(error_response.status, headers=headers)
        self.error_response: ErrorResponse = error_response


def _build_error(scope: MutableMapping[str, Any], error_response: ErrorResponse) -> _Rejected:
    _add_handler(scope)
    return _Rejected(error_response)


# Starlette stores the application's exception handlers in the scope under this key.
_HANDLERS_KEY: Final = "starlette.exception_handlers"


def _add_handler(scope: MutableMapping[str, Any]) -> None:
    """Add the handler unless the application has its own.

    If the scope does not contain any handlers, FastAPI sends its default response body.
    """
    found = scope.get(_HANDLERS_KEY)
    if not (isinstance(found, tuple) and found and isinstance(found[0], dict)):
        return
    handlers = found[0]
    if next((handlers[kind] for kind in _Rejected.__mro__ if kind in handlers), None) is http_exception_handler:
        handlers[_Rejected] = _respond


async def _respond(request: HTTPConnection, error: _Rejected) -> Response:
    error_response = error.error_response
    # According to RFC 9110, section 9.3.2, a response to HEAD has the same headers as a response to GET but no body.
    body = b"" if request.scope.get("method") == "HEAD" else error_response.body
    return Response(body, error_response.status, dict(error_response.headers))
