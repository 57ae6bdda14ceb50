"""The table of hooks matches the installed libraries, and reading it imports none of them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import subprocess
import sys
import warnings
from dataclasses import FrozenInstanceError
from importlib.metadata import packages_distributions
from types import ModuleType

import pytest

from otel_token_relay import Settings
from otel_token_relay.hooks import CACHE_HOOKS, CARRIER_HOOKS, CLIENT_HOOKS, HOOKS, SERVER_HOOKS, Hook
from otel_token_relay.patching import MISSING, Patches, layers_of
from otel_token_relay.runtime import Runtime

every_hook = pytest.mark.parametrize(
    "hook", HOOKS, ids=[f"{hook.module}-{number}" for number, hook in enumerate(HOOKS)]
)


distributions = functools.cache(packages_distributions)


def module_of(hook: Hook) -> ModuleType:
    """Import a hook's module, or skip the test if the installed release does not have the module."""
    top = hook.module.partition(".")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries emit warnings about each other
        if importlib.util.find_spec(top) is None or importlib.util.find_spec(hook.module) is None:
            pytest.skip(f"{hook.module} is not installed")
        try:
            return importlib.import_module(hook.module)
        except ModuleNotFoundError as error:  # an optional part of the library
            pytest.skip(f"{hook.module} requires {error.name}")


@every_hook
def test_each_hook_patches_its_library_and_can_be_undone(hook: Hook) -> None:
    """Each hook patches existing methods of the installed release, and undoing the hook restores the originals."""
    module, patches = module_of(hook), Patches()

    # Some hooks are necessary only if tokens are exchanged or if a request can be repeated.
    hook.patch(module, Runtime(Settings(destinations=["https://a;audience=b;retry=idempotent"])), patches)
    done = list(patches._done)
    patches.undo()

    only_checks = hook in CACHE_HOOKS and "." not in hook.module  # whether the release has the modules to hook
    assert bool(done) is not only_checks
    for owner, name, original, replacement in done:
        functions = [layer for _, layer in layers_of(vars(owner).get(name, MISSING))]
        assert functions[-1] is original
        assert replacement not in functions


@every_hook
def test_each_hook_names_the_package_that_contains_its_module(hook: Hook) -> None:
    """Each hook has the name of the package whose version `otel-token-relay check` prints, or none for the standard
    library.
    """
    module_of(hook)
    top = hook.module.partition(".")[0]

    if hook.distribution is None:
        assert top in sys.stdlib_module_names
    elif top == "opentelemetry":  # many packages share this name
        assert hook.distribution.startswith("opentelemetry-instrumentation-")
    else:
        found = [name.lower().replace("_", "-") for name in distributions()[top]]
        assert hook.distribution.lower() in found


def test_no_hook_is_listed_twice() -> None:
    """No hook is listed twice, although clients and servers can share a module."""
    assert HOOKS == CLIENT_HOOKS + SERVER_HOOKS + CARRIER_HOOKS + CACHE_HOOKS
    assert len(set(HOOKS)) == len(HOOKS)
    assert len({(hook.module, hook.patch) for hook in HOOKS}) == len(HOOKS)


def test_fastapi_is_hooked_before_starlette() -> None:
    """FastAPI is hooked before Starlette, because its telemetry extracts the context before it calls Starlette's
    method.
    """
    modules = [hook.module for hook in SERVER_HOOKS]

    assert modules.index("fastapi.applications") < modules.index("starlette.applications")


def test_a_hook_cannot_be_modified() -> None:
    """A hook cannot be modified, because installations use hooks as dictionary keys."""
    hook = HOOKS[0]

    with pytest.raises(FrozenInstanceError):
        hook.module = "another"  # type: ignore[misc]  # this is the mistake
    assert hook == Hook(hook.module, hook.patch, hook.distribution)


def test_reading_the_table_imports_no_library() -> None:
    """Reading the table imports no library, so applications load only the libraries that they use."""
    libraries = {hook.module.partition(".")[0] for hook in HOOKS if hook.distribution is not None} - {"opentelemetry"}
    program = f"import sys, otel_token_relay.hooks; print(sorted({libraries!r} & sys.modules.keys()))"

    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert (ran.stdout, ran.stderr) == ("[]\n", "")


LATE = """
import importlib, sys
from otel_token_relay import Settings, install, uninstall
from otel_token_relay.hooks import CACHE_HOOKS
from otel_token_relay.installation import hook_states
from otel_token_relay.patching import layers_of

names = [hook.module for hook in CACHE_HOOKS]

def wrapped():
    found = {}
    for name in names:
        for owner in vars(sys.modules[name]).values():
            for function in vars(owner).values() if isinstance(owner, type) else ():
                code = getattr([layer for _, layer in layers_of(function)][-1], "__code__", None)
                if code is not None and "otel_token_relay" in code.co_filename and owner.__module__ in names:
                    found[owner.__module__] = True
    return sorted(found)

if sys.argv[1] == "before":
    install(Settings(destinations=("https://a",)))
for name in names:
    importlib.import_module(name)
if sys.argv[1] == "after":
    print(wrapped())
    install(Settings(destinations=("https://a",)))
print({hook_states()[name] for name in names}, set(wrapped()) ^ {name for name in names if "." in name})
install(Settings(destinations=("https://b",)))
print({hook_states()[name] for name in names}, set(wrapped()) ^ {name for name in names if "." in name})
install(Settings(destinations=("https://b",), protect_caches=False))
print(wrapped())
uninstall()
print(wrapped())
"""


@pytest.mark.parametrize("order", ["before", "after"])
def test_caches_are_hooked_by_install_and_freed_by_uninstall(order: str) -> None:
    """`install` hooks and `uninstall` releases the caches, even those that are imported after the installation."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LATE, order], capture_output=True, text=True, timeout=120, check=False
    )

    hooked = ["{'hooked'} set()", "{'hooked'} set()", "[]", "[]"]
    assert ran.stdout.splitlines() == (hooked if order == "before" else ["[]", *hooked])
