"""h03: every request is verified, even if the application does not use a supported framework."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from otel_token_relay import Settings, current_token, install
from tests.support.issuers import Issuer
from tests.support.servers import TIMEOUT_SECONDS, get, serve_asgi, serve_wsgi
from tests.support.tokens import AUDIENCE, claims, make_token

called: list[str] = []


@pytest.fixture(autouse=True)
def nothing_called() -> None:
    """Clear the list of applications that were called in the previous test."""
    called.clear()


def note(name: str) -> str:
    """Record a call to an application and return whether the application has a token."""
    called.append(name)
    return "none" if current_token() is None else "token"


async def plain_asgi(scope: Any, receive: Any, send: Any) -> None:
    """Serve an HTTP request or a WebSocket without a framework."""
    if scope["type"] == "websocket":
        await receive()
        seen = note("plain WebSocket")
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": seen})
        await send({"type": "websocket.close"})
        return
    seen = note("plain ASGI")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": seen.encode()})


def plain_wsgi(environ: Any, start_response: Any) -> list[bytes]:
    """Serve a request without a framework."""
    start_response("200 OK", [])
    return [note("plain WSGI").encode()]


def channels_app() -> Any:
    """Return the root application from the Channels documentation, without Django's own application."""
    pytest.importorskip("channels")
    from channels.generic.http import AsyncHttpConsumer
    from channels.generic.websocket import AsyncWebsocketConsumer
    from channels.routing import ProtocolTypeRouter, URLRouter
    from django.urls import re_path

    from tests.support.apps import django_asgi

    django_asgi()  # the consumers read Django's settings

    class HttpConsumer(AsyncHttpConsumer):  # type: ignore[misc]
        async def handle(self, body: bytes) -> None:
            await self.send_response(200, note("Channels HTTP").encode())

    class WebsocketConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]
        async def connect(self) -> None:
            seen = note("Channels WebSocket")
            await self.accept()
            await self.send(seen)
            await self.close()

    http, websocket = HttpConsumer.as_asgi(), WebsocketConsumer.as_asgi()
    return ProtocolTypeRouter(
        {"http": URLRouter([re_path("", http)]), "websocket": URLRouter([re_path("", websocket)])}
    )


def socketio_app() -> Any:
    """Return a Socket.IO server that wraps a plain ASGI application."""
    socketio = pytest.importorskip("socketio")
    server = socketio.AsyncServer(async_mode="asgi")

    @server.event  # type: ignore[misc]
    async def connect(sid: str, environ: Any) -> None:
        note("Socket.IO")

    return socketio.ASGIApp(server, plain_asgi)


def sanic_app() -> Any:
    """Return a Sanic application, which implements ASGI."""
    sanic = pytest.importorskip("sanic")
    sanic.Sanic.test_mode = True  # allow several applications with the same name
    app = sanic.Sanic("h03")

    @app.get("/")  # type: ignore[misc]
    async def root(request: Any) -> Any:
        return sanic.text(note("Sanic"))

    return app


def mounted_asgi() -> Any:
    """Return an application that routes some paths to a Starlette mount and all other paths to a plain application."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    inner = Starlette(routes=[Mount("/admin", plain_asgi)])

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        mounted = scope["path"].startswith("/admin")
        await (inner if mounted else plain_asgi)(scope, receive, send)

    return outer


def beside_flask(mounted: Any) -> Any:
    """Return a Flask application with another application mounted next to it."""
    from flask import Flask
    from werkzeug.middleware.dispatcher import DispatcherMiddleware

    app = Flask("h03")
    app.add_url_rule("/<path:path>", "all", lambda path: note("Flask"))
    return DispatcherMiddleware(app, {"/admin": mounted})


def prometheus_wsgi() -> Any:
    """Return a Flask application with a Prometheus endpoint mounted next to it."""
    return beside_flask(pytest.importorskip("prometheus_client").make_wsgi_app())


def prometheus_asgi() -> Any:
    """Return a FastAPI application with a Prometheus endpoint mounted in it."""
    from fastapi import FastAPI

    app = FastAPI(openapi_url=None)
    app.mount("/admin", pytest.importorskip("prometheus_client").make_asgi_app())
    return app


def pyramid_app() -> Any:
    """Return a Pyramid application."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pyramid imports pkg_resources
        configurator = pytest.importorskip("pyramid.config").Configurator()
    from pyramid.response import Response

    configurator.add_route("root", "/")
    configurator.add_view(lambda request: Response(note("Pyramid")), route_name="root")
    return configurator.make_wsgi_app()


