"""Applications behind the middleware: Starlette, FastAPI, WebSockets, nested boundaries, and the caller they see."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Annotated, Any

import fastapi
import httpx
import pytest
import uvicorn
import websockets.sync.client
from fastapi import Depends, Security
from starlette.applications import Starlette
from starlette.authentication import requires
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from uvicorn.config import WS_PROTOCOLS

from otel_token_relay import Settings, current_token, install, uninstall
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.servers.asgi import TokenRelayMiddleware as AsgiBoundary
from otel_token_relay.servers.wsgi import TokenRelayMiddleware as WsgiBoundary
from otel_token_relay.verification import (
    AsyncTokenVerifier,
    KeysUnavailable,
    TokenRejected,
    TokenVerifier,
    VerifiedToken,
)
from otel_token_relay.verification.asgi import BearerAuthMiddleware
from otel_token_relay.verification.authenticator import BearerAuthenticator
from otel_token_relay.verification.fastapi import Principal, current_principal, require_scopes
from otel_token_relay.verification.wsgi import PRINCIPAL_KEY
from otel_token_relay.verification.wsgi import BearerAuthMiddleware as WsgiAuth
from tests.support.issuers import Issuer, issuing, wait_until
from tests.support.tokens import AUDIENCE, claims, make_token, public_jwk


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with issuing(public_jwk("RS256", "k1")) as running:
        yield running


@pytest.fixture(scope="module")
def verifier(issuer: Issuer) -> TokenVerifier:
    return TokenVerifier([issuer.url], AUDIENCE)


def bearer(issuer: Issuer, **changes: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {make_token(claims(issuer.url, **changes))}"}


@pytest.mark.parametrize("kind", [TokenVerifier, AsyncTokenVerifier], ids=["sync", "async"])
def test_starlette_sees_user_and_auth(issuer: Issuer, kind: Any) -> None:
    """``request.user`` and ``requires`` work as with Starlette's own middleware, with either verifier."""

    @requires("profiles:write")
    async def write(request: Request) -> JSONResponse:
        return JSONResponse({"user": request.user.display_name, "scopes": request.auth.scopes})

    @requires("admin")
    async def rule(request: Request) -> JSONResponse:
        raise AssertionError("no token has this scope")

    async def open_to_all(request: Request) -> JSONResponse:
        return JSONResponse({"known": request.user.is_authenticated, "scopes": request.auth.scopes})

    app = Starlette(routes=[Route("/write", write), Route("/rule", rule), Route("/open", open_to_all)])
    app.add_middleware(BearerAuthMiddleware, verifier=kind([issuer.url], AUDIENCE), exclude=("/open",))
    client = TestClient(app)

    assert client.get("/write", headers=bearer(issuer)).json() == {
        "user": "alice",
        "scopes": ["profiles:read", "profiles:write"],
    }
    assert client.get("/rule", headers=bearer(issuer)).status_code == 403
    assert client.get("/write").status_code == 401
    assert client.get("/open").json() == {"known": False, "scopes": []}


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

    @app.get("/excluded")
    def excluded(caller: Annotated[Principal, Depends(current_principal)]) -> None: ...

    return app


def test_fastapi_dependency_gives_the_principal(issuer: Issuer, verifier: TokenVerifier) -> None:
    """The dependency returns the principal that the middleware has verified."""
    client = TestClient(make_fastapi(verifier))

    assert client.get("/me", headers=bearer(issuer)).json() == {
        "sub": "alice",
        "client": "web",
        "scopes": ["profiles:read", "profiles:write"],
    }
    assert client.get("/profiles", headers=bearer(issuer)).json() == "alice"


@pytest.mark.parametrize(("path", "scope"), [("/admin", "profiles:read admin"), ("/security", "admin")])
def test_fastapi_scopes_are_required(issuer: Issuer, verifier: TokenVerifier, path: str, scope: str) -> None:
    """A missing scope is 403 with the required scopes; a token with all of them is accepted."""
    client = TestClient(make_fastapi(verifier))

    refused = client.get(path, headers=bearer(issuer))
    assert refused.status_code == 403
    assert refused.headers["www-authenticate"] == f'Bearer realm="api", error="insufficient_scope", scope="{scope}"'
    assert refused.headers["cache-control"] == "no-store"
    assert client.get(path, headers=bearer(issuer, scope="profiles:read admin")).status_code == 200


