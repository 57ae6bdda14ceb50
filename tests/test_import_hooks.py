"""Modules are patched on import, even if the import is in progress, and can be restored."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import itertools
import logging
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from otel_token_relay.import_hooks import ImportHooks, is_half_imported, when_imported
from otel_token_relay.patching import Patches
from tests.test_installation import run

_numbers = itertools.count()

# Call the function that a test stored in `sys` in the middle of the module's own import.
HALF_IMPORTED = """
import sys
sys.test_import_hooks(__name__)

def function():
    return ["original"]
"""


@dataclass(frozen=True)
class NamedHook:
    """A patch of `function` that adds a mark to the result."""

    module: str
    mark: str = "patched"


class Library:
    """A directory of modules that can be imported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, source: str = 'def function():\n    return ["original"]\n') -> str:
        """Write a module, and return its name, which is unique because the import system remembers hooks."""
        name = f"library_{next(_numbers)}"
        (self.folder / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        return name


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """A directory whose modules are forgotten after the test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield Library(tmp_path)
    for name in [name for name in sys.modules if name.startswith("library_")]:
        del sys.modules[name]


@pytest.fixture
def during_import(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], None]], None]:
    """Set the function that a partly imported module calls."""
    return lambda function: monkeypatch.setattr(sys, "test_import_hooks", function, raising=False)


@pytest.fixture
def failures() -> list[tuple[NamedHook, str]]:
    """The hooks that could not be applied."""
    return []


@pytest.fixture
def hooks(failures: list[tuple[NamedHook, str]]) -> Iterator[ImportHooks[NamedHook]]:
    """Hooks that are undone after the test."""

    def patch(hook: NamedHook, module: types.ModuleType, patches: Patches) -> str:
        patches.wrap(module, "function", lambda original: lambda: [*original(), hook.mark])
        if hook.mark == "broken":
            raise LookupError("the library has changed")
        return f"state of {hook.mark}"

    made: ImportHooks[NamedHook] = ImportHooks(patch, lambda hook, error: failures.append((hook, str(error))))
    yield made
    made.switch_off()


def test_modules_are_patched_at_once_or_when_they_are_imported(hooks: ImportHooks[NamedHook], library: Library) -> None:
    """Each module is patched once, immediately if it is imported or else on import, and no hook imports a module."""
    early, late, other = library.write(), library.write(), library.write()
    table = (NamedHook(early), NamedHook(late))
    imported = importlib.import_module(early)

    for _ in range(2):
        hooks.switch_on(table)
        hooks.watch()
    assert (imported.function(), late in sys.modules) == (["original", "patched"], False)
    assert (hooks.is_applied(table[0]), hooks.is_applied(table[1])) == (True, False)

    assert importlib.import_module(late).function() == ["original", "patched"]
    assert importlib.import_module(other).function() == ["original"]
    assert hooks.states == dict.fromkeys(table, "state of patched")
    assert all(hooks.is_applied(hook) for hook in table)


def test_hooks_that_are_off_do_nothing(hooks: ImportHooks[NamedHook], library: Library) -> None:
    """Disabling hooks removes their patches, and later imports remain unchanged until the hooks are enabled again."""
    table = (NamedHook(library.write()), NamedHook(library.write()))
    hooks.switch_on(table)
    hooks.watch()
    first = importlib.import_module(table[0].module)

    hooks.switch_off()
    second = importlib.import_module(table[1].module)
    assert (first.function(), second.function()) == (["original"], ["original"])
    assert (hooks.states, hooks.is_applied(table[0])) == ({}, False)

    hooks.switch_on(table)
    assert (first.function(), second.function()) == (["original", "patched"], ["original", "patched"])


@pytest.mark.parametrize("order", ["imported before", "imported later"])
def test_a_hook_that_fails_leaves_its_module_unchanged(
    order: str, hooks: ImportHooks[NamedHook], library: Library, failures: list[tuple[NamedHook, str]]
) -> None:
    """A failed hook leaves its module unchanged, is reported, and does not stop the import or other hooks."""
    name = library.write()
    table = (NamedHook(name, "broken"), NamedHook(name))
    if order == "imported before":
        importlib.import_module(name)

    hooks.switch_on(table)
    hooks.watch()

    assert importlib.import_module(name).function() == ["original", "patched"]
    assert failures == [(table[0], "the library has changed")]
    assert hooks.states == {table[0]: "LookupError: the library has changed", table[1]: "state of patched"}
    assert not hooks.is_applied(table[0])


def test_a_module_is_patched_at_the_end_of_its_own_import(
    hooks: ImportHooks[NamedHook], library: Library, during_import: Callable[[Callable[[str], None]], None]
) -> None:
    """A module whose import is in progress when the hooks are enabled is patched at the end of the import."""
    hook = NamedHook(library.write(HALF_IMPORTED))
    seen: list[bool] = []

    def switch_on(name: str) -> None:
        seen.append(is_half_imported(sys.modules[name]))
        hooks.switch_on((hook,))
        hooks.watch()
        seen.append(hooks.is_applied(hook))

    during_import(switch_on)
    module = importlib.import_module(hook.module)

    assert seen == [True, False]
    assert not is_half_imported(module)
    assert module.function() == ["original", "patched"]
    assert type(module.__spec__) is ModuleSpec


def test_an_import_that_fails_is_waited_for_again(
    library: Library, during_import: Callable[[Callable[[str], None]], None]
) -> None:
    """After a failed import, the callback is called once, with the module of the import that succeeds."""
    name = library.write(HALF_IMPORTED)
    called: list[types.ModuleType] = []

    def fail(name: str) -> None:
        when_imported(name, called.append)
        raise ValueError("the first import fails")

    during_import(fail)
    with pytest.raises(ValueError, match="the first import fails"):
        importlib.import_module(name)
    assert called == []

    during_import(lambda _: None)
    assert [importlib.import_module(name)] == called


def test_a_callback_that_fails_does_not_stop_a_half_import(
    library: Library,
    during_import: Callable[[Callable[[str], None]], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A callback that raises an error does not stop an import that is in progress, and the error is logged."""
    name = library.write(HALF_IMPORTED)

    def fail(_: types.ModuleType) -> None:
        raise LookupError("the library has changed")

    during_import(lambda name: when_imported(name, fail))

    assert importlib.import_module(name).function() == ["original"]
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, f"token relay cannot hook {name}, which remains unchanged")
    ]


