"""Install redaction in this process as soon as the application imports the SDK.

This module never imports the SDK itself. Each signal is hooked at its conversion point, and a self-test sends a test
token through the hook. If the SDK does not have the conversion point or the self-test fails, the public methods that
register processors and exporters are hooked instead. Resources, scopes, and instruments, which multiple signals share,
are redacted when they are created and have no fallback.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Final

from otel_token_relay.import_hooks import ImportHooks
from otel_token_relay.patching import Patches
from otel_token_relay.redaction import fallback, logs, metrics, self_test, spans, statics
from otel_token_relay.redaction.known_tokens import listen, stop_listening
from otel_token_relay.redaction.records import scrubber_for
from otel_token_relay.redaction.scrubber import Scrubber
from otel_token_relay.settings import Settings

_logger = logging.getLogger("otel_token_relay")


Patch = Callable[[ModuleType, Scrubber, Patches], None]


@dataclass(frozen=True, slots=True)
class Signal:
    """A telemetry signal, or a component that multiple signals share.

    Attributes:
        name: The name that ``otel-token-relay check`` prints.
        module: The SDK module that contains the conversion point.
        patch: A function that hooks the conversion point.
        try_out: A function that runs the self-test and returns whether the test token was redacted.
        public_module: The SDK module that contains the public methods for the fallback.
        fall_back: A function that hooks the public methods instead of the conversion point, or ``None`` if the signal
            has no fallback.
    """

    name: str
    module: str
    patch: Patch
    try_out: Callable[[], bool]
    public_module: str = ""
    fall_back: Patch | None = None


_METRICS: Final = "opentelemetry.sdk.metrics._internal"

SIGNALS: Final = (
    Signal(
        "spans",
        "opentelemetry.sdk.trace",
        spans.patch,
        self_test.is_caught_in_spans,
        "opentelemetry.sdk.trace",
        fallback.patch_spans,
    ),
    Signal(
        "logs",
        "opentelemetry.sdk._logs._internal",
        logs.patch,
        self_test.is_caught_in_logs,
        "opentelemetry.sdk._logs._internal",
        fallback.patch_logs,
    ),
    Signal(
        "metrics",
        f"{_METRICS}.metric_reader_storage",
        metrics.patch,
        self_test.is_caught_in_metrics,
        f"{_METRICS}.export",
        fallback.patch_metrics,
    ),
)

STATICS: Final = (
    Signal("resources", "opentelemetry.sdk.resources", statics.patch_resources, self_test.is_caught_in_resources),
    Signal("scopes", "opentelemetry.sdk.util.instrumentation", statics.patch_scopes, self_test.is_caught_in_scopes),
    Signal("tracers", "opentelemetry.sdk.trace", statics.patch_tracers, self_test.is_caught_in_tracers),
    Signal("instruments", f"{_METRICS}.instrument", statics.patch_instruments, self_test.is_caught_in_instruments),
)

HOOKED: Final = "redacted at the conversion point"
FALLEN_BACK: Final = "redacted by wrapped processors and exporters"


@dataclass(slots=True)
class _Redaction:
    settings: Settings
    scrubber: Scrubber


def _patch(signal: Signal, module: ModuleType, patches: Patches) -> str:
    if _active is None:
        raise RuntimeError("redaction is off")
    scrubber = _active.scrubber
    try:
        signal.patch(module, scrubber, patches)
        problem = None if signal.try_out() else "self-test failed: the test token was not redacted"
    except Exception as error:  # let the application's import continue
        problem = f"{type(error).__name__}: {error}"
    if problem is None:
        return HOOKED
    patches.undo()
    return _fall_back(signal, scrubber, patches, problem)


def _report_failure(signal: Signal, error: Exception) -> None:
    _logger.error("token relay cannot redact %s: %s: %s", signal.name, type(error).__name__, error)


_hooks: ImportHooks[Signal] = ImportHooks(_patch, _report_failure)
_active: _Redaction | None = None


def start(settings: Settings) -> None:
    """Start redacting in all SDK modules that are already imported.

    Repeated calls with the same settings have no effect.

    To include SDK modules that are imported later, call `watch_imports` afterward.
    """
    global _active
    with _hooks.lock:
        if _active is not None and _active.settings == settings:
            return
        stop()
        if not settings.redaction:
            return
        _active = _Redaction(settings, scrubber_for(settings))
        listen()
        _hooks.switch_on((*STATICS, *SIGNALS))


def watch_imports() -> None:
    """Extend redaction to SDK modules that are imported later.

    Do not call this function while holding a lock; see `when_imported`.
    """
    _hooks.watch()


def stop() -> None:
    """Undo `start`."""
    global _active
    with _hooks.lock:
        if _active is None:
            return
        _active = None
        _hooks.switch_off()
        stop_listening()


def states() -> dict[str, str]:
    """Return each signal's status, which describes how the signal is redacted or why it is not redacted.

    Shared components are included only if they are not hooked.
    """
    with _hooks.lock:
        if _active is None:
            return {signal.name: "not redacted" for signal in SIGNALS}
        found = {signal.name: _hooks.states.get(signal, "SDK not imported") for signal in SIGNALS}
        shared = {part.name: _hooks.states.get(part, HOOKED) for part in STATICS}
        return found | {name: state for name, state in shared.items() if state != HOOKED}


def _fall_back(signal: Signal, scrubber: Scrubber, patches: Patches, problem: str) -> str:
    """Hook the public methods, and log an error.

    Processors and exporters that were registered earlier are not wrapped.
    """
    try:
        if signal.fall_back is None:
            raise LookupError("no public method to fall back to")
        signal.fall_back(sys.modules[signal.public_module], scrubber, patches)
    except Exception as error:  # let the application continue
        _logger.error("token relay cannot redact %s: %s; %s: %s", signal.name, problem, type(error).__name__, error)
        return f"NOT redacted ({problem})"
    _logger.error(
        "token relay: this version of opentelemetry-sdk is not supported for %s (%s). Only processors and exporters"
        " that are registered from now on are wrapped. Processors and exporters"
        " that were registered earlier receive unredacted data.",
        signal.name,
        problem,
    )
    return f"{FALLEN_BACK} ({problem})"