def test_fastapi_dependency_on_an_excluded_path_still_asks(issuer: Issuer, verifier: TokenVerifier) -> None:
    """A path that is excluded from the middleware is not verified, so it has no principal."""
    client = TestClient(make_fastapi(verifier))

    refused = client.get("/excluded", headers=bearer(issuer))
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == 'Bearer realm="api"'


def test_fastapi_dependency_without_a_middleware_is_an_error_of_the_server(issuer: Issuer) -> None:
    """A missing middleware is an error, never access."""
    with pytest.raises(ConfigurationError):
        TestClient(make_fastapi(None)).get("/me", headers=bearer(issuer))


def test_fastapi_shows_scheme_and_scopes_in_openapi(verifier: TokenVerifier) -> None:
    """The API description tells clients to send a bearer token."""
    description = TestClient(make_fastapi(verifier)).get("/openapi.json").json()

    assert description["components"]["securitySchemes"] == {
        "BearerAuth": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    }
    assert description["paths"]["/me"]["get"]["security"] == [{"BearerAuth": []}]
    assert description["paths"]["/profiles"]["get"]["security"] == [{"BearerAuth": ["profiles:read"]}]
    assert description["paths"]["/admin"]["get"]["security"] == [{"BearerAuth": ["profiles:read", "admin"]}]


def test_header_is_read_once(issuer: Issuer, verifier: TokenVerifier) -> None:
    """The middleware uses the credentials that the boundary has read, with the boundary's settings."""

    async def show(request: Request) -> JSONResponse:
        token = current_token()
        return JSONResponse({"user": request.user.identity, "claims": token is not None and token.claims is not None})

    app = Starlette(routes=[Route("/", show)])
    app.add_middleware(BearerAuthMiddleware, verifier=verifier)
    outside = AsgiBoundary(app, Settings(source_headers=("x-forwarded-access-token",)))
    client = TestClient(outside)

    token = make_token(claims(issuer.url))
    assert client.get("/", headers={"X-Forwarded-Access-Token": token}).json() == {"user": "alice", "claims": True}
    assert client.get("/", headers={"Authorization": f"Bearer {token}"}).status_code == 401


def test_wsgi_boundary_around_the_middleware_is_joined(issuer: Issuer, verifier: TokenVerifier) -> None:
    """The same for WSGI: one lease, one token, verified."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        token = current_token()
        start_response("200 OK", [("Content-Type", "text/plain")])
        assert token is not None
        assert token.claims is not None
        return [f"{environ[PRINCIPAL_KEY].subject} {token.claims['sub']}".encode()]

    wrapped = WsgiBoundary(WsgiAuth(app, verifier), Settings())
    client = httpx.Client(transport=httpx.WSGITransport(app=wrapped), base_url="http://test")

    assert client.get("/", headers=bearer(issuer)).text == "alice alice"
    assert client.get("/").status_code == 401


def test_two_middlewares_both_have_their_say(issuer: Issuer, verifier: TokenVerifier) -> None:
    """An inner middleware with its own scope runs even if the request has passed an outer one."""

    async def show(request: Request) -> JSONResponse:
        return JSONResponse({})

    app = Starlette(routes=[Route("/", show), Route("/open", show)])
    inner = BearerAuthMiddleware(app, verifier, required_scopes=("admin",))
    outer = BearerAuthMiddleware(inner, verifier, exclude=("/open",))
    client = TestClient(outer)

    assert client.get("/", headers=bearer(issuer)).status_code == 403
    assert client.get("/", headers=bearer(issuer, scope="admin")).status_code == 200
    assert client.get("/open").status_code == 401


class Refusing:
    """A slow verifier that rejects every token."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def verify(self, token: str) -> VerifiedToken:
        await asyncio.sleep(0.02)
        raise self.error


