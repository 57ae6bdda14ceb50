"""Define the modules to patch and the functions that patch them.

A library is patched when the application imports it. This module does not import the libraries that it lists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from otel_token_relay.caches import aiohttp_client_cache, cachecontrol, hishel, releases, requests_cache
from otel_token_relay.clients import aiohttp, grpc, httpcore, httpx, tornado, urllib, urllib3
from otel_token_relay.patching import Patches
from otel_token_relay.runtime import Runtime
from otel_token_relay.servers import aiohttp as aiohttp_server
from otel_token_relay.servers import asgi, refusing, sanic, web_servers, wsgi
from otel_token_relay.servers import grpc as grpc_server
from otel_token_relay.servers import tornado as tornado_server
from otel_token_relay.threads import (
    SHARED_WORKERS,
    patch_finalizers,
    patch_joblib,
    patch_pools,
    patch_shared_workers,
)

Patch = Callable[[ModuleType, Runtime, Patches], None]


@dataclass(frozen=True, slots=True)
class Hook:
    """A module to patch when it is imported.

    Attributes:
        module: The module's full name.
        patch: The function that patches the module.
        distribution: The PyPI package that contains the module; ``None`` for the standard library.
    """

    module: str
    patch: Patch
    distribution: str | None


CLIENT_HOOKS = (
    Hook("httpx", httpx.patch, "httpx"),
    Hook("httpx2", httpx.patch, "httpx2"),
    Hook("httpcore._sync.http11", httpcore.patch, "httpcore"),
    Hook("httpcore._async.http11", httpcore.patch, "httpcore"),
    Hook("httpcore._sync.http2", httpcore.patch, "httpcore"),
    Hook("httpcore._async.http2", httpcore.patch, "httpcore"),
    Hook("httpcore2._sync.http11", httpcore.patch, "httpcore2"),
    Hook("httpcore2._async.http11", httpcore.patch, "httpcore2"),
    Hook("httpcore2._sync.http2", httpcore.patch, "httpcore2"),
    Hook("httpcore2._async.http2", httpcore.patch, "httpcore2"),
    Hook("urllib3.connectionpool", urllib3.patch, "urllib3"),
    Hook("urllib.request", urllib.patch, None),
    Hook("aiohttp.client_reqrep", aiohttp.patch, "aiohttp"),
    Hook("aiohttp.client_reqrep", aiohttp.patch_responses, "aiohttp"),
    Hook("aiohttp.client", aiohttp.patch_session, "aiohttp"),
    Hook("aiohttp.connector", aiohttp.patch_connector, "aiohttp"),
    Hook("tornado.simple_httpclient", tornado.patch, "tornado"),
    Hook("grpc", grpc.patch, "grpcio"),
    Hook("grpc.aio", grpc.patch, "grpcio"),
)

# Each of these hooks patches the function with which a server calls the application.
BOUNDARY_HOOKS = (
    *(Hook(module, web_servers.patch, package) for module, (package, _) in web_servers.PLACES.items()),
    Hook("wsgiref.handlers", web_servers.patch_wsgiref, None),
    Hook("granian.server.mp", web_servers.patch_granian, "granian"),
    Hook("granian.server.mt", web_servers.patch_granian, "granian"),
    Hook("granian.server.embed", web_servers.patch_granian, "granian"),
    Hook("sanic.server.protocols.http_protocol", sanic.patch, "sanic"),
    Hook("aiohttp.web_protocol", aiohttp_server.patch, "aiohttp"),
    Hook("tornado.httpserver", tornado_server.patch_server, "tornado"),
    Hook("grpc", grpc_server.patch, "grpcio"),
    Hook("grpc.aio", grpc_server.patch, "grpcio"),
)

# These hooks support test clients and servers that cannot be hooked, such as uWSGI and mod_wsgi.
FRAMEWORK_HOOKS = (
    # FastAPI's telemetry extracts the context before calling Starlette's __call__, so FastAPI requires its own hook.
    Hook("fastapi.applications", asgi.patcher("FastAPI"), "fastapi"),
    Hook("starlette.applications", asgi.patcher("Starlette"), "starlette"),
    Hook("starlette.middleware.opentelemetry", asgi.patcher("OpenTelemetryMiddleware"), "starlette"),
    Hook("falcon.asgi.app", asgi.patcher("App", asgi.whole_path), "falcon"),
    Hook("falcon.app", wsgi.patcher("App"), "falcon"),
    Hook("django.core.handlers.asgi", asgi.patcher("ASGIHandler"), "django"),
    Hook("django.core.handlers.wsgi", wsgi.patcher("WSGIHandler"), "django"),
    # Applications often wrap wsgi_app in middleware. They pass either the Flask object or wsgi_app to the server.
    Hook("flask.app", wsgi.patcher("Flask", "__call__", "wsgi_app"), "flask"),
    Hook("bottle", wsgi.patcher("Bottle"), "bottle"),
    Hook("pyramid.router", wsgi.patcher("Router"), "pyramid"),
    Hook("quart.app", asgi.patcher("Quart"), "quart"),
    Hook("litestar.app", asgi.patcher("Litestar"), "litestar"),
    # A WebSocket handler continues to run after the server has handled the HTTP request.
    Hook("tornado.web", tornado_server.patch, "tornado"),
    # These hooks support applications that use other frameworks and are wrapped in OpenTelemetry's middleware.
    Hook(
        "opentelemetry.instrumentation.asgi",
        asgi.patcher("OpenTelemetryMiddleware"),
        "opentelemetry-instrumentation-asgi",
    ),
    Hook(
        "opentelemetry.instrumentation.wsgi",
        wsgi.patcher("OpenTelemetryMiddleware"),
        "opentelemetry-instrumentation-wsgi",
    ),
)

SERVER_HOOKS = BOUNDARY_HOOKS + FRAMEWORK_HOOKS

# This hook is enabled only if requests must be verified and a server cannot be hooked.
REFUSAL_HOOK = Hook("socket", refusing.patch, None)
# This hook is enabled if requests must be verified, because a server might import uvloop much later. The hook has no
# effect unless a server cannot be hooked.
UVLOOP_REFUSAL_HOOK = Hook("uvloop", refusing.patch_uvloop, "uvloop")

CARRIER_HOOKS = (
    Hook("multiprocessing.pool", patch_pools, None),
    Hook("multiprocess.pool", patch_pools, "multiprocess"),
    Hook("joblib.parallel", patch_joblib, "joblib"),
    Hook("asyncio.base_events", patch_finalizers, None),
    Hook("uvloop", patch_finalizers, "uvloop"),
    *(Hook(module, patch_shared_workers, package) for module, (package, _) in SHARED_WORKERS.items()),
)

_CACHES = {
    "CacheControl": (
        Hook("cachecontrol.controller", cachecontrol.patch, "CacheControl"),
        Hook("cachecontrol.adapter", cachecontrol.patch_adapter, "CacheControl"),
    ),
    "requests-cache": (
        Hook("requests_cache.policy.actions", requests_cache.patch, "requests-cache"),
        Hook("requests_cache.backends.base", requests_cache.patch_backend, "requests-cache"),
        Hook("requests_cache.session", requests_cache.patch_session, "requests-cache"),
    ),
    "aiohttp-client-cache": (
        Hook("aiohttp_client_cache.backends.base", aiohttp_client_cache.patch, "aiohttp-client-cache"),
        Hook("aiohttp_client_cache.session", aiohttp_client_cache.patch_session, "aiohttp-client-cache"),
    ),
    "hishel": (
        Hook("hishel.httpx._sync", hishel.patch_transport, "hishel"),
        Hook("hishel.httpx._async", hishel.patch_transport, "hishel"),
        Hook("hishel.httpx2._sync", hishel.patch_transport, "hishel"),
        Hook("hishel.httpx2._async", hishel.patch_transport, "hishel"),
        Hook("hishel.requests._adapter", hishel.patch_adapter, "hishel"),
    ),
}


def _release_hook(name: str, hooks: tuple[Hook, ...]) -> Hook:
    modules = [hook.module for hook in hooks]
    return Hook(modules[0].partition(".")[0], releases.checker(*modules), name)


# Hooks for client-side caches, which must not store the response to a request that carries a token.
CACHE_HOOKS: tuple[Hook, ...] = tuple(
    hook for name, hooks in _CACHES.items() for hook in (_release_hook(name, hooks), *hooks)
)

HOOKS: tuple[Hook, ...] = CLIENT_HOOKS + SERVER_HOOKS + CARRIER_HOOKS + CACHE_HOOKS
