"""Redaction as it stands in this process: hooked as soon as the application imports the SDK.

The SDK is never imported from here. Each signal is hooked at its own place, is tried out once
with a canary, and where the SDK has no such place, or the canary comes through, falls back to the
public methods by which processors and exporters are registered. What the signals have in common,
resources, scopes and instruments, is hooked where it is made, and has nothing to fall back to.
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
from otel_token_relay.redaction import fallback, logs, metrics, spans, statics
from otel_token_relay.redaction import self_test as canary
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
        module: The module of the SDK that holds the conversion point.
        patch: Hook the conversion point.
        try_out: Send a canary through and say whether it was caught.
        public_module: The module to fall back to.
        fall_back: Hook the public methods instead; ``None`` where there are none.
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
        canary.is_caught_in_spans,
        "opentelemetry.sdk.trace",
        fallback.patch_spans,
    ),
    Signal(
        "logs",
        "opentelemetry.sdk._logs._internal",
        logs.patch,
        canary.is_caught_in_logs,
        "opentelemetry.sdk._logs._internal",
        fallback.patch_logs,
    ),
    Signal(
        "metrics",
        f"{_METRICS}.metric_reader_storage",
        metrics.patch,
        canary.is_caught_in_metrics,
        f"{_METRICS}.export",
        fallback.patch_metrics,
    ),
)

STATICS: Final = (
    Signal("resources", "opentelemetry.sdk.resources", statics.patch_resources, canary.is_caught_in_resources),
    Signal("scopes", "opentelemetry.sdk.util.instrumentation", statics.patch_scopes, canary.is_caught_in_scopes),
    Signal("tracers", "opentelemetry.sdk.trace", statics.patch_tracers, canary.is_caught_in_tracers),
    Signal("instruments", f"{_METRICS}.instrument", statics.patch_instruments, canary.is_caught_in_instruments),
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
    """Redact from now on, under these settings, in every SDK that is or will be imported. Idempotent."""
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
        # Another thread is at it. Waiting for it under our lock could wait for ever, since its
        # import may run our hooks.
        module = importlib.import_module(signal.module)
        with _lock:
            _apply(signal, module)


def _hook_or_await(signal: Signal) -> bool:
    """Hook the module or wait for it; say whether one of both was possible."""
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
    """Return for each signal how it is redacted, or why not; of what they share, only what is not hooked."""
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
        problem = None if signal.try_out() else "the canary came through"
    except Exception as error:  # the application's import goes on
        problem = f"{type(error).__name__}: {error}"
    state = HOOKED
    if problem is not None:
        patches.undo()
        state = _fall_back(signal, patches, problem)
    _active.hooked[signal.name] = patches
    _active.states[signal.name] = state


def _fall_back(signal: Signal, patches: Patches, problem: str) -> str:
    """Hook the public methods. What was registered before that stays as it is, so say so."""
    assert _active is not None  # noqa: S101  # the caller has looked
    try:
        if signal.fall_back is None:
            raise LookupError("there is no other place")
        signal.fall_back(sys.modules[signal.public_module], _active.scrubber, patches)
    except Exception as error:  # the application goes on
        _logger.error("token relay cannot redact %s: %s; %s: %s", signal.name, problem, type(error).__name__, error)
        return f"NOT redacted ({problem})"
    _logger.warning(
        "token relay: this SDK does not have the place where %s are redacted (%s). Processors and exporters that are"
        " registered from now on are wrapped instead.",
        signal.name,
        problem,
    )
    return f"{FALLEN_BACK} ({problem})"
