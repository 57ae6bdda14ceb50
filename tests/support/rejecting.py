"""Every way to require a token, each with a real server that rejects the same requests.

This module also contains the application that gunicorn serves, which the variables from `variables` configure.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from otel_token_relay import Settings, install, installation
from otel_token_relay.runtime import Terms
from otel_token_relay.servers import aiohttp as aiohttp_server
from otel_token_relay.verification import BearerAuthenticator, TokenVerifier
from otel_token_relay.verification.asgi import BearerAuthMiddleware as AsgiMiddleware
from otel_token_relay.verification.wsgi import BearerAuthMiddleware as WsgiMiddleware
from otel_token_relay.verification.wsgi import refuse_without
from tests.support.protected_servers import installed, serve_aiohttp, serve_tornado
from tests.support.served import Server, serving
from tests.support.servers import serve_asgi
from tests.support.tokens import AUDIENCE

# Above this length, no server in the table rejects the header itself.
MAX_LENGTH = 4096
PREFIX = "REJECTING_"


class Service(NamedTuple):
    """The requirements of a service.

    Attributes:
        issuers: The trusted issuers.
        scopes: The scopes that a token must have.
        exclude: The excluded paths.
    """

    issuers: Sequence[str]
    scopes: Sequence[str] = ()
    exclude: Sequence[str] = ()

    @property
    def settings(self) -> Settings:
        """Return settings that verify tokens but not scopes, which settings cannot require."""
        return Settings(
            verify="enforce",
            issuers=tuple(self.issuers),
            audience=(AUDIENCE,),
            max_length=MAX_LENGTH,
            verify_exclude=tuple(self.exclude),
        )

    def authenticator(self, *, with_scopes: bool = True) -> BearerAuthenticator:
        """Return the authenticator; if *with_scopes* is false, other code must require the scopes."""
        verifier = TokenVerifier(self.issuers, AUDIENCE, max_length=MAX_LENGTH)
        scopes = self.scopes if with_scopes else ()
        return BearerAuthenticator(verifier, required_scopes=scopes, exclude=self.exclude)

    def variables(self, app: str) -> dict[str, str]:
        """Return the environment variables for which this module contains the application *app*."""
        values = {"APP": app, "ISSUERS": " ".join(self.issuers), "SCOPES": " ".join(self.scopes)}
        return {PREFIX + name: value for name, value in values.items()}

    @classmethod
    def from_variables(cls, environ: Mapping[str, str]) -> Service:
        return cls(environ[PREFIX + "ISSUERS"].split(), environ[PREFIX + "SCOPES"].split())


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"7")]})
    await send({"type": "http.response.body", "body": b"reached"})


def wsgi_app(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "7")])
    return [b"reached"]


def fastapi_app(scopes: Sequence[str]) -> Any:
    """Return a FastAPI application with a dependency that requires *scopes*."""
    from fastapi import Depends, FastAPI

    from otel_token_relay.verification.fastapi import require_scopes

    app = FastAPI()

    @app.api_route("/", methods=["GET", "HEAD"], dependencies=[Depends(require_scopes(*scopes))])
    def root() -> str:
        return "reached"

    return app


def flask_app(scopes: Sequence[str]) -> Any:
    """Return a Flask application with a view that requires *scopes*."""
    import flask

    app = flask.Flask("rejecting")

    @app.get("/")
    def root() -> Any:
        return refuse_without(flask.request.environ, *scopes) or "reached"

    return app


@contextmanager
def _uvicorn(app: Any) -> Iterator[Server]:
    with serve_asgi(app) as port:
        yield Server("uvicorn", port)


@contextmanager
def _waitress(app: Any) -> Iterator[Server]:
    import waitress

    server: Any = waitress.create_server(app, host="127.0.0.1", port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield Server("waitress", server.effective_port)
    finally:
        server.trigger.pull_trigger(server.close)
        thread.join(20)


Way = Callable[[Service], AbstractContextManager[Server]]


def _at_boundary(serve: Callable[[], AbstractContextManager[Server]]) -> Way:
    @contextmanager
    def run(service: Service) -> Iterator[Server]:
        with installed(service.settings, service.authenticator()), serve() as server:
            yield server

    return run


def _view_at_boundary(serve: Callable[[Any], AbstractContextManager[Server]], build: Callable[..., Any]) -> Way:
    @contextmanager
    def run(service: Service) -> Iterator[Server]:
        with installed(service.settings), serve(build(service.scopes)) as server:
            yield server

    return run


def _gunicorn(app: str) -> Way:
    return lambda service: serving("gunicorn", {"wsgi": f"{__name__}:application"}, service.variables(app))


def asgi_middleware(app: Any, service: Service, **options: Any) -> AsgiMiddleware:
    settings = Settings(max_length=MAX_LENGTH)
    return AsgiMiddleware(app, authenticator=service.authenticator(**options), settings=settings)


def wsgi_middleware(app: Any, service: Service, **options: Any) -> WsgiMiddleware:
    settings = Settings(max_length=MAX_LENGTH)
    return WsgiMiddleware(app, authenticator=service.authenticator(**options), settings=settings)


def fastapi_with_middleware(service: Service) -> Any:
    app = fastapi_app(service.scopes)
    settings = Settings(max_length=MAX_LENGTH)
    app.add_middleware(AsgiMiddleware, authenticator=service.authenticator(with_scopes=False), settings=settings)
    return app


def _aiohttp_middleware(service: Service) -> Any:
    return aiohttp_server.TokenRelayMiddleware(Settings(max_length=MAX_LENGTH), service.authenticator())


WAYS: dict[str, Way] = {
    "boundary, uvicorn": _at_boundary(lambda: _uvicorn(asgi_app)),
    "boundary, waitress": _at_boundary(lambda: _waitress(wsgi_app)),
    "boundary, gunicorn": _gunicorn("boundary"),
    "boundary, aiohttp.web": _at_boundary(serve_aiohttp),
    "boundary, Tornado": _at_boundary(serve_tornado),
    "middleware, uvicorn": lambda service: _uvicorn(asgi_middleware(asgi_app, service)),
    "middleware, waitress": lambda service: _waitress(wsgi_middleware(wsgi_app, service)),
    "middleware, gunicorn": _gunicorn("middleware"),
    "middleware, aiohttp.web": lambda service: serve_aiohttp(_aiohttp_middleware(service)),
    "FastAPI dependency at the boundary": _view_at_boundary(_uvicorn, fastapi_app),
    "FastAPI dependency in the middleware": lambda service: _uvicorn(fastapi_with_middleware(service)),
    "FastAPI dependency within the middleware": lambda service: _uvicorn(
        asgi_middleware(fastapi_app(service.scopes), service, with_scopes=False)
    ),
    "Flask view at the boundary": _view_at_boundary(_waitress, flask_app),
    "Flask view in the middleware": lambda service: _waitress(
        wsgi_middleware(flask_app(service.scopes), service, with_scopes=False)
    ),
}
"""The ways to require a token."""


def _application(name: str, service: Service) -> Any:
    if name == "middleware":
        return wsgi_middleware(wsgi_app, service)
    install(service.settings)
    installation._installed.runtime.terms = Terms(service.settings, service.authenticator())
    return wsgi_app


if PREFIX + "APP" in os.environ:
    application = _application(os.environ[PREFIX + "APP"], Service.from_variables(os.environ))
