"""Detect releases of cache libraries that lack a required module. A hook for a missing module would never run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from otel_token_relay.patching import Patches
from otel_token_relay.runtime import Runtime


def checker(*modules: str) -> Callable[[ModuleType, Runtime, Patches], None]:
    """Return a hook for a library's top-level module. The hook raises an exception if any of *modules* is missing."""

    def check(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
        if not runtime.settings.protect_caches:
            return
        for name in modules:
            _, *folders, last = name.split(".")
            if not any(any(Path(root, *folders).glob(f"{last}.*")) for root in module.__path__):
                raise AttributeError(f"this release has no module {name}")

    return check
