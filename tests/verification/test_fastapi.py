"""FastAPI dependencies provide the principal, require scopes, and appear in the API description."""

from __future__ import annotations

from typing import Annotated, Any

import fastapi
import pytest
from fastapi import Depends, Security
from starlette.testclient import TestClient

from otel_token_relay import Settings, current_token, install, uninstall
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.verification import TokenVerifier
from otel_token_relay.verification.asgi import BearerAuthMiddleware
from otel_token_relay.verification.fastapi import Principal, current_principal, require_any_scope, require_scopes
from tests.support.issuers import Issuer, bearer


def make_fastapi(verifier: TokenVerifier | None) -> fastapi.FastAPI:
    app = fastapi.FastAPI()
    if verifier is not None:
        app.add_middleware(BearerAuthMiddleware, verifier=verifier, exclude=("/excluded", "/openapi.json"))

    @app.get("/me")
    def me(caller: Annotated[Principal, Depends(current_principal)]) -> dict[str, Any]:
        return {"sub": caller.subject, "client": caller.client_id, "scopes": sorted(caller.scopes)}

    @app.get("/profiles")
    def profiles(caller: Annotated[Principal, Depends(require_scopes("profiles:read"))]) -> str | None:
        return caller.subject

    @app.get("/admin", dependencies=[Depends(require_scopes("profiles:read", "admin"))])
    def admin() -> None: ...

    @app.get("/security")
    def security(caller: Annotated[Principal, Security(current_principal, scopes=["admin"])]) -> None: ...

    @app.get("/any", dependencies=[Depends(require_any_scope("admin", "profiles:read"))])
    def any_of() -> None: ...

    @app.get("/excluded")
    def excluded(caller: Annotated[Principal, Depends(current_principal)]) -> None: ...

    return app


def test_fastapi_dependency_gives_the_principal(issuer: Issuer, verifier: TokenVerifier) -> None:
    """The dependency returns the principal that the middleware verified."""
    client = TestClient(make_fastapi(verifier))

    assert client.get("/me", headers=bearer(issuer)).json() == {
        "sub": "alice",
        "client": "web",
        "scopes": ["profiles:read", "profiles:write"],
    }
    assert client.get("/profiles", headers=bearer(issuer)).json() == "alice"


@pytest.mark.parametrize(("path", "scope"), [("/admin", "profiles:read admin"), ("/security", "admin")])
def test_fastapi_scopes_are_required(issuer: Issuer, verifier: TokenVerifier, path: str, scope: str) -> None:
    """A missing scope is a 403 error with the required scopes, and a token with all scopes is accepted."""
    client = TestClient(make_fastapi(verifier))

    refused = client.get(path, headers=bearer(issuer))
    assert refused.status_code == 403
    assert refused.headers["www-authenticate"] == f'Bearer realm="api", error="insufficient_scope", scope="{scope}"'
    assert refused.headers["cache-control"] == "no-store"
    assert client.get(path, headers=bearer(issuer, scope="profiles:read admin")).status_code == 200


@pytest.mark.parametrize(
    ("scope", "status"),
    [("profiles:read", 200), ("other admin", 200), ("profiles:read admin", 200), ("profiles", 403), ("", 403)],
)
def test_fastapi_one_of_several_scopes_is_enough(
    issuer: Issuer, verifier: TokenVerifier, scope: str, status: int
) -> None:
    """One of several alternative scopes is enough, and the challenge contains all of them."""
    client = TestClient(make_fastapi(verifier))

    response = client.get("/any", headers=bearer(issuer, scope=scope))
    assert response.status_code == status
    if status == 403:
        expected = 'Bearer realm="api", error="insufficient_scope", scope="admin profiles:read"'
        assert response.headers["www-authenticate"] == expected
    assert client.get("/any").status_code == 401


def test_fastapi_needs_scopes_to_choose_from() -> None:
    """A dependency that no token can satisfy is an error."""
    with pytest.raises(ConfigurationError):
        require_any_scope()


def test_fastapi_dependency_on_an_excluded_path_still_asks(issuer: Issuer, verifier: TokenVerifier) -> None:
    """A dependency on an excluded path rejects the request, because the middleware verified no principal."""
    client = TestClient(make_fastapi(verifier))

    refused = client.get("/excluded", headers=bearer(issuer))
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == 'Bearer realm="api"'


def test_fastapi_dependency_without_a_middleware_is_an_error_of_the_server(issuer: Issuer) -> None:
    """A dependency without a middleware is a server error and never grants access."""
    with pytest.raises(ConfigurationError):
        TestClient(make_fastapi(None)).get("/me", headers=bearer(issuer))


def test_fastapi_shows_scheme_and_scopes_in_openapi(verifier: TokenVerifier) -> None:
    """The API description instructs clients to send a bearer token with the scopes."""
    description = TestClient(make_fastapi(verifier)).get("/openapi.json").json()

    assert description["components"]["securitySchemes"] == {
        "BearerAuth": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    }
    assert description["paths"]["/me"]["get"]["security"] == [{"BearerAuth": []}]
    assert description["paths"]["/profiles"]["get"]["security"] == [{"BearerAuth": ["profiles:read"]}]
    assert description["paths"]["/admin"]["get"]["security"] == [{"BearerAuth": ["profiles:read", "admin"]}]


def test_installed_boundary_and_middleware_are_one(issuer: Issuer, verifier: TokenVerifier) -> None:
    """With the hooks installed, the boundary and the middleware act as one, and the relayed token is the verified
    one.
    """
    install(Settings())
    try:
        app = make_fastapi(verifier)

        @app.get("/token")
        async def token() -> Any:
            current = current_token()
            return None if current is None or current.claims is None else current.claims["sub"]

        assert TestClient(app).get("/token", headers=bearer(issuer)).json() == "alice"
    finally:
        uninstall()


@pytest.mark.parametrize("scope", ["a b", 'a"b', "", "a\r\nX: y"], ids=ascii)
def test_a_scope_that_would_break_the_challenge_accepts_no_request(
    issuer: Issuer, verifier: TokenVerifier, scope: str
) -> None:
    """A scope that would break the challenge is never satisfied, even by a token with all of its words."""
    app = fastapi.FastAPI()
    app.add_middleware(BearerAuthMiddleware, verifier=verifier)

    @app.get("/", dependencies=[Depends(require_scopes(scope))])
    def never() -> None:
        raise AssertionError("the application was called")

    with pytest.raises(ConfigurationError) as rejected:
        TestClient(app).get("/", headers=bearer(issuer, scope="a b"))
    assert rejected.value.setting == "scopes"
