"""Boundaries at the point where each server calls its application.

These boundaries cover all ASGI and WSGI applications, with or without a framework, even if an application is wrapped in
middleware or mounted in another application.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final, NamedTuple

from otel_token_relay.patching import Function, Patches
from otel_token_relay.runtime import Runtime
from otel_token_relay.servers import asgi, rsgi, wsgi


class Place(NamedTuple):
    """An attribute from which a server reads its application.

    Attributes:
        owner: The name of the class whose instances have the attribute.
        attribute: The attribute's name.
        enclose: A function that encloses the application in a boundary.
        is_ready: A function that returns whether the attribute already contains the application to be served.
    """

    owner: str
    attribute: str
    enclose: Callable[[Any], Any]
    is_ready: Callable[[Any], bool] = lambda server: True


PLACES: Final[Mapping[str, tuple[str, tuple[Place, ...]]]] = {
    # The attribute might contain a factory or a WSGI application until the application is loaded. Each connection
    # copies the attribute.
    "uvicorn.config": (
        "uvicorn",
        (Place("Config", "loaded_app", asgi.enclose, lambda config: bool(config.loaded)),),
    ),
    "uvicorn.protocols.http.h11_impl": ("uvicorn", (Place("H11Protocol", "app", asgi.enclose),)),
    "uvicorn.protocols.http.httptools_impl": ("uvicorn", (Place("HttpToolsProtocol", "app", asgi.enclose),)),
    "uvicorn.protocols.http.zttp_impl": ("uvicorn", (Place("ZttpProtocol", "app", asgi.enclose),)),
    "uvicorn.protocols.http.zttp_h2_impl": ("uvicorn", (Place("ZttpH2Protocol", "app", asgi.enclose),)),
    "hypercorn.app_wrappers": (
        "hypercorn",
        (Place("ASGIWrapper", "app", asgi.enclose), Place("WSGIWrapper", "app", wsgi.enclose)),
    ),
    "daphne.server": ("daphne", (Place("Server", "application", asgi.enclose),)),
    "gunicorn.workers.gasgi": ("gunicorn", (Place("ASGIWorker", "asgi", asgi.enclose),)),
    # The workers' base class is not hooked, because uvicorn's and Tornado's workers inherit from that class but do not
    # serve WSGI applications.
    "gunicorn.workers.sync": ("gunicorn", (Place("SyncWorker", "wsgi", wsgi.enclose),)),
    "gunicorn.workers.gthread": ("gunicorn", (Place("ThreadWorker", "wsgi", wsgi.enclose),)),
    "gunicorn.workers.base_async": ("gunicorn", (Place("AsyncWorker", "wsgi", wsgi.enclose),)),
    "waitress.server": ("waitress", (Place("BaseWSGIServer", "application", wsgi.enclose),)),
    "werkzeug.serving": ("werkzeug", (Place("BaseWSGIServer", "app", wsgi.enclose),)),
    "cheroot.wsgi": ("cheroot", (Place("Server", "wsgi_app", wsgi.enclose),)),
    "gevent.pywsgi": ("gevent", (Place("WSGIHandler", "application", wsgi.enclose),)),
}
"""A mapping from each module to its PyPI package and the attributes to hook."""


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the attributes that `PLACES` lists for *module*."""
    for place in PLACES[module.__name__][1]:
        patches.wrap_attribute(getattr(module, place.owner), place.attribute, place.enclose, place.is_ready)


def patch_wsgiref(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook *module*, which is ``wsgiref.handlers``. Django's ``runserver`` command and CGI handlers also use this
    module.
    """

    def build(original: Function) -> Function:
        def run(self: Any, application: wsgi.App) -> None:
            original(self, wsgi.enclose(application))

        return run

    patches.wrap(module.BaseHandler, "run", build, ("self", "application"))


# Granian's servers import these functions, which adapt an application to Granian's own interface.
_GRANIAN_ADAPTERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "_asgi_call_wrap": asgi.enclose,
    "_wsgi_call_wrap": wsgi.enclose,
    "_rsgi_call_wrap": rsgi.EnclosedApp,
}


def patch_granian(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook *module*, which contains one kind of Granian server. The embedded server does not support WSGI."""
    for name, enclose in _GRANIAN_ADAPTERS.items():
        if name != "_wsgi_call_wrap" or hasattr(module, name):
            patches.wrap(module, name, _enclosing_first_argument(enclose))


def _enclosing_first_argument(enclose: Callable[[Any], Any]) -> Callable[[Function], Function]:
    def build(original: Function) -> Function:
        def adapt(callback: Any, *args: Any, **kwargs: Any) -> Any:
            return original(enclose(callback), *args, **kwargs)

        return adapt

    return build
