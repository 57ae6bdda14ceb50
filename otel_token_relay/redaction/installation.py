"""Install redaction in this process, as soon as the application imports the SDK.

This module never imports the SDK itself. Each signal is hooked at its conversion point and tested once with
a test token. If the SDK has no such conversion point, or if the self-test fails, the public methods that
register processors and exporters are hooked instead. Resources, scopes and instruments, which the signals
share, are hooked at their creation and have no fallback.
"""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Final

import wrapt

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
    """One kind of telemetry, or a part that several kinds share.

    Attributes:
        name: As in ``otel-token-relay check``.
        module: The module of the SDK that contains the conversion point.
        patch: Hooks the conversion point.
        try_out: Runs the self-test and returns whether the test token was redacted.
        public_module: The module to fall back to.
        fall_back: Hooks the public methods instead; ``None`` if there are none.
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
    hooked: dict[str, Patches] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)


_lock = threading.RLock()
_active: _Redaction | None = None
_awaited: set[str] = set()


def start(settings: Settings) -> None:
    """Redact from now on with these settings, whether the SDK is imported already or later. Idempotent."""
    global _active
    with _lock:
        if _active is not None and _active.settings == settings:
            return
        stop()
        if not settings.redaction:
            return
        _active = _Redaction(settings, scrubber_for(settings))
        listen()
        half_imported = [signal for signal in (*STATICS, *SIGNALS) if not _hook_or_await(signal)]
    for signal in half_imported:
        # Another thread is importing the module. Waiting for it under our lock could deadlock, since its
        # import may run our hooks.
        module = importlib.import_module(signal.module)
        with _lock:
            _apply(signal, module)


def _hook_or_await(signal: Signal) -> bool:
    """Hook the module or wait for its import; return ``False`` if it is being imported."""
    module = sys.modules.get(signal.module)
    if module is None:
        if signal.name not in _awaited:
            _awaited.add(signal.name)
            _await(signal)
        return True
    if _is_half_imported(module):
        return False
    _apply(signal, module)
    return True


def stop() -> None:
    """Undo `start`."""
    global _active
    with _lock:
        if _active is None:
            return
        stopped, _active = _active, None
        for patches in stopped.hooked.values():
            patches.undo()
        stop_listening()


def states() -> dict[str, str]:
    """Return how each signal is redacted, or why not. Shared parts are included only if they are not hooked."""
    with _lock:
        if _active is None:
            return {signal.name: "not redacted" for signal in SIGNALS}
        found = {signal.name: _active.states.get(signal.name, "SDK not imported") for signal in SIGNALS}
        shared = {part.name: _active.states.get(part.name, HOOKED) for part in STATICS}
        return found | {name: state for name, state in shared.items() if state != HOOKED}


def _is_half_imported(module: ModuleType) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def _await(signal: Signal) -> None:
    def run(module: ModuleType) -> None:
        with _lock:
            _awaited.discard(signal.name)
            _apply(signal, module)

    wrapt.register_post_import_hook(run, signal.module)


def _apply(signal: Signal, module: ModuleType) -> None:
    if _active is None or signal.name in _active.hooked:
        return
    patches = Patches()
    try:
        signal.patch(module, _active.scrubber, patches)
        problem = None if signal.try_out() else "self-test failed: the test token was not redacted"
    except Exception as error:  # the application's import must succeed
        problem = f"{type(error).__name__}: {error}"
    state = HOOKED
    if problem is not None:
        patches.undo()
        state = _fall_back(signal, patches, problem)
    _active.hooked[signal.name] = patches
    _active.states[signal.name] = state


def _fall_back(signal: Signal, patches: Patches, problem: str) -> str:
    """Hook the public methods, and report it: processors and exporters registered earlier are not redacted."""
    assert _active is not None  # noqa: S101  # checked by the caller
    try:
        if signal.fall_back is None:
            raise LookupError("no public method to fall back to")
        signal.fall_back(sys.modules[signal.public_module], _active.scrubber, patches)
    except Exception as error:  # the application continues
        _logger.error("token relay cannot redact %s: %s; %s: %s", signal.name, problem, type(error).__name__, error)
        return f"NOT redacted ({problem})"
    _logger.error(
        "token relay: opentelemetry-sdk is not supported for %s (%s). Falling back to wrapping processors and"
        " exporters registered from now on; those registered earlier are not redacted.",
        signal.name,
        problem,
    )
    return f"{FALLEN_BACK} ({problem})"
