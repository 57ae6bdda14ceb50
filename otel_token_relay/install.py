"""Start and stop: the table of hooks, and the one piece of process-wide state, what is installed.

The hooks are lazy: a library is patched when the application imports it, and never imported
from here. A hook that fails leaves its library as it was, says so in one error, and the rest goes
on; the import that ran it succeeds.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType

from opentelemetry.propagators.textmap import TextMapPropagator

from otel_token_relay import context
from otel_token_relay.clients import aiohttp, grpc, httpx, tornado, urllib, urllib3
from otel_token_relay.imports import is_half_imported, when_imported
from otel_token_relay.patching import Patches
from otel_token_relay.propagator import TokenRelayPropagator
from otel_token_relay.redaction import installation as redaction
from otel_token_relay.relay import Relay
from otel_token_relay.servers import aiohttp as aiohttp_server
from otel_token_relay.servers import asgi, wsgi
from otel_token_relay.servers import grpc as grpc_server
from otel_token_relay.servers import tornado as tornado_server
from otel_token_relay.settings import VARIABLES, Settings
from otel_token_relay.threads import (
    SHARED_WORKERS,
    ThreadCarriage,
    load_instrumentor,
    patch_joblib,
    patch_pools,
    patch_shared_workers,
)
from otel_token_relay.verification.spans import SpanClaims
from otel_token_relay.zero_code import build_gate

_logger = logging.getLogger("otel_token_relay")

Patch = Callable[[ModuleType, Relay, Patches], None]


@dataclass(frozen=True, slots=True)
class Hook:
    """One module to patch once it is imported.

    Attributes:
        module: Its full name.
        patch: What to do with it.
        distribution: The package on PyPI that brings it; ``None`` for the standard library.
    """

    module: str
    patch: Patch
    distribution: str | None


def _patch_grpc(module: ModuleType, relay: Relay, patches: Patches) -> None:
    grpc.patch(module, relay, patches)
    grpc_server.patch(module, relay, patches)


# Clients and servers are functions of the same two modules, and a module has one hook.
GRPC_HOOKS = (Hook("grpc", _patch_grpc, "grpcio"), Hook("grpc.aio", _patch_grpc, "grpcio"))

CLIENT_HOOKS = (
    Hook("httpx", httpx.patch, "httpx"),
    Hook("httpx2", httpx.patch, "httpx2"),
    Hook("urllib3.connectionpool", urllib3.patch, "urllib3"),
    Hook("urllib.request", urllib.patch, None),
    Hook("aiohttp.client_reqrep", aiohttp.patch, "aiohttp"),
    Hook("tornado.simple_httpclient", tornado.patch, "tornado"),
    *GRPC_HOOKS,
)

SERVER_HOOKS = (
    # Around FastAPI's own telemetry, which extracts before it calls Starlette's __call__.
    Hook("fastapi.applications", asgi.patcher("FastAPI"), "fastapi"),
    Hook("starlette.applications", asgi.patcher("Starlette"), "starlette"),
    Hook("starlette.middleware.opentelemetry", asgi.patcher("OpenTelemetryMiddleware"), "starlette"),
    Hook("falcon.asgi.app", asgi.patcher("App"), "falcon"),
    Hook("falcon.app", wsgi.patcher("App"), "falcon"),
    Hook("django.core.handlers.asgi", asgi.patcher("ASGIHandler"), "django"),
    Hook("django.core.handlers.wsgi", wsgi.patcher("WSGIHandler"), "django"),
    # A WSGI middleware is commonly laid around wsgi_app, and the server is given either.
    Hook("flask.app", wsgi.patcher("Flask", "__call__", "wsgi_app"), "flask"),
    Hook("quart.app", asgi.patcher("Quart"), "quart"),
    Hook("litestar.app", asgi.patcher("Litestar"), "litestar"),
    Hook("aiohttp.web_protocol", aiohttp_server.patch, "aiohttp"),
    Hook("tornado.web", tornado_server.patch, "tornado"),
    *GRPC_HOOKS,
    # Applications of any other framework, where instrumentation's own middleware is around them.
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

CARRIER_HOOKS = (
    Hook("multiprocessing.pool", patch_pools, None),
    Hook("multiprocess.pool", patch_pools, "multiprocess"),
    Hook("joblib.parallel", patch_joblib, "joblib"),
    *(Hook(module, patch_shared_workers, package) for module, (package, _) in SHARED_WORKERS.items()),
)

HOOKS = tuple(dict.fromkeys(CLIENT_HOOKS + SERVER_HOOKS + CARRIER_HOOKS))


@dataclass(slots=True)
class _Installation:
    """What stands now, and what `uninstall` has to take back."""

    relay: Relay
    threads: ThreadCarriage = field(default_factory=ThreadCarriage)
    span_claims: SpanClaims | None = None
    hooked: dict[str, Patches] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    previous_textmap: TextMapPropagator | None = None
    own_textmap: TextMapPropagator | None = None


_lock = threading.RLock()
_installed: _Installation | None = None
_watched: set[str] = set()


def install(settings: Settings | None = None) -> None:
    """Hook clients and servers, and put the propagator into the global one where it is missing.

    Idempotent. With other settings than those that are installed, the new ones take over.

    Args:
        settings: ``None`` for those that are installed already, else from the environment.
    """
    # Before the lock is taken: another thread that imports it first holds the import's lock
    # and waits for ours, in the factory below.
    import opentelemetry.propagate  # noqa: F401

    with _lock:
        installation = _install_hooks(settings)
        _join_global_textmap(installation)
        _describe_spans(installation)
    _watch_imports()
    _prepare_threads()


def uninstall() -> None:
    """Undo `install`: no token is relayed from here on. Does nothing where nothing is installed."""
    global _installed
    redaction.stop()
    with _lock:
        if _installed is None:
            return
        installation, _installed = _installed, None
        TokenRelayPropagator.clients_are_hooked = False
        installation.relay.close()
        context.before_first_token = None
        installation.threads.switch_off()
        if installation.span_claims is not None:
            installation.span_claims.is_on = False
        for patches in reversed(installation.hooked.values()):
            patches.undo()
        _leave_global_textmap(installation)


def hook_states() -> dict[str, str]:
    """Give for each hooked module ``hooked``, ``not imported`` or what went wrong."""
    with _lock:
        if _installed is None:
            return {}
        return {
            hook.module: "hooked"
            if hook.module in _installed.hooked
            else _installed.failed.get(hook.module, "not imported")
            for hook in HOOKS
        }


def propagator_from_env() -> TokenRelayPropagator:
    """The entry point ``opentelemetry_propagator: token_relay``.

    Runs while ``opentelemetry.propagate`` is being imported, and must not raise: an exception
    here would keep the application from starting.
    """
    try:
        if _is_launcher():
            # The launcher, before it has read its own flags; the application is the next process.
            return TokenRelayPropagator(Settings())
        with _lock:
            relay = _install_hooks(None).relay
        _watch_imports()
        return TokenRelayPropagator(relay=relay)
    except Exception:
        _logger.exception("token relay could not start; no token is relayed")
        return TokenRelayPropagator(Settings())


def _is_launcher() -> bool:
    program = sys.argv[0] if getattr(sys, "argv", None) else ""
    return os.path.splitext(os.path.basename(program))[0] == "opentelemetry-instrument"


def pre_instrument() -> None:
    """The entry point ``opentelemetry_pre_instrument``: redact, and say so if the relay is set up and not on.

    Must not raise: an exception here would stop instrumentation.
    """
    try:
        _start_redaction()
    except Exception:
        _logger.exception("token relay could not start redaction")
    configured = [name for name in VARIABLES.values() if os.environ.get(name.name)]
    if configured and _installed is None:
        _logger.warning(
            "token relay: %s is set, but OTEL_PROPAGATORS does not name token_relay: no token is relayed."
            " Set OTEL_PROPAGATORS=tracecontext,baggage,token_relay.",
            configured[0].name,
        )
    if _installed is not None:
        _describe_spans(_installed)
        _prepare_threads()


def _prepare_threads() -> None:
    """Import what the first token will need, while there are few threads."""
    try:  # a child that is forked in the middle of an import waits for it for ever
        load_instrumentor()
    except Exception:
        _logger.debug("the instrumentation of threads cannot be imported yet", exc_info=True)


def _start_redaction() -> None:
    """Redact also where no token is relayed: tokens come in all the same."""
    with _lock:
        settings = Settings.from_env() if _installed is None else _installed.relay.settings
    redaction.start(settings)


def _install_hooks(settings: Settings | None) -> _Installation:
    global _installed
    if _installed is not None and settings in (None, _installed.relay.settings):
        return _installed
    if _installed is not None:
        uninstall()
    if settings is None:
        settings = Settings.from_env()
    _announce(settings)
    _installed = installation = _Installation(Relay(settings), span_claims=SpanClaims.of(settings))
    installation.relay.gate = build_gate(settings)
    redaction.start(settings)
    TokenRelayPropagator.clients_are_hooked = True
    context.before_first_token = _carry_into_threads
    for hook in HOOKS:
        module = sys.modules.get(hook.module)
        if module is not None and not is_half_imported(module):
            _apply(hook, module)
    return installation


def _watch_imports() -> None:
    """Have every hook called when its module is imported. Never under our lock; see `when_imported`."""
    for hook in HOOKS:
        if hook.module not in _watched:
            _watched.add(hook.module)
            when_imported(hook.module, partial(_on_import, hook))


def _carry_into_threads() -> None:
    try:
        # Outside of the lock, which another thread may want in the middle of an import.
        instrumentor = load_instrumentor()
        with _lock:
            # Cleared at the end: whoever binds a token meanwhile waits for the lock.
            if _installed is not None and context.before_first_token is not None:
                _installed.threads.switch_on(instrumentor)
    except Exception:
        _logger.exception("token relay cannot take tokens into threads; all else goes on")
    context.before_first_token = None


def _on_import(hook: Hook, module: ModuleType) -> None:
    with _lock:
        _apply(hook, module)


def _apply(hook: Hook, module: ModuleType) -> None:
    if _installed is None or hook.module in _installed.hooked:
        return
    patches = Patches()
    try:
        hook.patch(module, _installed.relay, patches)
    except Exception as error:  # noqa: BLE001  # the application's import goes on
        patches.undo()
        _installed.failed[hook.module] = f"{type(error).__name__}: {error}"
        _logger.error("token relay cannot hook %s, which is left as it is: %s", hook.module, error)
        if hook in SERVER_HOOKS and _installed.relay.gate is not None:
            _logger.error("token relay: requests to servers of %s are NOT verified", hook.module)
    else:
        _installed.failed.pop(hook.module, None)
        _installed.hooked[hook.module] = patches


def _announce(settings: Settings) -> None:
    for problem in settings.problems:
        _logger.error("token relay: %s", problem)
    for warning in settings.warnings:
        _logger.warning("token relay: %s", warning)


def _describe_spans(installation: _Installation) -> None:
    if installation.span_claims is not None:
        try:
            installation.span_claims.attach()
        except Exception:  # somebody's tracer provider; the application starts without the attributes
            _logger.exception("token relay: claims cannot be written onto spans")


def _join_global_textmap(installation: _Installation) -> None:
    # Not at the top: the factory above runs while this module is half imported.
    from opentelemetry.propagate import get_global_textmap, set_global_textmap
    from opentelemetry.propagators.composite import CompositePropagator

    current = get_global_textmap()
    own = installation.own_textmap
    if (own is not None and current is own) or any(
        isinstance(part, TokenRelayPropagator) and not part.relay.is_closed for part in _parts(current)
    ):
        return
    others = [part for part in _parts(current) if not isinstance(part, TokenRelayPropagator)]
    installation.previous_textmap = current
    installation.own_textmap = CompositePropagator([*others, TokenRelayPropagator(relay=installation.relay)])
    set_global_textmap(installation.own_textmap)


def _leave_global_textmap(installation: _Installation) -> None:
    from opentelemetry.propagate import get_global_textmap, set_global_textmap

    if installation.previous_textmap is not None and get_global_textmap() is installation.own_textmap:
        set_global_textmap(installation.previous_textmap)


def _parts(propagator: TextMapPropagator) -> list[TextMapPropagator]:
    # A composite has no public way to ask for its parts.
    parts = getattr(propagator, "_propagators", None)
    return list(parts) if parts is not None else [propagator]
