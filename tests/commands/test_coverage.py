"""Which installed libraries have hooks: found without an import, or tried out."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from otel_token_relay import Settings, install, uninstall
from otel_token_relay.commands import coverage
from otel_token_relay.commands.coverage import (
    Library,
    has_module,
    installed_caches,
    installed_libraries,
    missing_packages,
    try_caches,
    try_hooks,
    try_redaction,
    version_of,
)
from otel_token_relay.hooks import CACHE_HOOKS, CLIENT_HOOKS, Hook
from otel_token_relay.patching import Patches
from otel_token_relay.redaction import installation as redaction

DIRECT = Library("client", "http.client used directly", None, coverage.NOT_COVERED, False)


@pytest.fixture
def with_hooks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that replaces the hooks of clients. Importing all libraries takes seconds."""

    def replace(*clients: Hook) -> None:
        for name in ("SERVER_HOOKS", "BOUNDARY_HOOKS", "FRAMEWORK_HOOKS", "UNCOVERED_CLIENTS"):
            monkeypatch.setattr(coverage, name, ())
        monkeypatch.setattr(coverage, "CLIENT_HOOKS", clients)

    return replace


def of_library(name: str) -> list[Hook]:
    return [hook for hook in CLIENT_HOOKS if (hook.distribution or hook.module) == name]


# Without an import


def test_nothing_is_imported() -> None:
    """An application may not want to import a library at all."""
    program = (
        "import sys\n"
        "from otel_token_relay.commands.coverage import installed_libraries\n"
        "names = [library.name for library in installed_libraries() if library.is_covered]\n"
        "print('httpx' in names, {'httpx', 'aiohttp', 'flask', 'starlette'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert ran.stdout == "True set()\n"


def test_each_library_is_listed_once(with_hooks: Callable[..., None]) -> None:
    """A library of the standard library has no version."""
    with_hooks(*of_library("httpx"), *of_library("httpcore"), *of_library("urllib.request"))

    assert installed_libraries() == [
        Library("client", "httpx", version("httpx"), "can be hooked", True),
        Library("client", "httpcore", version("httpcore"), "can be hooked", True),
        Library("client", "urllib.request", None, "can be hooked", True),
        DIRECT,
    ]


def test_the_text_of_a_library_contains_its_version_and_state() -> None:
    """The output of ``check`` contains it."""
    assert str(Library("client", "httpx", "0.28", "hooked", True)) == "httpx 0.28: hooked"
    assert str(DIRECT).startswith("http.client used directly (standard library): no hook; specify the destination")


def test_an_installed_client_without_hooks_is_listed(
    with_hooks: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is not installed is not."""
    with_hooks()
    monkeypatch.setattr(coverage, "UNCOVERED_CLIENTS", ("pytest", "no-such-package"))

    assert installed_libraries() == [
        Library("client", "pytest", version("pytest"), "no hook; specify the destination with to_destination()", False),
        DIRECT,
    ]


def test_a_release_without_the_module_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of the module is looked for, and nothing is imported."""
    hooks = (
        Hook("missing_library", lambda *_: None, "missing-library"),
        Hook("pytest.no_such_module", lambda *_: None, "pytest"),
        Hook("_pytest.mark", lambda *_: None, "iniconfig"),
        Hook("_pytest.mark.structures", lambda *_: None, "pluggy"),
    )
    monkeypatch.setattr(coverage, "BOUNDARY_HOOKS", hooks)

    found = {library.name: library for library in coverage.installed_libraries()}

    assert "missing-library" not in found
    assert not found["pytest"].is_covered
    assert found["pytest"].state == "cannot be hooked: this release has no module pytest.no_such_module"
    assert found["iniconfig"].state == found["pluggy"].state == "can be hooked"


def test_the_page_names_the_same_clients_as_check() -> None:
    """The page lists each client that check reports as not covered, with the alternative."""
    page = (Path(__file__).parents[2] / "docs" / "servers-and-clients.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| ") and line.endswith("| `to_destination` |")]

    assert [name for name in (*coverage.UNCOVERED_CLIENTS, "http.client") if name not in row] == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("pytest", True, id="package"),
        pytest.param("_pytest.mark", True, id="subpackage"),
        pytest.param("_pytest.mark.structures", True, id="module of a subpackage"),
        pytest.param("_pytest.mark.structure", False, id="shorter name"),
        pytest.param("_pytest.no_such_package.structures", False, id="no such subpackage"),
        pytest.param("no_such_package", False, id="no such package"),
        pytest.param("no_such_package.module", False, id="module of no package"),
        pytest.param("this.module", False, id="module of a module"),
    ],
)
def test_a_module_is_looked_for_by_its_file(name: str, expected: bool) -> None:
    """Importing a package to look into it would run its code."""
    assert has_module(name) is expected