class OwnSpec(ModuleSpec):
    """A spec from a custom import system, which does not report the end of an import."""


def test_a_spec_of_another_import_system_is_not_waited_for(library: Library) -> None:
    """For a spec from a custom import system, the callback is called immediately, because it would not be called
    later.
    """
    name = library.write()
    module = types.ModuleType(name)
    module.__spec__ = OwnSpec(name, None)
    module.__spec__._initializing = True  # type: ignore[attr-defined]  # the mark of the import system
    sys.modules[name] = module
    called: list[types.ModuleType] = []

    assert is_half_imported(module)
    when_imported(name, called.append)

    assert called == [module]
    assert type(module.__spec__) is OwnSpec


@pytest.mark.parametrize("spec", [None, "not a spec"], ids=["no spec", "not a spec"])
def test_a_module_without_a_usable_spec_counts_as_imported(spec: object, library: Library) -> None:
    """A module without a usable spec, such as `__main__`, is considered imported."""
    name = library.write()
    module = types.ModuleType(name)
    module.__spec__ = spec  # type: ignore[assignment]  # this is the mistake
    sys.modules[name] = module
    called: list[types.ModuleType] = []

    assert not is_half_imported(module)
    when_imported(name, called.append)

    assert called == [module]


# Only newer releases of Starlette and FastAPI import OpenTelemetry.
SELF_IMPORTING = [
    name
    for name in (
        "fastapi",
        "opentelemetry.instrumentation.asgi",
        "opentelemetry.instrumentation.wsgi",
        "starlette.middleware.opentelemetry",
    )
    if importlib.util.find_spec(name) is not None
]


@pytest.mark.parametrize("first_import", SELF_IMPORTING)
def test_a_module_that_imports_the_package_is_hooked(first_import):
    """A module that imports the package is hooked, although it is only partly imported when the propagator loads."""
    out, err = run(
        f"import {first_import}\nimport opentelemetry.propagate, colorsys\n"
        "from otel_token_relay.installation import hook_states\n"
        "import sys; states = hook_states()\n"
        "print([n for n, s in states.items() if n in sys.modules and s != 'hooked'], len(states))",
        OTEL_PROPAGATORS="tracecontext,baggage,token_relay",
    )

    assert out.startswith("[] ")
    assert not out.endswith(" 0")
    assert err == ""
