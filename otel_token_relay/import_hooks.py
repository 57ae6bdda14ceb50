"""Patch modules when they are imported, and undo the patches.

wrapt's import hooks do not support modules that are already being imported. Such modules are common. For example,
FastAPI and instrumentation packages import ``opentelemetry.propagate``, which loads the relay's propagator, before they
define their classes.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Collection, Hashable
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Generic, Protocol, TypeVar

import wrapt

from otel_token_relay.patching import Patches

_logger = logging.getLogger("otel_token_relay")

Callback = Callable[[ModuleType], None]


class Hook(Hashable, Protocol):
    """A patch for one module."""

    @property
    def module(self) -> str:
        """The module's full name."""
        ...


HookT = TypeVar("HookT", bound=Hook)


class ImportHooks(Generic[HookT]):
    """A collection of hooks, each of which is applied as soon as its module is imported.

    `ImportHooks` does not import modules. Hooks remain registered with the import system for the lifetime of the
    process, but they have no effect while they are switched off.

    Args:
        patch: A function that patches one module and returns the hook's state. If *patch* raises an exception, the
            patches are undone and the module's import continues.
        on_failure: A function to call if *patch* raises an exception. It receives the hook and the exception.

    Attributes:
        lock: The lock that is held while a hook is being applied or undone.
        states: A mapping from each hook to the state that *patch* returned or a description of the exception that it
            raised.
    """

    def __init__(
        self, patch: Callable[[HookT, ModuleType, Patches], str], on_failure: Callable[[HookT, Exception], None]
    ) -> None:
        self.lock: threading.RLock = threading.RLock()
        self.states: dict[HookT, str] = {}
        self._patch = patch
        self._on_failure = on_failure
        self._hooks: tuple[HookT, ...] = ()
        self._applied: dict[HookT, Patches] = {}
        self._watched: set[HookT] = set()

    def switch_on(self, hooks: tuple[HookT, ...]) -> None:
        """Switch on additional hooks, and apply them to modules that have already been imported."""
        with self.lock:
            self._hooks = tuple(dict.fromkeys((*self._hooks, *hooks)))
            for hook in hooks:
                module = sys.modules.get(hook.module)
                if module is not None and not is_half_imported(module):
                    self._apply(hook, module)

    def watch(self) -> None:
        """Apply the hooks to modules that are imported later.

        Do not call `watch` while holding a lock; see `when_imported`.
        """
        for hook in self._hooks:
            if hook not in self._watched:
                self._watched.add(hook)
                when_imported(hook.module, partial(self._on_import, hook))

    def switch_off(self, kept: Collection[HookT] = ()) -> None:
        """Undo every hook except those in *kept*."""
        with self.lock:
            self._hooks = tuple(hook for hook in self._hooks if hook in kept)
            self.states = {hook: state for hook, state in self.states.items() if hook in kept and hook in self._applied}
            for hook in [hook for hook in self._applied if hook not in kept]:
                self._applied.pop(hook).undo()

    def is_applied(self, hook: HookT) -> bool:
        """Return whether the hook has patched its module."""
        return hook in self._applied

    def _on_import(self, hook: HookT, module: ModuleType) -> None:
        with self.lock:
            if hook not in self.states:  # a hook that failed in `switch_on` would fail again
                self._apply(hook, module)

    def _apply(self, hook: HookT, module: ModuleType) -> None:
        if hook not in self._hooks or hook in self._applied:
            return
        patches = Patches()
        try:
            self.states[hook] = self._patch(hook, module, patches)
        except Exception as error:  # the application's import must continue
            patches.undo()
            self.states[hook] = f"{type(error).__name__}: {error}"
            self._on_failure(hook, error)
        else:
            self._applied[hook] = patches


def when_imported(name: str, callback: Callback) -> None:
    """Call *callback* with a module as soon as it is imported, or immediately if it has already been imported.

    wrapt holds a lock while it calls *callback*. To avoid a deadlock, do not call `when_imported` while holding a lock
    that *callback* needs.
    """
    module = sys.modules.get(name)
    if module is None:
        wrapt.register_post_import_hook(callback, name)
    elif is_half_imported(module):
        _wait_for(name, module, callback)
    else:
        callback(module)


def is_half_imported(module: ModuleType) -> bool:
    """Return whether the module is still being imported."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


_waiting: dict[str, tuple[ModuleType, list[Callback]]] = {}


class _ObservedSpec(ModuleSpec):
    """A module spec that detects when its module's import is complete.

    The import system sets ``_initializing`` to ``False`` when an import is complete; see
    ``importlib._bootstrap._load_unlocked``.
    """

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "_initializing" and not value:
            try:
                self.__class__ = ModuleSpec  # type: ignore[assignment]  # its original class
                _end_wait(self.name)
            except Exception:  # the application's import must continue
                _logger.exception("token relay cannot hook %s, which remains unchanged", self.name)


def _wait_for(name: str, module: ModuleType, callback: Callback) -> None:
    _waiting.setdefault(name, (module, []))[1].append(callback)
    spec = module.__spec__
    if type(spec) is ModuleSpec:
        spec.__class__ = _ObservedSpec
    # Another thread might already have finished importing the module. A spec whose type is not `ModuleSpec` does not
    # report when the import is complete.
    if not is_half_imported(module) or not isinstance(spec, _ObservedSpec):
        _end_wait(name)


def _end_wait(name: str) -> None:
    module, callbacks = _waiting.pop(name, (None, []))
    for callback in callbacks:
        if module is not None and sys.modules.get(name) is module:
            callback(module)
        else:  # the import failed and might be retried
            when_imported(name, callback)
