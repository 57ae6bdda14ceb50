"""Be called when a module has been imported, also by an import that is under way.

wrapt calls back after an import that starts later. It does not do for a module that is being
imported right now: ``opentelemetry.propagate`` loads our propagator, and FastAPI and
instrumentation import that near their top, before any of their classes exist.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType

import wrapt

Callback = Callable[[ModuleType], None]

_logger = logging.getLogger("otel_token_relay")
_waiting: dict[str, tuple[ModuleType, list[Callback]]] = {}


def when_imported(name: str, callback: Callback) -> None:
    """Call *callback* with the module of that name: now if it has been imported, else when it has.

    wrapt calls back with a lock of its own held: whoever calls this must hold none that the
    callback takes.
    """
    module = sys.modules.get(name)
    if module is None:
        wrapt.register_post_import_hook(callback, name)
    elif is_half_imported(module):
        _wait_for(name, module, callback)
    else:
        callback(module)


def is_half_imported(module: ModuleType) -> bool:
    """Whether the module's own code is still running."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


class _TellingSpec(ModuleSpec):
    """A module's spec that tells when the import ends, since the import system marks it then.

    Source: ``importlib._bootstrap._load_unlocked``. The import statement goes by the same mark.
    """

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "_initializing" and not value:
            try:
                self.__class__ = ModuleSpec  # type: ignore[assignment]  # back to what it was
                _end_wait(self.name)
            except Exception:  # the application's import goes on
                _logger.exception("token relay cannot hook %s, which is left as it is", self.name)


def _wait_for(name: str, module: ModuleType, callback: Callback) -> None:
    _waiting.setdefault(name, (module, []))[1].append(callback)
    spec = module.__spec__
    if type(spec) is ModuleSpec:
        spec.__class__ = _TellingSpec
    # Another thread may just have ended it, and an import system of its own will not tell.
    if not is_half_imported(module) or not isinstance(spec, _TellingSpec):
        _end_wait(name)


def _end_wait(name: str) -> None:
    module, callbacks = _waiting.pop(name, (None, []))
    for callback in callbacks:
        if module is not None and sys.modules.get(name) is module:
            callback(module)
        else:  # the import failed, and may be tried again
            when_imported(name, callback)
