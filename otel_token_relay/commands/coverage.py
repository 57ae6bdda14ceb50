"""Determine which installed libraries have hooks.

`installed_libraries` reads package metadata and locates the modules to hook, but does not import them. `try_hooks`
imports every installed library that has hooks, and checks whether the hooks work.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final, Literal

from otel_token_relay.hooks import BOUNDARY_HOOKS, CACHE_HOOKS, CLIENT_HOOKS, FRAMEWORK_HOOKS, SERVER_HOOKS, Hook
from otel_token_relay.installation import hook_states
from otel_token_relay.patching import Patches
from otel_token_relay.redaction import installation as redaction
from otel_token_relay.runtime import Runtime
from otel_token_relay.settings import Settings

Kind = Literal["client", "server", "framework", "cache", "signal"]
KINDS: Final[dict[Kind, str]] = {
    "client": "clients",
    "server": "servers",
    "framework": "frameworks",
    "cache": "caches",
    "signal": "redacted signals",
}

# These clients have no hooks and do not send requests through a hooked client. `docs/servers-and-clients.md` contains
# the same list.
UNCOVERED_CLIENTS: Final = (
    "curl_cffi",
    "geventhttpclient",
    "grpclib",
    "httplib2",
    "niquests",
    "primp",
    "pycurl",
    "pyreqwest",
    "Twisted",
    "websocket-client",
    "websockets",
)
NOT_COVERED: Final = "no hook; specify the destination with to_destination()"
CAN_BE_HOOKED: Final = "can be hooked"
HOOKED: Final = "hooked"


@dataclass(frozen=True, slots=True)
class Library:
    """An installed library.

    Attributes:
        kind: The library's category.
        name: The package name, or the module name for a module in the standard library.
        version: The installed version, or ``None`` for a module in the standard library.
        state: `CAN_BE_HOOKED`, `HOOKED`, `NOT_COVERED`, or the reason that the library cannot be hooked.
        is_covered: Whether the library is hooked or can be hooked.
    """

    kind: Kind
    name: str
    version: str | None
    state: str
    is_covered: bool

    def __str__(self) -> str:
        return f"{self.name} {self.version or '(standard library)'}: {self.state}"


def installed_libraries() -> list[Library]:
    """Return the installed libraries without importing them."""
    return [*_libraries(_state_of_modules), *_uncovered()]


def try_hooks() -> list[Library]:
    """Import the installed libraries that have hooks, and return the state of each library.

    Call `otel_token_relay.installation.install` before this function.
    """
    for hook in (*CLIENT_HOOKS, *SERVER_HOOKS):
        if hook.distribution is None or version_of(hook.distribution) is not None:
            _import(hook.module)
    states = hook_states()

    def state_of(hooks: list[Hook]) -> tuple[str, bool]:
        found = {hook.module: states[hook.module] for hook in hooks if hook.module in states}
        failed = [f"{name}: {state}" for name, state in found.items() if state not in (HOOKED, "not imported")]
        if failed:
            return f"cannot be hooked: {'; '.join(failed)}", False
        if HOOKED in found.values():
            return HOOKED, True
        return "cannot be hooked: no module with a hook could be imported", False

    return [*_libraries(state_of), *_uncovered()]


def installed_caches() -> dict[str, str]:
    """Return the installed version of each cache that has hooks, keyed by package name."""
    names = dict.fromkeys(hook.distribution for hook in CACHE_HOOKS)
    return {name: version for name in names if name is not None and (version := version_of(name)) is not None}


def try_caches() -> list[Library]:
    """Import the installed caches, apply and remove their hooks, and return the results.

    Only an import reveals whether the installed release contains the code to hook. Without the hooks, a cache
    might return one user's response to another user.
    """
    installed = installed_caches()
    runtime = Runtime(Settings()) if installed else None
    found = []
    for name, version in installed.items():
        hooks = [hook for hook in CACHE_HOOKS if hook.distribution == name]
        problem = next(filter(None, (_try_patch(hook, runtime) for hook in hooks)), None)
        state = HOOKED if problem is None else f"one user may get another user's response: {problem}"
        found.append(Library("cache", name, version, state, problem is None))
    return found


def _try_patch(hook: Hook, runtime: Runtime | None) -> str | None:
    """Apply and remove *hook*, and return any error message.

    Return ``None`` if the hook works or if the module cannot be imported.
    """
    _import(hook.module)
    module = sys.modules.get(hook.module)
    # For example, a module in hishel cannot be imported if its HTTP client is not installed.
    if module is None or runtime is None:
        return None
    patches = Patches()
    try:
        hook.patch(module, runtime, patches)
    except Exception as error:
        return str(error)
    finally:
        patches.undo()
    return None


def try_redaction(settings: Settings) -> list[Library]:
    """Import the OpenTelemetry SDK if it is installed, redact a test token in each signal, and return the results."""
    version = version_of("opentelemetry-sdk")
    if version is None:
        return []
    for signal in redaction.SIGNALS:
        _import(signal.module)
    redaction.start(settings)
    return [
        Library("signal", name, version, state, state == redaction.HOOKED) for name, state in redaction.states().items()
    ]


def _import(module: str) -> None:
    with contextlib.suppress(Exception), warnings.catch_warnings():  # An import can raise any exception.
        warnings.simplefilter("ignore")
        importlib.import_module(module)


def version_of(distribution: str) -> str | None:
    """Return a package's installed version, or ``None`` if the package is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def has_module(name: str) -> bool:
    """Return whether a module is installed, without importing its package."""
    root, *rest = name.split(".")
    # Use only PathFinder, because other finders can have side effects. For example, this package's own finder starts
    # verification before a server is imported.
    spec = None if root in sys.modules and not sys.modules[root] else PathFinder.find_spec(root)
    if spec is None or not rest:
        return spec is not None
    for folder in spec.submodule_search_locations or ():
        path = Path(folder, *rest[:-1])
        if path.joinpath(rest[-1], "__init__.py").exists() or any(path.glob(f"{rest[-1]}.*")):
            return True
    return False


# The packages that verification requires, keyed by module name.
_TO_VERIFY: Final = {"jwt": "PyJWT", "urllib3": "urllib3"}


def missing_packages() -> str:
    """Return the names of the packages that verification requires but that are not installed, or an empty string."""
    return " and ".join(package for module, package in _TO_VERIFY.items() if not has_module(module))


def _state_of_modules(hooks: list[Hook]) -> tuple[str, bool]:
    if any(has_module(hook.module) for hook in hooks):
        return CAN_BE_HOOKED, True
    return f"cannot be hooked: this release has no module {hooks[0].module}", False


def _libraries(state_of: Callable[[list[Hook]], tuple[str, bool]]) -> Iterator[Library]:
    kinds: tuple[tuple[Kind, Iterable[Hook]], ...] = (
        ("client", CLIENT_HOOKS),
        ("server", BOUNDARY_HOOKS),
        ("framework", FRAMEWORK_HOOKS),
    )
    for kind, hooks in kinds:
        by_name: dict[str, list[Hook]] = {}
        for hook in hooks:
            by_name.setdefault(hook.distribution or hook.module, []).append(hook)
        for name, group in by_name.items():
            version = None if group[0].distribution is None else version_of(name)
            if group[0].distribution is None or version is not None:
                state, is_covered = state_of(group)
                yield Library(kind, name, version, state, is_covered)


def _uncovered() -> Iterator[Library]:
    for name in UNCOVERED_CLIENTS:
        if (version := version_of(name)) is not None:
            yield Library("client", name, version, NOT_COVERED, False)
    yield Library("client", "http.client used directly", None, NOT_COVERED, False)
