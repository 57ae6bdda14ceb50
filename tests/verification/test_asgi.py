"""The middleware protects Starlette applications, WebSockets, and nested boundaries, and provides the caller."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import httpx
import pytest
import uvicorn
import websockets.sync.client
from starlette.applications import Starlette
from starlette.authentication import requires
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from uvicorn.config import WS_PROTOCOLS

from otel_token_relay import Settings, current_token
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
from otel_token_relay.verification.wsgi import PRINCIPAL_KEY
from otel_token_relay.verification.wsgi import BearerAuthMiddleware as WsgiAuth
from tests.support.issuers import Issuer, bearer, wait_until
from tests.support.tokens import AUDIENCE, claims, make_token


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


def test_header_is_read_once(issuer: Issuer, verifier: TokenVerifier) -> None:
    """The middleware uses the credentials that the boundary read, with the boundary's settings."""

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
    """WSGI middleware joins the surrounding boundary, so there is one lease and one verified token."""

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
    """An inner middleware with its own scope runs even if an outer middleware accepted the request."""

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
    """A middleware that calls the application again does not bypass a rejection or a pending check."""

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
    """An excluded path that dispatches to a different path does not exclude that path."""

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


@pytest.mark.parametrize("kind", [BearerAuthMiddleware, WsgiAuth], ids=["asgi", "wsgi"])
def test_misspelled_option_is_an_error(verifier: TokenVerifier, kind: Any) -> None:
    """A misspelled option raises an error, because ignoring it could leave the application unprotected."""
    with pytest.raises(TypeError, match="required_scope"):
        kind(None, verifier, required_scope=("admin",))


def test_middleware_uses_the_given_authenticator(issuer: Issuer, verifier: TokenVerifier) -> None:
    """The middleware uses the authenticator's scopes and realm, for ASGI and WSGI."""
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
    """An application with a WebSocket that sends the caller's identity."""

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
    """Without a valid token, the WebSocket handshake is rejected with the challenge; with one, the application accepts
    it.
    """
    newest = "websockets-sansio" if "websockets-sansio" in WS_PROTOCOLS else "websockets"
    with Websockets(verifier, newest) as url:
        with websockets.sync.client.connect(url, additional_headers=bearer(issuer)) as connection:
            assert connection.recv() == "aliceTrue"
        with pytest.raises(websockets.InvalidStatus) as refused:
            websockets.sync.client.connect(url, additional_headers=bearer(issuer, exp=1))

    assert refused.value.response.status_code == 401
    assert refused.value.response.headers["WWW-Authenticate"] == 'Bearer realm="api", error="invalid_token"'


def test_websocket_is_closed_where_the_server_cannot_answer(issuer: Issuer, verifier: TokenVerifier) -> None:
    """If the server cannot send an HTTP response to a handshake, the WebSocket is closed before it is accepted."""
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
