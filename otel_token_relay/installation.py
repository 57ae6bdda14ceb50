"""Start and stop the relay in this process.

The relay is enabled if ``OTEL_PROPAGATORS`` includes ``token_relay`` or if `install` is called. Verification
depends only on ``…_VERIFY``, not on OpenTelemetry's settings. If only verification is enabled, only the server hooks
are applied. If a hook fails, an error is logged and the library remains unchanged.

The package has the following process-wide state:

* the installation in this module, and `otel_token_relay.runtime.installed`, which all other modules read;
* the `ImportHooks` in this module and in `otel_token_relay.redaction.installation`, and the patched libraries;
* in `otel_token_relay.operator_log`: the decision log and, with ``…_LOG=debug``, the logger's class;
* in `otel_token_relay.context`: the callbacks for new tokens and for verified tokens;
* in `otel_token_relay.redaction.known_tokens` and ``records``: tokens to redact, redacted resources, and redacted
  scopes;
* the cached authenticators, keyed by settings, and the cached signing keys and introspection results, keyed by issuer;
* in `otel_token_relay.token`: the fork counter and the fingerprint key.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Final

from opentelemetry.propagators.textmap import TextMapPropagator

from otel_token_relay import context, operator_log, runtime
from otel_token_relay.configuration_file import read_configuration_file
from otel_token_relay.hooks import (
    BOUNDARY_HOOKS,
    CACHE_HOOKS,
    HOOKS,
    REFUSAL_HOOK,
    SERVER_HOOKS,
    UVLOOP_REFUSAL_HOOK,
    Hook,
)
from otel_token_relay.import_hooks import ImportHooks
from otel_token_relay.otel import keeps_unknown_keys, parts_of
from otel_token_relay.patching import Patches
from otel_token_relay.propagator import TokenRelayPropagator
from otel_token_relay.redaction import installation as redaction
from otel_token_relay.runtime import Runtime
from otel_token_relay.settings import RELAY_SETTINGS, VARIABLES, Settings
from otel_token_relay.threads import ThreadCarriage, load_instrumentor
from otel_token_relay.verification.span_claims import SpanClaims

_logger = logging.getLogger("otel_token_relay")

CONTEXT_PROBLEM: Final = (
    "no tokens are relayed, because OpenTelemetry's context does not keep tokens. OTEL_PYTHON_CONTEXT, or a tracer such"
    " as Datadog's (DD_TRACE_OTEL_ENABLED), selects a context that keeps only spans. Unset these variables."
)


@dataclass(slots=True)
class _Installation:
    """The objects that `install` creates and the state that `uninstall` restores.

    Attributes:
        code: The settings that were passed to `install`; ``None`` if no settings were passed.
    """

    runtime: Runtime
    code: Settings | None
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
    _logger.error("token relay cannot hook %s, which remains unchanged: %s", hook.module, error)
    if hook in CACHE_HOOKS:
        _logger.error("token relay: %s may serve one user's response to another user", hook.distribution)
        return
    if hook not in SERVER_HOOKS or _installed is None or _installed.runtime.terms.authenticator is None:
        return
    if hook not in BOUNDARY_HOOKS or not _installed.runtime.settings.rejects:
        _logger.error("token relay: requests to %s are NOT verified", hook.module)
    else:
        # The framework hooks could verify requests, but a server can also run applications that use other frameworks.
        _logger.error(
            "token relay: requests to %s cannot be verified, so every connection gets a 503 response", hook.module
        )
        _installed.runtime.refuses_all = True
        _hooks.switch_on((REFUSAL_HOOK,))


_hooks: ImportHooks[Hook] = ImportHooks(_patch, _report_failure)
_lock = _hooks.lock
_installed: _Installation | None = None


def install(settings: Settings | None = None) -> None:
    """Hook clients and servers, and add the relay's propagator to the global propagator.

    Calling `install` again with different settings replaces the current settings. Otherwise, a repeated call has no
    effect.

    Args:
        settings: The settings from code, which the other sources supplement; see `Settings.load`. ``None`` to keep the
            installed settings or, if the relay is not installed, to load the settings from the other sources.
    """
    # To avoid a deadlock, import the module before acquiring the lock. Another thread that is importing the module
    # holds the import lock and needs `_lock` in `propagator_from_env`.
    import opentelemetry.propagate  # noqa: F401

    with _lock:
        installation = _install_hooks(None if settings is None else _complete(settings), HOOKS, code=settings)
        _join_global_textmap(installation)
        _describe_spans(installation)
    _watch_imports()
    _prepare_threads()
    installation.runtime.prepare()


def _complete(settings: Settings) -> Settings:
    completed = Settings.load(code=settings)
    return settings if completed == settings else completed


def uninstall() -> None:
    """Undo `install` and stop relaying tokens. Do nothing if the relay is not installed."""
    global _installed
    redaction.stop()
    with _lock:
        if _installed is not None:
            installation, _installed = _installed, None
            _undo(installation, None)
            operator_log.follow("")


def _undo(installation: _Installation, successor: Runtime | None) -> None:
    """Undo an installation. If there is a successor, keep the server hooks so that every request has a boundary."""
    runtime.installed = successor
    installation.runtime.relay.close()
    context.before_first_token = None
    installation.threads.switch_off()
    if installation.span_claims is not None:
        installation.span_claims.is_on = False
    _hooks.switch_off(kept=() if successor is None else BOUNDARY_HOOKS)
    _leave_global_textmap(installation)


def hook_states() -> dict[str, str]:
    """Return a mapping from modules to their states. Each state is ``hooked``, ``not imported``, or an error."""
    with _lock:
        if _installed is None:
            return {}
        hooks = HOOKS if _installed.runtime.clients_are_hooked else SERVER_HOOKS
        states = {hook.module: "hooked" for hook in hooks if _hooks.is_applied(hook)}
        # If a module has two hooks and either hook fails, the result must contain the error.
        for hook in hooks:
            if not _hooks.is_applied(hook):
                states[hook.module] = _hooks.states.get(hook, "not imported")
        return states


def propagator_from_env(**options: object) -> TokenRelayPropagator:
    """Create the propagator for the ``opentelemetry_propagator: token_relay`` entry point.

    OpenTelemetry calls this function while ``opentelemetry.propagate`` is being imported. An exception would prevent
    the application from starting, so errors are logged instead.

    Args:
        options: The values under ``token_relay:`` in a configuration file that OpenTelemetry has read. The options are
            used only if the application loads that file from code, because `Settings.load` reads the file that
            OTEL_CONFIG_FILE specifies.
    """
    try:
        if _is_launcher():
            # The launcher has not parsed its flags yet, and the application will run in a new interpreter.
            return TokenRelayPropagator(Settings())
        with _lock:
            settings = None
            if options and not read_configuration_file(os.environ).sections:
                code = None if _installed is None else _installed.code
                settings = Settings.load(code=code, passed=options)
            relay = _install_hooks(settings, HOOKS).runtime.relay
        _watch_imports()
        return TokenRelayPropagator(relay=relay)
    except Exception:
        _logger.exception("token relay could not start; no tokens are relayed")
        return TokenRelayPropagator(Settings())


def _is_launcher() -> bool:
    program = sys.argv[0] if getattr(sys, "argv", None) else ""
    return os.path.splitext(os.path.basename(program))[0] == "opentelemetry-instrument"


def pre_instrument() -> None:
    """Start redaction and verification for the ``opentelemetry_pre_instrument`` entry point.

    Log a warning if the relay is configured but not enabled. An exception would stop instrumentation, so errors are
    logged instead.
    """
    with _survives("token relay could not start redaction"):
        # Redaction is required even if tokens are not relayed, because incoming requests contain tokens.
        with _lock:
            settings = Settings.load() if _installed is None else _installed.runtime.settings
        redaction.start(settings)
        redaction.watch_imports()
    with _survives("token relay could not start verification: requests are NOT verified"):
        # This import loads the propagators in OTEL_PROPAGATORS, and installs the relay if token_relay is one of them.
        import opentelemetry.propagate  # noqa: F401

        start_before_servers()
    relays = _installed is not None and _installed.runtime.clients_are_hooked
    if not relays:
        _warn_of_unused_settings()
    if _installed is not None:
        _describe_spans(_installed)
        if relays:
            # A configuration file might have replaced the propagators from OTEL_PROPAGATORS.
            with _survives("token relay could not be added to the propagators in the configuration file"), _lock:
                _join_global_textmap(_installed)
            _prepare_threads()
            _installed.runtime.prepare()


@contextmanager
def _survives(failure: str) -> Generator[None, None, None]:
    """Log exceptions instead of propagating them."""
    try:
        yield
    except Exception:
        _logger.exception(failure)


def _warn_of_unused_settings() -> None:
    """Warn if the relay is configured but not enabled, and log configuration problems that have not been logged yet."""
    settings = Settings.load()
    if _installed is None:
        operator_log.follow(settings.log)
        _log_problems(settings)
    default = Settings()
    configured = next((n for n in RELAY_SETTINGS if getattr(settings, n) != getattr(default, n)), None)
    # If the configuration file cannot be read, strict settings apply, and the problem has already been logged.
    if configured is not None and read_configuration_file(os.environ).problem is None:
        _logger.warning(
            "token relay: %s is set, but OTEL_PROPAGATORS does not include token_relay, so no tokens are relayed."
            " Set OTEL_PROPAGATORS=tracecontext,baggage,token_relay or, in a configuration file, add token_relay to"
            " propagator.composite.",
            VARIABLES[configured].name,
        )


def start_before_servers() -> None:
    """Start the features that the settings enable, even if OpenTelemetry does not start; see `startup`."""
    settings = Settings.load()
    if settings.verify != "off":
        with _lock:
            if _installed is None:
                _install_hooks(settings, SERVER_HOOKS)
        _watch_imports()
    # A configuration file can enable the relay even if OpenTelemetry does not use the file.
    is_on = _installed is not None and _installed.runtime.clients_are_hooked
    # Loading the other propagators in OTEL_PROPAGATORS might raise an exception.
    with _survives("token relay could not start from the configuration file; no tokens are relayed"):
        if not is_on and read_configuration_file(os.environ).names_propagator:
            install()


def _prepare_threads() -> None:
    """Import the threading instrumentation early, before many threads have started."""
    try:  # a child process that is forked during the import could deadlock
        load_instrumentor()
    except Exception:
        _logger.debug("the threading instrumentation cannot be imported yet", exc_info=True)


def _install_hooks(
    settings: Settings | None, hooks: tuple[Hook, ...], *, code: Settings | None = None
) -> _Installation:
    """Install *hooks* with *settings*.

    Args:
        settings: The settings that replace the installed settings. ``None`` to keep the installed settings or, if the
            relay is not installed, to load the settings; see `Settings.load`.
        hooks: `HOOKS`, or `SERVER_HOOKS` to verify tokens without relaying them. Hooks that are already applied remain
            applied.
        code: See `_Installation`.
    """
    global _installed
    current = _installed
    if current is not None:
        code = code or current.code
    if current is None or settings not in (None, current.runtime.settings):
        settings = Settings.load() if settings is None else settings
        _log_problems(settings)
        if not keeps_unknown_keys():
            _logger.error("token relay: %s", CONTEXT_PROBLEM)
        previous, current = current, _Installation(Runtime(settings), code, SpanClaims.of(settings))
        _installed, runtime.installed = current, current.runtime
        operator_log.follow(settings.log)
        if previous is not None:
            hooks = HOOKS if previous.runtime.clients_are_hooked else hooks
            redaction.stop()
            _undo(previous, current.runtime)
        redaction.start(settings)
    if hooks is HOOKS:
        current.runtime.clients_are_hooked = True
        context.before_first_token = _carry_into_threads
    _hooks.switch_on((*hooks, UVLOOP_REFUSAL_HOOK) if current.runtime.settings.rejects else hooks)
    return current


def _watch_imports() -> None:
    """Apply hooks to modules that are imported later.

    Do not call `_watch_imports` while holding the lock; see `when_imported`.
    """
    _hooks.watch()
    redaction.watch_imports()


def _carry_into_threads() -> None:
    with _survives("token relay cannot carry tokens into threads"):
        # Do not hold the lock here, because another thread might need it while importing a module.
        instrumentor = load_instrumentor()
        with _lock:
            # Until the callback is cleared below, other threads that bind a token wait for the lock.
            if _installed is not None and context.before_first_token is not None:
                _installed.threads.switch_on(instrumentor)
    context.before_first_token = None


def _log_problems(settings: Settings) -> None:
    for problem in settings.problems:
        _logger.error("token relay: %s", problem)
    for warning in settings.warnings:
        _logger.warning("token relay: %s", warning)


def _describe_spans(installation: _Installation) -> None:
    if installation.span_claims is not None:
        with _survives("token relay: claims cannot be written to spans"):
            installation.span_claims.attach()


def _join_global_textmap(installation: _Installation) -> None:
    # These imports are not at the top of the module, because `propagator_from_env` runs while opentelemetry.propagate
    # is being imported.
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
