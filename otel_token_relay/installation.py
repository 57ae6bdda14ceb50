"""Start and stop: the table of hooks, and the one piece of process-wide state, what is installed.

There are two switches. The relay is on if ``OTEL_PROPAGATORS`` names it or `install` is called.
Verification is on if ``…_VERIFY`` says so, whatever the settings of OpenTelemetry say: then the hooks
of the servers are in place without the relay.

The hooks are lazy: a library is patched when the application imports it, and never imported
from here. A hook that fails leaves its library as it was, says so in one error, and the rest goes
on; the import that ran it succeeds.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType

from opentelemetry.propagators.textmap import TextMapPropagator

from otel_token_relay import context, in_force
from otel_token_relay.configured_authenticator import build_authenticator
from otel_token_relay.hooks import HOOKS, SERVER_HOOKS, Hook
from otel_token_relay.import_hooks import is_half_imported, when_imported
from otel_token_relay.patching import Patches
from otel_token_relay.propagator import TokenRelayPropagator
from otel_token_relay.redaction import installation as redaction
from otel_token_relay.relay import Relay
from otel_token_relay.settings import RELAY_VARIABLES, Settings
from otel_token_relay.threads import (
    ThreadCarriage,
    load_instrumentor,
)
from otel_token_relay.verification.span_claims import SpanClaims

_logger = logging.getLogger("otel_token_relay")


@dataclass(slots=True)
class _Installation:
    """What stands now, and what `uninstall` has to take back."""

    relay: Relay
    hooks: tuple[Hook, ...]
    threads: ThreadCarriage = field(default_factory=ThreadCarriage)
    span_claims: SpanClaims | None = None
    hooked: dict[Hook, Patches] = field(default_factory=dict)
    failed: dict[Hook, str] = field(default_factory=dict)
    previous_textmap: TextMapPropagator | None = None
    own_textmap: TextMapPropagator | None = None


_lock = threading.RLock()
_installed: _Installation | None = None
_watched: set[Hook] = set()


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
        installation = _install_hooks(settings, HOOKS)
        _join_global_textmap(installation)
        _describe_spans(installation)
    _watch_imports()
    _prepare_threads()
    installation.relay.prepare()


def uninstall() -> None:
    """Undo `install`: no token is relayed from here on. Does nothing where nothing is installed."""
    global _installed
    redaction.stop()
    with _lock:
        if _installed is None:
            return
        installation, _installed = _installed, None
        in_force.installed_relay = None
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
        states = {hook.module: "hooked" for hook in _installed.hooks if hook in _installed.hooked}
        # A module may have two hooks, and one that failed is what matters.
        for hook in _installed.hooks:
            if hook not in _installed.hooked:
                states[hook.module] = _installed.failed.get(hook, "not imported")
        return states


def propagator_from_env(**options: object) -> TokenRelayPropagator:
    """The entry point ``opentelemetry_propagator: token_relay``.

    Runs while ``opentelemetry.propagate`` is being imported, and must not raise: an exception
    here would keep the application from starting.

    Args:
        options: What OpenTelemetry's configuration file has under ``token_relay:``. Settings are not read
            from there yet; each is reported as a problem.
    """
    try:
        if _is_launcher():
            # The launcher, before it has read its own flags; the application is the next process.
            return TokenRelayPropagator(Settings())
        with _lock:
            base = Settings.from_env() if _installed is None else _installed.relay.settings
            relay = _install_hooks(base.with_unread(options) if options else None, HOOKS).relay
        _watch_imports()
        return TokenRelayPropagator(relay=relay)
    except Exception:
        _logger.exception("token relay could not start; no token is relayed")
        return TokenRelayPropagator(Settings())


def _is_launcher() -> bool:
    program = sys.argv[0] if getattr(sys, "argv", None) else ""
    return os.path.splitext(os.path.basename(program))[0] == "opentelemetry-instrument"


def pre_instrument() -> None:
    """The entry point ``opentelemetry_pre_instrument``: redact, and verify if the settings say so.

    Warns if the relay is set up and not on. Must not raise: an exception here would stop instrumentation.
    """
    try:
        _start_redaction()
    except Exception:
        _logger.exception("token relay could not start redaction")
    try:
        _start_verification()
    except Exception:
        _logger.exception("token relay could not start verification: requests are NOT verified")
    if not _relays():
        configured = next((name for name in RELAY_VARIABLES if os.environ.get(name)), None)
        if configured is not None:
            _logger.warning(
                "token relay: %s is set, but OTEL_PROPAGATORS does not name token_relay: no token is relayed."
                " Set OTEL_PROPAGATORS=tracecontext,baggage,token_relay.",
                configured,
            )
    if _installed is not None:
        _describe_spans(_installed)
        if _relays():
            _prepare_threads()
            _installed.relay.prepare()


def _relays() -> bool:
    return _installed is not None and _installed.hooks is HOOKS


def _start_verification() -> None:
    """Put the boundary in place if requests are to be verified and the relay has not done so."""
    # It loads what OTEL_PROPAGATORS names, and so installs the relay if that is among it.
    import opentelemetry.propagate  # noqa: F401

    with _lock:
        if _installed is not None:
            return
        settings = Settings.from_env()
        if settings.verify == "off":
            return
        _install_hooks(settings, SERVER_HOOKS)
    _watch_imports()


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


def _install_hooks(settings: Settings | None, hooks: tuple[Hook, ...]) -> _Installation:
    """Install *hooks* under *settings*; ``None`` for those that are installed, else from the environment.

    Args:
        settings: Others than those that are installed take over.
        hooks: `HOOKS`, or `SERVER_HOOKS` to verify and not to relay. An installation keeps what it has.
    """
    global _installed
    if _installed is not None and settings not in (None, _installed.relay.settings):
        hooks = HOOKS if _relays() else hooks
        uninstall()
    if _installed is None:
        settings = Settings.from_env() if settings is None else settings
        _announce(settings)
        _installed = _Installation(Relay(settings), hooks, span_claims=SpanClaims.of(settings))
        _installed.relay.authenticator = build_authenticator(settings)
        in_force.installed_relay = _installed.relay
        redaction.start(settings)
    elif hooks is not HOOKS:
        return _installed
    installation = _installed
    installation.hooks = hooks
    if hooks is HOOKS:
        TokenRelayPropagator.clients_are_hooked = True
        context.before_first_token = _carry_into_threads
    for hook in hooks:
        module = sys.modules.get(hook.module)
        if module is not None and not is_half_imported(module):
            _apply(hook, module)
    return installation


def _watch_imports() -> None:
    """Have every hook called when its module is imported. Never under our lock; see `when_imported`."""
    for hook in HOOKS:
        if hook not in _watched:
            _watched.add(hook)
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
    if _installed is None or hook in _installed.hooked or hook not in _installed.hooks:
        return
    patches = Patches()
    try:
        hook.patch(module, _installed.relay, patches)
    except Exception as error:  # the application's import goes on
        patches.undo()
        _installed.failed[hook] = f"{type(error).__name__}: {error}"
        _logger.error("token relay cannot hook %s, which is left as it is: %s", hook.module, error)
        if hook in SERVER_HOOKS and _installed.relay.authenticator is not None:
            _logger.error("token relay: requests to servers of %s are NOT verified", hook.module)
    else:
        _installed.failed.pop(hook, None)
        _installed.hooked[hook] = patches


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