def test_a_module_that_must_not_be_imported_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python does not import a module whose entry is ``None``."""
    monkeypatch.setitem(sys.modules, "httpx", None)  # type: ignore[arg-type]

    assert not has_module("httpx")


def test_the_packages_that_verification_lacks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names under which they can be installed."""
    assert missing_packages() == ""
    monkeypatch.setitem(sys.modules, "jwt", None)  # type: ignore[arg-type]
    assert missing_packages() == "PyJWT"
    monkeypatch.setitem(sys.modules, "urllib3", None)  # type: ignore[arg-type]
    assert missing_packages() == "PyJWT and urllib3"


def test_a_package_that_is_not_installed_has_no_version() -> None:
    """Extras are optional."""
    assert version_of("pytest") == version("pytest")
    assert version_of("no-such-package") is None


# With an import


def test_hooked_libraries_are_listed_as_hooked(with_hooks: Callable[..., None]) -> None:
    """The relay is installed, and each library is imported."""
    with_hooks(*of_library("httpx"), *of_library("urllib.request"))
    install(Settings(destinations=("https://a",)))

    assert try_hooks() == [
        Library("client", "httpx", version("httpx"), "hooked", True),
        Library("client", "urllib.request", None, "hooked", True),
        DIRECT,
    ]


def test_a_library_that_cannot_be_hooked_is_named_with_the_error(
    with_hooks: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its requests would have no token."""
    import httpx

    with_hooks(*of_library("httpx"))
    monkeypatch.delattr(httpx, "HTTPTransport")
    uninstall()
    install(Settings(destinations=("https://a",)))

    (found, _) = try_hooks()
    assert not found.is_covered
    assert found.state.startswith("cannot be hooked: httpx: AttributeError")


def test_a_library_whose_import_fails_is_named(with_hooks: Callable[..., None]) -> None:
    """An import can raise any exception."""
    with_hooks(Hook("no_such_module_of_pytest", lambda *_: None, "pytest"))
    install(Settings(destinations=("https://a",)))

    (found, _) = try_hooks()
    assert found == Library(
        "client",
        "pytest",
        version("pytest"),
        "cannot be hooked: no module with a hook could be imported",
        False,
    )


# Caches


def test_installed_caches_are_listed_with_their_versions() -> None:
    """Once, although a cache has several hooks."""
    names = {hook.distribution for hook in CACHE_HOOKS} - {None}
    assert installed_caches() == {name: version(str(name)) for name in names if version_of(str(name)) is not None}


def test_caches_are_hooked_for_a_moment() -> None:
    """Their methods are then their own."""
    import requests_cache

    own = vars(requests_cache.backends.BaseCache).copy(), requests_cache.CacheMixin.send
    found = try_caches()

    assert {library.name: library.state for library in found} == dict.fromkeys(installed_caches(), "hooked")
    assert all(library.is_covered and library.kind == "cache" for library in found)
    assert (vars(requests_cache.backends.BaseCache).copy(), requests_cache.CacheMixin.send) == own


def test_a_cache_that_cannot_be_hooked_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was hooked before the error is restored."""

    def method() -> str:
        return "own"

    victim = types.SimpleNamespace(method=method)

    def patch(module: types.ModuleType, runtime: object, patches: Patches) -> None:
        patches.wrap(victim, "method", lambda original: lambda *arguments: original(*arguments))  # type: ignore[arg-type]
        assert victim.method is not method
        raise AttributeError("this release has no module x")

    monkeypatch.setattr(coverage, "CACHE_HOOKS", (Hook("pytest", patch, "pytest"),))

    problem = "one user may get another user's response: this release has no module x"
    assert try_caches() == [Library("cache", "pytest", version("pytest"), problem, False)]
    assert victim.method is method


def test_a_cache_that_cannot_be_imported_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot store a response. A cache is listed if one of its modules can be imported."""
    hooks = (
        Hook("no_such_module", lambda *_: None, "pytest"),
        Hook("no_such_module", lambda *_: None, "pluggy"),
        Hook("pluggy", lambda *_: None, "pluggy"),
    )
    monkeypatch.setattr(coverage, "CACHE_HOOKS", hooks)
    assert try_caches() == [Library("cache", "pluggy", version("pluggy"), "hooked", True)]


def test_without_a_cache_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that is not installed cannot mix up responses."""
    monkeypatch.setattr(coverage, "CACHE_HOOKS", (Hook("no_such_module", lambda *_: None, "no-such-package"),))
    assert installed_caches() == {}
    assert try_caches() == []


# Redaction


def test_each_signal_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the SDK there is nothing to redact."""
    uninstall()
    sdk = version("opentelemetry-sdk")
    assert try_redaction(Settings()) == [
        Library("signal", name, sdk, redaction.HOOKED, True) for name in ("spans", "logs", "metrics")
    ]
    uninstall()
    assert {library.is_covered for library in try_redaction(Settings(redaction=False))} == {False}
    monkeypatch.setattr(coverage, "version_of", lambda name: None)
    assert try_redaction(Settings()) == []