async def again_after_503(app: Any, scope: Any, receive: Any, answers: list[int]) -> None:
    for _ in range(3):
        await app(scope, receive, noting(answers))


async def several_of_one(app: Any, scope: Any, receive: Any, answers: list[int]) -> None:
    paths = ("/a", "/b", "/c")
    await asyncio.gather(*[app(dict(scope, path=path), receive, noting(answers)) for path in paths])


async def again_after_a_timeout(app: Any, scope: Any, receive: Any, answers: list[int]) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(app(scope, receive, noting(answers)), 0.001)
    await app(scope, receive, noting(answers))


def noting(answers: list[int]) -> Any:
    async def send(message: Any) -> None:
        if "status" in message:
            answers.append(message["status"])

    return send


@pytest.mark.parametrize("middleware", [again_after_503, several_of_one, again_after_a_timeout])
@pytest.mark.parametrize(("error", "status"), [(TokenRejected("expired"), 401), (KeysUnavailable(1.0), 503)])
def test_a_middleware_that_calls_again_gets_nobody_in(middleware: Any, error: Exception, status: int) -> None:
    """Neither a rejection nor a pending check counts as passed for later calls."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the application was called")

    answers: list[int] = []
    settings = Settings()
    inner = BearerAuthMiddleware(application, Refusing(error), settings=settings)

    async def between(scope: Any, receive: Any, send: Any) -> None:
        await middleware(inner, scope, receive, answers)

    scope = {"type": "http", "method": "GET", "path": "/x", "headers": [(b"authorization", b"Bearer forged")]}
    asyncio.run(AsgiBoundary(between, settings)(scope, noting([]), noting([])))

    assert answers
    assert set(answers) == {status}


def test_what_is_excluded_on_one_path_is_not_on_another(verifier: TokenVerifier) -> None:
    """An excluded path that dispatches to another path does not open that one."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/batch":
            await protected(dict(scope, path="/admin"), receive, send)
            return
        raise AssertionError("the application was called")

    answers: list[int] = []
    protected = BearerAuthMiddleware(application, verifier, exclude=("/batch",), settings=Settings())
    asyncio.run(
        protected({"type": "http", "method": "GET", "path": "/batch", "headers": []}, noting([]), noting(answers))
    )

    assert answers == [401]


