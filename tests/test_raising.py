"""Each module has a test file of its name, and the program that tries them changes the right functions."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tools import raising

ROOT = Path(__file__).parents[1]

SOURCE = '''
class Meter:
    @property
    def count(self):
        """Return the count."""
        return 3

    async def wait(self):
        return 3

    def read(self):
        ...


def numbers():
    """Yield numbers."""
    yield 1


def build():
    def inner():
        return 3

    return inner
'''


def test_each_module_has_a_test_file() -> None:
    """The file has the same name and is in the same folder, and this includes the modules that the program skips."""
    modules = [*raising.modules(), *(Path(raising.PACKAGE, name) for name in raising.EXCEPTIONS)]

    assert [module for module in modules if not (ROOT / raising.test_file(module)).exists()] == []
    assert [name for name in raising.EXCEPTIONS if not (ROOT / raising.PACKAGE / name).exists()] == []


def test_functions_with_code_are_found() -> None:
    """Neither a function without code of its own nor a function within a function is changed."""
    found = [function.name for function in raising.functions(ast.parse(SOURCE))]

    assert found == ["Meter.count", "Meter.wait", "numbers", "build"]


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("Meter.count", lambda namespace: namespace["Meter"]().count),
        ("Meter.wait", lambda namespace: namespace["Meter"]().wait().send(None)),
        ("numbers", lambda namespace: next(namespace["numbers"]())),
        ("build", lambda namespace: namespace["build"]()),
    ],
)
def test_a_changed_function_raises_when_it_runs(name: str, run: Callable[[dict[str, Any]], object]) -> None:
    """A property, a coroutine function and a generator function keep their kind."""
    namespace: dict[str, Any] = {}
    exec(compile(SOURCE, "meters.py", "exec"), namespace)
    codes = {function.name: code for function, code in raising.raising_code(ast.parse(SOURCE), "meters.py").items()}
    owner = namespace["Meter"].__dict__ if name.startswith("Meter.") else namespace
    found = owner[name.removeprefix("Meter.")]
    function = found.fget if isinstance(found, property) else found
    flags = function.__code__.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE)

    function.__code__ = codes[name]

    assert function.__code__.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE) == flags
    with pytest.raises(raising.RaisedOnPurpose):
        run(namespace)


@pytest.mark.parametrize(
    ("module", "status", "line"),
    [
        ("otel_token_relay/durations.py", 0, None),
        ("otel_token_relay/hooks.py", 1, "otel_token_relay/hooks.py: failed: tests/test_hooks.py notices no error"),
        ("otel_token_relay/missing.py", 1, "otel_token_relay/missing.py: failed: the tests cannot be run"),
    ],
    ids=["noticed", "unnoticed", "missing"],
)
def test_the_program_reports_a_module_whose_errors_no_test_notices(module: str, status: int, line: str | None) -> None:
    """The function of the hooks module runs only while the module is imported, before it can be changed."""
    result = subprocess.run(
        [sys.executable, "-m", "tools.raising", module], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert result.returncode == status, result.stderr
    assert line is None or line in result.stdout.splitlines()
