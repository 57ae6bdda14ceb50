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
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import ClassVar

import wrapt
from opentelemetry.propagators.textmap import TextMapPropagator

from otel_token_relay.clients import aiohttp, httpx, urllib, urllib3
from otel_token_relay.patching import Patches
from otel_token_relay.propagator import TokenRelayPropagator
from otel_token_relay.redaction import installation as redaction
from otel_token_relay.relay import Relay
from otel_token_relay.servers import asgi, wsgi
from otel_token_relay.settings import VARIABLES, Settings

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


CLIENT_HOOKS = (
    Hook("httpx", httpx.patch, "httpx"),
    Hook("httpx2", httpx.patch, "httpx2"),
    Hook("urllib3.connectionpool", urllib3.patch, "urllib3"),
    Hook("urllib.request", urllib.patch, None),
    Hook("aiohttp.client_reqrep", aiohttp.patch, "aiohttp"),
)

SERVER_HOOKS = (
    Hook("starlette.applications", asgi.patcher("Starlette"), "starlette"),
    Hook("starlette.middleware.opentelemetry", asgi.patcher("OpenTelemetryMiddleware"), "starlette"),
    Hook("falcon.asgi.app", asgi.patcher("App"), "falcon"),
    Hook("falcon.app", wsgi.patcher("App"), "falcon"),
    Hook("django.core.handlers.asgi", asgi.patcher("ASGIHandler"), "django"),
    Hook("django.core.handlers.wsgi", wsgi.patcher("WSGIHandler"), "django"),
    # A WSGI middleware is commonly laid around wsgi_app, and the server is given either.
    Hook("flask.app", wsgi.patcher("Flask", "__call__", "wsgi_app"), "flask"),
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

HOOKS = CLIENT_HOOKS + SERVER_HOOKS


@dataclass(slots=True)
class _Installation:
    """What stands now, and what `uninstall` has to take back."""

    relay: Relay
    hooked: dict[str, Patches] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    previous_textmap: TextMapPropagator | None = None
    own_textmap: TextMapPropagator | None = None


_lock = threading.RLock()
_installed: _Installation | None = None
_awaited: set[str] = set()


def install(settings: Settings | None = None) -> None:
    """Hook clients and servers, and put the propagator into the global one where it is missing.

    Idempotent. With other settings than those that are installed, the new ones take over.

    Args:
        settings: ``None`` for those that are installed already, else from the environment.
    """
    with _lock:
        installation = _install_hooks(settings)
        _join_global_textmap(installation)


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
        if os.path.basename(sys.argv[0] if getattr(sys, "argv", None) else "") == "opentelemetry-instrument":
            # The launcher, before it has read its own flags; the application is the next process.
            return TokenRelayPropagator(Settings())
        with _lock:
            return TokenRelayPropagator(relay=_install_hooks(None).relay)
    except Exception:
        _logger.exception("token relay could not start; no token is relayed")
        return TokenRelayPropagator(Settings())


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
    _installed = installation = _Installation(Relay(settings))
    redaction.start(settings)
    TokenRelayPropagator.clients_are_hooked = True
    for hook in HOOKS:
        module = sys.modules.get(hook.module)
        if module is None:
            if hook.module not in _awaited:
                _awaited.add(hook.module)
                wrapt.register_post_import_hook(_on_import(hook), hook.module)
        elif _is_half_imported(module):
            _HalfImported.wait_for(hook, module)
        else:
            _apply(hook, module)
    return installation


def _on_import(hook: Hook) -> Callable[[ModuleType], None]:
    def run(module: ModuleType) -> None:
        with _lock:
            _awaited.discard(hook.module)
            _apply(hook, module)

    return run


def _is_half_imported(module: ModuleType) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


class _HalfImported(MetaPathFinder):
    """Apply hooks to modules whose own import has brought us in, at the first import after it.

    ``opentelemetry.propagate`` loads us, and instrumentation imports that near its top: wrapt
    would run a hook at once, on a module that has none of its classes yet.
    """

    _waiting: ClassVar[list[tuple[Hook, ModuleType]]] = []
    _finder: ClassVar[_HalfImported | None] = None

    @classmethod
    def wait_for(cls, hook: Hook, module: ModuleType) -> None:
        cls._waiting.append((hook, module))
        if cls._finder is None:
            cls._finder = cls()
            sys.meta_path.insert(0, cls._finder)

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        """Find nothing; being asked is the occasion."""
        with _lock:
            ready = [entry for entry in self._waiting if not _is_half_imported(entry[1])]
            for entry in ready:
                self._waiting.remove(entry)
                _apply(*entry)
            if not self._waiting and self in sys.meta_path:
                sys.meta_path.remove(self)
                type(self)._finder = None


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
    else:
        _installed.failed.pop(hook.module, None)
        _installed.hooked[hook.module] = patches


def _announce(settings: Settings) -> None:
    for problem in settings.problems:
        _logger.error("token relay: %s", problem)
    for warning in settings.warnings:
        _logger.warning("token relay: %s", warning)


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
