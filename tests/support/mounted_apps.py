"""Applications that respond with the path that they use for routing, one for each framework.

``ISSUER`` is the trusted issuer. ``EXCLUDED`` lists the paths that need no token. A request's ``X-App`` header
specifies the application. Each application responds to every path with the path that its framework uses for routing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import django
import falcon
import falcon.asgi
import litestar
import quart
from django.conf import settings as django_settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import re_path
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse
from flask import Flask
from flask import request as flask_request
from starlette._utils import get_route_path
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from otel_token_relay import Settings, install
from otel_token_relay.servers.asgi import TokenRelayMiddleware
from tests.support.tokens import AUDIENCE

install(
    Settings(
        verify="enforce",
        issuers=(os.environ["ISSUER"],),
        audience=AUDIENCE,
        verify_exclude=os.environ["EXCLUDED"].split(","),
    )
)


async def _show(request: Any) -> PlainTextResponse:
    return PlainTextResponse(get_route_path(request.scope))


def _show_django(request: Any) -> HttpResponse:
    return HttpResponse(request.path_info, content_type="text/plain")


urlpatterns = [re_path(".*", _show_django)]
if not django_settings.configured:
    django_settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="only for tests")
    django.setup()

_starlette = Starlette(routes=[Route("/{path:path}", _show), Route("/", _show)])
_fastapi = FastAPI(openapi_url=None)


@_fastapi.get("/{path:path}")
async def _show_fastapi(request: Request) -> PlainTextResponse:
    return PlainTextResponse(get_route_path(request.scope))


async def _show_whole(request: Any) -> PlainTextResponse:
    return PlainTextResponse(request.scope["path"])


class _RootFromHeader:
    """A middleware that users write for services behind a proxy that strips a prefix."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        for name, value in scope.get("headers") or ():
            if name == b"x-forwarded-prefix":
                scope["root_path"] = value.decode("latin-1").rstrip("/")
        await self.app(scope, receive, send)


_prefixed = Starlette(routes=[Route("/{path:path}", _show), Route("/", _show)])
_prefixed.add_middleware(_RootFromHeader)

_falcon_asgi = falcon.asgi.App()


async def _sink(request: Any, response: Any, **_: Any) -> None:
    response.text = request.path


_falcon_asgi.add_sink(_sink)
_quart = quart.Quart(__name__)


@_quart.route("/", defaults={"path": ""})
@_quart.route("/<path:path>")
async def _show_quart(path: str) -> str:
    return f"/{path}"


@litestar.get(["/", "/{path:path}"], media_type="text/plain")
async def _show_litestar(request: litestar.Request[Any, Any, Any]) -> str:
    return str(request.path_params.get("path", "/"))


ASGI: dict[str, Any] = {
    "starlette": _starlette,
    "fastapi": _fastapi,
    "starlette behind a middleware": _prefixed,
    "starlette within a middleware": _RootFromHeader(_starlette),
    "django": get_asgi_application(),
    "falcon": _falcon_asgi,
    "quart": _quart,
    "litestar": litestar.Litestar([_show_litestar], openapi_config=None),
    "mounted": Starlette(routes=[Mount("/health", Starlette(routes=[Route("/{path:path}", _show_whole)]))]),
    "by hand": TokenRelayMiddleware(_starlette),
}


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    """Serve the application that the request specifies."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await ASGI[dict(scope["headers"])[b"x-app"].decode()](scope, receive, send)


def _flask(*, whole: bool = False) -> Flask:
    app = Flask("mounted")

    @app.get("/", defaults={"path": ""})
    @app.get("/<path:path>")
    def show(path: str) -> str:
        mount = flask_request.environ["SCRIPT_NAME"] if whole else ""
        return f"{mount}/{path}"

    return app


class _ReverseProxied:
    """A middleware that many Flask applications copy to support a prefix."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self.app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if prefix := environ.get("HTTP_X_SCRIPT_NAME", ""):
            environ["SCRIPT_NAME"] = prefix
            environ["PATH_INFO"] = environ["PATH_INFO"].removeprefix(prefix)
        return self.app(environ, start_response)


_proxy_fixed, _reverse_proxied, _dispatched = _flask(), _flask(), _flask()
_proxy_fixed.wsgi_app = ProxyFix(_proxy_fixed.wsgi_app, x_prefix=1)  # type: ignore[method-assign]
_reverse_proxied.wsgi_app = _ReverseProxied(_reverse_proxied.wsgi_app)  # type: ignore[method-assign]
_dispatched.wsgi_app = DispatcherMiddleware(  # type: ignore[method-assign]
    _dispatched.wsgi_app, {"/health": _flask(whole=True), "/other": _flask(whole=True)}
)
_falcon_wsgi = falcon.App()


def _wsgi_sink(request: Any, response: Any, **_: Any) -> None:
    response.text = request.path


_falcon_wsgi.add_sink(_wsgi_sink)

WSGI: dict[str, Any] = {
    "flask": _flask(),
    "flask behind ProxyFix": _proxy_fixed,
    "flask within ProxyFix": ProxyFix(_flask(), x_prefix=1),
    "flask behind a snippet": _reverse_proxied,
    "flask within a snippet": _ReverseProxied(_flask()),
    "django": get_wsgi_application(),
    "falcon": _falcon_wsgi,
    "mounted": _dispatched,
}


def wsgi_app(environ: dict[str, Any], start_response: Any) -> Any:
    """Serve the application that the request specifies."""
    return WSGI[environ["HTTP_X_APP"]](environ, start_response)