def test_foreign_verifier_does_for_asgi_and_wsgi(issuer: Issuer) -> None:
    """Any object with a verify method works, awaited or not; no error of it accepts a request."""
    own = TokenVerifier([issuer.url], AUDIENCE)

    class Foreign:
        def verify(self, token: str) -> Any:
            if token == "broken":
                raise RuntimeError("the token was " + token)
            return own.verify(token)

    class Awaited:
        async def verify(self, token: str) -> Any:
            return own.verify(token)

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        await JSONResponse({"user": scope["user"].identity})(scope, receive, send)

    def wsgi(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [json.dumps({"user": environ[PRINCIPAL_KEY].identity}).encode()]

    clients = [
        TestClient(BearerAuthMiddleware(asgi, Foreign())),
        TestClient(BearerAuthMiddleware(asgi, Awaited())),
        httpx.Client(transport=httpx.WSGITransport(app=WsgiAuth(wsgi, Foreign())), base_url="http://test"),
    ]
    for client in clients:
        assert client.get("/", headers=bearer(issuer)).json() == {"user": "alice"}
        assert client.get("/", headers=bearer(issuer, exp=1)).status_code == 401
    for client in (clients[0], clients[2]):
        assert client.get("/", headers={"Authorization": "Bearer broken"}).status_code == 503


@pytest.mark.parametrize(
    ("claimed", "status"),
    [
        pytest.param({"acr": "gold", "auth_time": 1}, 401, id="too long ago"),
        pytest.param({"acr": "bronze", "auth_time": 2e9}, 401, id="not strong enough"),
        pytest.param({"auth_time": 2e9}, 401, id="no acr"),
        pytest.param({"acr": "gold"}, 401, id="no auth_time"),
        pytest.param({"acr": "gold", "auth_time": "2000000000"}, 401, id="auth_time a text"),
        pytest.param({"acr": "gold", "auth_time": 2e9}, 200, id="good enough"),
    ],
)
def test_step_up_is_asked_for(issuer: Issuer, verifier: TokenVerifier, claimed: dict[str, Any], status: int) -> None:
    """Row 18: RFC 9470, section 3."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await JSONResponse({})(scope, receive, send)

    client = TestClient(BearerAuthMiddleware(app, verifier, acr_values=("gold", "silver"), max_age=300))
    reply = client.get("/", headers=bearer(issuer, **claimed))

    assert reply.status_code == status
    if status == 401:
        assert reply.headers["www-authenticate"] == (
            'Bearer realm="api", error="insufficient_user_authentication", acr_values="gold silver", max_age="300"'
        )


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"realm": ""}, id="empty realm"),
        pytest.param({"realm": 'a"b'}, id="quote in the realm"),
        pytest.param({"realm": "a\\b"}, id="backslash in the realm"),
        pytest.param({"realm": "a\r\nX: y"}, id="line break in the realm"),
        pytest.param({"realm": "é"}, id="realm beyond ASCII"),
        pytest.param({"required_scopes": ("a b",)}, id="space in a scope"),
        pytest.param({"required_scopes": "profiles:read"}, id="scopes as one text"),
        pytest.param({"resource_metadata": "https://a.example/\n"}, id="line break in the metadata"),
        pytest.param({"exclude": "/healthz"}, id="paths as one text"),
        pytest.param({"exclude": ("healthz",)}, id="path without a slash"),
        pytest.param({"acr_values": ('a"b',)}, id="quote in acr"),
    ],
)
@pytest.mark.parametrize("kind", [BearerAuthMiddleware, WsgiAuth], ids=["asgi", "wsgi"])
def test_option_that_would_break_the_challenge_is_refused(
    verifier: TokenVerifier, kind: Any, options: dict[str, Any]
) -> None:
    """The error is raised at construction, not with the first request."""
    with pytest.raises(ConfigurationError):
        kind(None, verifier, **options)


@pytest.mark.parametrize("kind", [BearerAuthMiddleware, WsgiAuth], ids=["asgi", "wsgi"])
def test_misspelled_option_is_an_error(verifier: TokenVerifier, kind: Any) -> None:
    """An option that would be ignored silently could open the application."""
    with pytest.raises(TypeError, match="required_scope"):
        kind(None, verifier, required_scope=("admin",))


@pytest.mark.parametrize("kind", [BearerAuthMiddleware, WsgiAuth], ids=["asgi", "wsgi"])
@pytest.mark.parametrize(
    ("with_verifier", "with_authenticator", "options"),
    [
        pytest.param(False, False, {}, id="neither"),
        pytest.param(True, True, {}, id="both"),
        pytest.param(False, True, {"required_scopes": ("admin",)}, id="authenticator and options"),
    ],
)
def test_middleware_takes_either_a_verifier_or_an_authenticator(
    verifier: TokenVerifier, kind: Any, with_verifier: bool, with_authenticator: bool, options: dict[str, Any]
) -> None:
    """Ambiguous arguments are an error at construction."""
    authenticator = BearerAuthenticator(verifier) if with_authenticator else None
    with pytest.raises(ConfigurationError):
        kind(None, verifier if with_verifier else None, authenticator=authenticator, **options)


def test_middleware_uses_the_given_authenticator(issuer: Issuer, verifier: TokenVerifier) -> None:
    """The scopes and the realm are those of the authenticator, for ASGI and WSGI."""
    authenticator = BearerAuthenticator(verifier, realm="shared", required_scopes=("admin",))

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        await JSONResponse("reached")(scope, receive, send)

    def wsgi(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"reached"]

    for client in (
        TestClient(BearerAuthMiddleware(asgi, authenticator=authenticator)),
        httpx.Client(
            transport=httpx.WSGITransport(WsgiAuth(wsgi, authenticator=authenticator)), base_url="http://service"
        ),
    ):
        challenge = client.get("/").headers["www-authenticate"]
        rejected = client.get("/", headers=bearer(issuer))
        accepted = client.get("/", headers=bearer(issuer, scope="admin"))

        assert challenge == 'Bearer realm="shared", scope="admin"'
        assert rejected.status_code == 403
        assert "reached" in accepted.text


class Websockets:
    """Build an application with a WebSocket that sends the caller."""

    def __init__(self, verifier: TokenVerifier, implementation: str) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "websocket.accept"})
            token = current_token()
            await send({"type": "websocket.send", "text": scope["user"].identity + str(token is not None)})
            await receive()

        config = uvicorn.Config(
            BearerAuthMiddleware(app, verifier), port=0, log_level="error", ws=implementation, lifespan="off"
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> str:
        self.thread.start()
        wait_until(lambda: self.server.started)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        return f"ws://127.0.0.1:{port}/"

    def __exit__(self, *error: object) -> None:
        self.server.should_exit = True
        self.thread.join(10)


def test_websocket_is_refused_before_it_is_accepted(issuer: Issuer, verifier: TokenVerifier) -> None:
    """The handshake is rejected with the challenge; with a valid token the application takes over."""
    newest = "websockets-sansio" if "websockets-sansio" in WS_PROTOCOLS else "websockets"
    with Websockets(verifier, newest) as url:
        with websockets.sync.client.connect(url, additional_headers=bearer(issuer)) as connection:
            assert connection.recv() == "aliceTrue"
        with pytest.raises(websockets.InvalidStatus) as refused:
            websockets.sync.client.connect(url, additional_headers=bearer(issuer, exp=1))

    assert refused.value.response.status_code == 401
    assert refused.value.response.headers["WWW-Authenticate"] == 'Bearer realm="api", error="invalid_token"'


def test_websocket_is_closed_where_the_server_cannot_answer(issuer: Issuer, verifier: TokenVerifier) -> None:
    """Without the extension for a response, the WebSocket is closed before it is accepted."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("this must not be reached")

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    import anyio

    scope = {"type": "websocket", "path": "/", "headers": []}
    anyio.run(BearerAuthMiddleware(app, verifier), scope, receive, send)

    assert sent == [{"type": "websocket.close", "code": 1008, "reason": ""}]


def test_claims_of_one_request_are_its_own(issuer: Issuer) -> None:
    """The verification is shared, the claims are copies: one request cannot change those of the next."""
    verifier = TokenVerifier([issuer.url], AUDIENCE)
    token = make_token(claims(issuer.url, roles=["reader"]))

    first = verifier.verify(token)
    first.claims["roles"].append("admin")
    with pytest.raises(TypeError):
        first.claims["sub"] = "admin"  # type: ignore[index]

    assert verifier.verify(token).claims["roles"] == ["reader"]


def test_verified_token_does_not_print_its_claims(issuer: Issuer, verifier: TokenVerifier) -> None:
    """Neither the verified token nor the principal shows the caller or the token."""
    token = make_token(claims(issuer.url, sub="alice-the-secret"))
    verified = verifier.verify(token)

    for shown in (repr(verified), str(Principal(verified)), f"{verified}"):
        assert "alice" not in shown
        assert token not in shown


def test_rejection_holds_no_token(verifier: TokenVerifier, issuer: Issuer) -> None:
    """The error, its cause and its arguments contain the name of the rule only."""
    token = make_token(claims(issuer.url, aud="elsewhere"))
    with pytest.raises(TokenRejected) as refused:
        verifier.verify(token)

    assert refused.value.reason == "wrong_audience"
    assert token not in repr(refused.value.args) + str(refused.value) + repr(refused.value.__cause__)


def test_installed_boundary_and_middleware_are_one(issuer: Issuer, verifier: TokenVerifier) -> None:
    """With the hooks installed, the relayed token is the verified one."""
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