def bottle_app() -> Any:
    """Return a Bottle application."""
    app = pytest.importorskip("bottle").Bottle()
    app.route("/", callback=lambda: note("Bottle"))
    return app


ENGINE_IO = "/socket.io/?EIO=4&transport="
HTTP_CASES: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "Channels, HTTP": (channels_app, serve_asgi, "/"),
    "Socket.IO, polling": (socketio_app, serve_asgi, f"{ENGINE_IO}polling"),
    "beside Socket.IO": (socketio_app, serve_asgi, "/"),
    "Sanic": (sanic_app, partial(serve_asgi, lifespan="on"), "/"),
    "prometheus_client, ASGI": (prometheus_asgi, serve_asgi, "/admin/"),
    "plain ASGI": (lambda: plain_asgi, serve_asgi, "/"),
    "plain ASGI, mounted": (mounted_asgi, serve_asgi, "/admin/"),
    "plain ASGI, beside Starlette": (mounted_asgi, serve_asgi, "/"),
    "beside Flask": (lambda: beside_flask(plain_wsgi), serve_wsgi, "/admin"),
    "Flask, beside": (lambda: beside_flask(plain_wsgi), serve_wsgi, "/other"),
    "prometheus_client, WSGI": (prometheus_wsgi, serve_wsgi, "/admin"),
    "plain WSGI": (lambda: plain_wsgi, serve_wsgi, "/"),
    "Pyramid": (pyramid_app, serve_wsgi, "/"),
    "Bottle": (bottle_app, serve_wsgi, "/"),
}
SOCKET_CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "Channels": (channels_app, "/"),
    "Socket.IO": (socketio_app, f"{ENGINE_IO}websocket"),
    "plain ASGI": (lambda: plain_asgi, "/"),
}


def enforce(issuer: Issuer, *excluded: str) -> None:
    """Install settings that enforce verification."""
    install(Settings(verify="enforce", issuers=(issuer.url,), audience=AUDIENCE, verify_exclude=excluded))


def forge(token: str) -> str:
    """Return the token with an invalid signature."""
    return f"{token[:-8]}AAAAAAAA"


@pytest.mark.parametrize(("build", "serve", "path"), HTTP_CASES.values(), ids=HTTP_CASES.keys())
def test_h03_an_application_is_called_for_verified_requests_only(
    issuer: Issuer, build: Callable[[], Any], serve: Any, path: str
) -> None:
    """A request with a forged token, or without a token, gets status 401 and runs no application code."""
    enforce(issuer)
    token = make_token(claims(issuer.url))
    with serve(build()) as port:
        refused = [get(port, path, wrong).status for wrong in (None, forge(token))]
        called_before = list(called)
        served = get(port, path, token)

    assert refused == [401, 401]
    assert called_before == []
    assert served.status == 200
    if called and "Socket.IO" not in called:
        assert served.text == "token"


@pytest.mark.parametrize(("build", "path"), SOCKET_CASES.values(), ids=SOCKET_CASES.keys())
def test_h03_a_websocket_is_accepted_with_a_verified_token_only(
    issuer: Issuer, build: Callable[[], Any], path: str
) -> None:
    """The application never receives a rejected WebSocket handshake."""
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    enforce(issuer)
    token = make_token(claims(issuer.url))
    with serve_asgi(build()) as port:
        url = f"ws://127.0.0.1:{port}{path}"
        for headers in ({}, {"Authorization": f"Bearer {forge(token)}"}):
            with pytest.raises(InvalidStatus) as raised:
                connect(url, additional_headers=headers, proxy=None)
            assert raised.value.response.status_code in (401, 403)
        called_before = list(called)
        with connect(url, additional_headers={"Authorization": f"Bearer {token}"}, proxy=None) as connection:
            message = str(connection.recv(TIMEOUT_SECONDS))

    assert called_before == []
    assert message == "token" or message.startswith("0{")  # Engine.IO opens a session


# The tests below cover exclusions. Each boundary checks the path that its own application routes. An inner boundary
# skips verification if the outer boundary has already checked the same complete path.


