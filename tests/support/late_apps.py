"""The applications of `tests.support.unknown_apps`, which install the package when a server imports them."""

from otel_token_relay import install
from tests.support.unknown_apps import asgi_app, create_sanic, rsgi_app, wsgi_app

install()

__all__ = ["asgi_app", "create_sanic", "rsgi_app", "wsgi_app"]
