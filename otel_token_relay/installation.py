"""Start and stop the relay in this process.

There are two switches. The relay is on if ``OTEL_PROPAGATORS`` names it or `install` is called.
Verification is on if ``…_VERIFY`` says so, regardless of OpenTelemetry's settings: then only the hooks of
servers are on. A hook that fails leaves its library unchanged and logs one error.

Process-wide state of the package, all of it:

* here: the installation; `otel_token_relay.runtime.installed`, which everything else reads;
* the `ImportHooks` here and in `otel_token_relay.redaction.installation`, and what they have patched;
* `otel_token_relay.context`: the callbacks for new and for verified tokens;
* `otel_token_relay.redaction.known_tokens` and ``records``: tokens to redact, and redacted resources and scopes;
* caches: authenticators by their settings, signing keys and introspection results by issuer;
* the counter of forks in `otel_token_relay.token`, and the key of fingerprints.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass, field
from types import ModuleType

from opentelemetry.propagators.textmap import TextMapPropagator

from otel_token_relay import context, runtime
from otel_token_relay.hooks import HOOKS, SERVER_HOOKS, Hook
from otel_token_relay.import_hooks import ImportHooks
from otel_token_relay.otel import parts_of
from otel_token_relay.patching import Patches
from otel_token_relay.propagator import TokenRelayPropagator
from otel_token_relay.redaction import installation as redaction
from otel_token_relay.runtime import Runtime
from otel_token_relay.settings import RELAY_VARIABLES, Settings
from otel_token_relay.threads import ThreadCarriage, load_instrumentor
from otel_token_relay.verification.span_claims import SpanClaims

_logger = logging.getLogger("otel_token_relay")


@dataclass(slots=True)
class _Installation:
    """What is installed, and what `uninstall` has to undo."""

    runtime: Runtime
    span_claims: SpanClaims | None
    threads: ThreadCarriage = field(default_factory=ThreadCarriage)
    previous_textmap: TextMapPropagator | None = None
    own_textmap: TextMapPropagator | None = None


def _patch(hook: Hook, module: ModuleType, patches: Patches) -> str:
    if _installed is None:
        raise RuntimeError("nothing is installed")
    hook.patch(module, _installed.runtime, patches)
    return "hooked"


def _report_failure(hook: Hook, error: Exception) -> None:
    _logger.error("token relay cannot hook %s, which is left unchanged: %s", hook.module, error)
    if hook in SERVER_HOOKS and _installed is not None and _installed.runtime.terms.authenticator is not None:
        _logger.error("token relay: requests to servers of %s are NOT verified", hook.module)


_hooks: ImportHooks[Hook] = ImportHooks(_patch, _report_failure)
_lock = _hooks.lock
_installed: _Installation | None = None


def install(settings: Settings | None = None) -> None:
    """Hook clients and servers, and add the propagator to the global one if it is missing.

    Idempotent. Settings that differ from the installed ones replace them.

    Args:
        settings: ``None`` for the installed settings, or else those of the environment.
    """
    # Before the lock is taken: another thread that imports it first holds the lock of the import and waits
    # for ours, in the factory below.
    import opentelemetry.propagate  # noqa: F401

    with _lock:
        installation = _install_hooks(settings, HOOKS)
        _join_global_textmap(installation)
        _describe_spans(installation)
    _watch_imports()
    _prepare_threads()
    installation.runtime.prepare()


def uninstall() -> None:
    """Undo `install`: no token is relayed any more. Does nothing if nothing is installed."""
    global _installed
    redaction.stop()
    with _lock:
        if _installed is None:
            return
        installation, _installed = _installed, None
        runtime.installed = None
        installation.runtime.relay.close()
        context.before_first_token = None
        installation.threads.switch_off()
        if installation.span_claims is not None:
            installation.span_claims.is_on = False
        _hooks.switch_off()
        _leave_global_textmap(installation)


def hook_states() -> dict[str, str]:
    """Return for each hooked module ``hooked``, ``not imported`` or the error."""
    with _lock:
        if _installed is None:
            return {}
        hooks = HOOKS if _installed.runtime.clients_are_hooked else SERVER_HOOKS
        states = {hook.module: "hooked" for hook in hooks if _hooks.is_applied(hook)}
        # A module may have two hooks, and a hook that failed must be seen.
        for hook in hooks:
            if not _hooks.is_applied(hook):
                states[hook.module] = _hooks.states.get(hook, "not imported")
        return states


def propagator_from_env(**options: object) -> TokenRelayPropagator:
    """Create the propagator: the entry point ``opentelemetry_propagator: token_relay``.

    Runs while ``opentelemetry.propagate`` is being imported, and must not raise: an exception here would keep
    the application from starting.

    Args:
        options: The keys under ``token_relay:`` in OpenTelemetry's configuration file. Settings are not read
            from there yet; each key is reported as a problem.
    """
    try:
        if _is_launcher():
            # The launcher has not read its own flags yet; the application is the next process.
            return TokenRelayPropagator(Settings())
        with _lock:
            base = Settings.from_env() if _installed is None else _installed.runtime.settings
            relay = _install_hooks(base.with_unread(options) if options else None, HOOKS).runtime.relay
        _watch_imports()
        return TokenRelayPropagator(relay=relay)
    except Exception:
        _logger.exception("token relay could not start; no token is relayed")
        return TokenRelayPropagator(Settings())


def _is_launcher() -> bool:
    program = sys.argv[0] if getattr(sys, "argv", None) else ""
    return os.path.splitext(os.path.basename(program))[0] == "opentelemetry-instrument"


def pre_instrument() -> None:
    """Start redaction, and verification if the settings ask for it: the entry point ``opentelemetry_pre_instrument``.

    Logs a warning if the relay is configured but not on. Must not raise: an exception here would stop instrumentation.
    """
    try:
        _start_redaction()
    except Exception:
        _logger.exception("token relay could not start redaction")
    try:
        _start_verification()
    except Exception:
        _logger.exception("token relay could not start verification: requests are NOT verified")
    relays = _installed is not None and _installed.runtime.clients_are_hooked
    if not relays:
        configured = next((name for name in RELAY_VARIABLES if os.environ.get(name)), None)
        if configured is not None:
            _logger.warning(
                "token relay: %s is set, but OTEL_PROPAGATORS does not name token_relay: no token is relayed."
                " Set OTEL_PROPAGATORS=tracecontext,baggage,token_relay.",
                configured,
            )
    if _installed is not None:
        _describe_spans(_installed)
        if relays:
            _prepare_threads()
            _installed.runtime.prepare()


def _start_verification() -> None:
    """Put the boundary in place if requests are to be verified and the relay has not done so."""
    # Loads the propagators that OTEL_PROPAGATORS names, and so installs the relay if it is one of them.
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
    """Import what the first token needs, while there are few threads."""
    try:  # a child that is forked during an import waits for it forever
        load_instrumentor()
    except Exception:
        _logger.debug("the instrumentation of threads cannot be imported yet", exc_info=True)


def _start_redaction() -> None:
    """Redact also if no token is relayed: requests contain tokens all the same."""
    with _lock:
        settings = Settings.from_env() if _installed is None else _installed.runtime.settings
    redaction.start(settings)
    redaction.watch_imports()


def _install_hooks(settings: Settings | None, hooks: tuple[Hook, ...]) -> _Installation:
    """Install *hooks* under *settings*; ``None`` for the installed settings, or else those of the environment.

    Args:
        settings: Settings that differ from the installed ones replace them.
        hooks: `HOOKS`, or `SERVER_HOOKS` to verify without relaying. Hooks that are on stay on.
    """
    global _installed
    if _installed is not None and settings not in (None, _installed.runtime.settings):
        hooks = HOOKS if _installed.runtime.clients_are_hooked else hooks
        uninstall()
    if _installed is None:
        settings = Settings.from_env() if settings is None else settings
        _log_problems(settings)
        _installed = _Installation(Runtime(settings), SpanClaims.of(settings))
        runtime.installed = _installed.runtime
        redaction.start(settings)
    if hooks is HOOKS:
        _installed.runtime.clients_are_hooked = True
        context.before_first_token = _carry_into_threads
    _hooks.switch_on(hooks)
    return _installed


def _watch_imports() -> None:
    """Have the hooks called when their modules are imported. Never under our lock; see `when_imported`."""
    _hooks.watch()
    redaction.watch_imports()


def _carry_into_threads() -> None:
    try:
        # Without the lock, which another thread may need in the middle of an import.
        instrumentor = load_instrumentor()
        with _lock:
            # Cleared at the end, so that a thread that binds a token meanwhile waits for the lock.
            if _installed is not None and context.before_first_token is not None:
                _installed.threads.switch_on(instrumentor)
    except Exception:
        _logger.exception("token relay cannot carry tokens into threads")
    context.before_first_token = None


def _log_problems(settings: Settings) -> None:
    for problem in settings.problems:
        _logger.error("token relay: %s", problem)
    for warning in settings.warnings:
        _logger.warning("token relay: %s", warning)


def _describe_spans(installation: _Installation) -> None:
    if installation.span_claims is not None:
        try:
            installation.span_claims.attach()
        except Exception:  # an error of the tracer provider; the application starts without the attributes
            _logger.exception("token relay: claims cannot be written to spans")


def _join_global_textmap(installation: _Installation) -> None:
    # Not at the top: the factory above runs while this module is being imported.
    from opentelemetry.propagate import get_global_textmap, set_global_textmap
    from opentelemetry.propagators.composite import CompositePropagator

    current = get_global_textmap()
    own = installation.own_textmap
    if (own is not None and current is own) or any(
        isinstance(part, TokenRelayPropagator) and not part.relay.is_closed for part in parts_of(current)
    ):
        return
    others = [part for part in parts_of(current) if not isinstance(part, TokenRelayPropagator)]
    installation.previous_textmap = current
    installation.own_textmap = CompositePropagator([*others, TokenRelayPropagator(relay=installation.runtime.relay)])
    set_global_textmap(installation.own_textmap)


def _leave_global_textmap(installation: _Installation) -> None:
    from opentelemetry.propagate import get_global_textmap, set_global_textmap

    if installation.previous_textmap is not None and get_global_textmap() is installation.own_textmap:
        set_global_textmap(installation.previous_textmap)