def mounted_fastapi() -> Any:
    """Return a FastAPI application with a second one mounted in it."""
    from fastapi import FastAPI

    outer, inner = FastAPI(openapi_url=None), FastAPI(openapi_url=None)
    for app in (outer, inner):
        app.add_api_route("/healthz", lambda: note("healthz"))
        app.add_api_route("/data", lambda: note("data"))
    outer.mount("/api", inner)
    return outer


def falcon_app() -> Any:
    """Return a Falcon application, which routes by the complete path."""
    import falcon
    import falcon.asgi

    class Resource:
        async def on_get(self, request: Any, response: Any) -> None:
            response.text = note("Falcon")

    app = falcon.asgi.App()
    app.add_route("/api/healthz", Resource())
    return app


MOUNTS = [
    pytest.param(mounted_fastapi, "", "/healthz", {"/healthz": 200, "/api/healthz": 401, "/data": 401}, id="root"),
    pytest.param(
        mounted_fastapi,
        "",
        "/api/healthz",
        {"/api/healthz": 200, "/healthz": 401, "/api/data": 401},
        id="mounted application",
    ),
    # uvicorn prepends the root path to the path in the request.
    pytest.param(
        mounted_fastapi, "/api", "/healthz", {"/healthz": 200, "/api/healthz": 401, "/data": 401}, id="root path"
    ),
    pytest.param(mounted_fastapi, "/api", "/api/healthz", {"/healthz": 401}, id="root path, entry with it"),
    pytest.param(falcon_app, "", "/api/healthz", {"/api/healthz": 200}, id="Falcon"),
    pytest.param(falcon_app, "/api", "/healthz", {"/healthz": 401}, id="Falcon, root path"),
]


@pytest.mark.parametrize(("build", "root_path", "excluded", "expected"), MOUNTS)
def test_h03_an_excluded_path_is_the_one_without_the_root_path(
    issuer: Issuer, build: Callable[[], Any], root_path: str, excluded: str, expected: dict[str, int]
) -> None:
    """Exclusions are compared with the path that the framework routes, which for Falcon includes the root path."""
    enforce(issuer, excluded)
    with serve_asgi(build(), root_path=root_path) as port:
        statuses = {path: get(port, path).status for path in expected}

    assert statuses == expected


def rewriting(app: Any) -> Any:
    """Wrap an application in middleware that replaces the path with a header's value."""

    def middleware(environ: Any, start_response: Any) -> Any:
        environ["PATH_INFO"] = environ.get("HTTP_X_ORIGINAL_URL", environ["PATH_INFO"])
        return app(environ, start_response)

    return middleware


def flask_app() -> Any:
    """Return a Flask application that serves every path."""
    from flask import Flask

    app = Flask("h03")
    app.add_url_rule("/<path:path>", "all", lambda path: note(f"Flask {path}"))
    return app


def test_h03_a_rewritten_path_is_judged_again(issuer: Issuer) -> None:
    """A client cannot access a protected path by requesting an excluded path that middleware rewrites."""
    enforce(issuer, "/healthz")
    with serve_wsgi(rewriting(flask_app())) as port:
        statuses = [
            get(port, "/healthz", headers=[("X-Original-URL", path)] if path else []).status
            for path in ("", "/healthz", "/admin", "/healthz/admin")
        ]

    assert statuses == [200, 200, 401, 401]
    assert called == ["Flask healthz"] * 2


def test_h03_what_is_mounted_below_an_excluded_path_joins(issuer: Issuer) -> None:
    """An application that is mounted below an excluded path is also excluded."""
    enforce(issuer, "/admin/live")
    with serve_wsgi(beside_flask(flask_app())) as port:
        statuses = {path: get(port, path).status for path in ("/admin/live", "/admin/other", "/live")}

    assert statuses == {"/admin/live": 200, "/admin/other": 401, "/live": 401}
    assert called == ["Flask live"]


def test_h03_proxy_fix_is_judged_again(issuer: Issuer) -> None:
    """A path that Werkzeug's ProxyFix moves below a client's prefix is verified again."""
    from werkzeug.middleware.proxy_fix import ProxyFix

    enforce(issuer, "/live")
    with serve_wsgi(ProxyFix(flask_app(), x_prefix=1)) as port:
        with_prefix = get(port, "/live", headers=[("X-Forwarded-Prefix", "/health")]).status
        moved = get(port, "/live/live", headers=[("X-Forwarded-Prefix", "/live")]).status
        plain = get(port, "/live").status

    assert (plain, moved) == (200, 401)
    assert with_prefix == 401
