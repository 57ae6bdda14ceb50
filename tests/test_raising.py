"""Each module has a test file of its name, and the program that tries them changes the right functions."""

from __future__ import annotations

import ast
import inspect
import os
import shutil
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
    """The file has the same name and is in the same folder."""
    assert [module for module in raising.modules() if not (ROOT / raising.test_file(module)).exists()] == []


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
    with pytest.raises(Exception, match="raised on purpose"):
        run(namespace)


MODULE = """
import sys

def runs_during_import():
    return 3

SIZE = runs_during_import()

def runs_in_a_program():
    sys.stdout.write(str(SIZE))

def runs_in_the_tests():
    return SIZE

def is_not_tested():
    return 3
"""
PROGRAM = "from otel_token_relay.sizes import runs_in_a_program as run; run()"
RUNS_A_PROGRAM = f"""
import subprocess, sys
from otel_token_relay import sizes

def test_size():
    assert sizes.runs_in_the_tests() == 3

def test_program():
    assert subprocess.run([sys.executable, "-c", {PROGRAM!r}], capture_output=True, check=True).stdout == b"3"
"""
CALLS_NOTHING = "def test_nothing(): pass"
FAILS = "def test_nothing(): assert False"
DEFINITIONS = "def is_not_tested():\n    return 3\n"


@pytest.mark.parametrize(
    ("module", "tests", "status", "expected"),
    [
        (MODULE, RUNS_A_PROGRAM, 0, ["is_not_tested"]),
        (DEFINITIONS, CALLS_NOTHING, 1, ["is_not_tested", "failed: tests/test_sizes.py notices no error"]),
        (MODULE, FAILS, 1, ["failed: the tests fail without a change"]),
        (MODULE, None, 1, ["failed: tests/test_sizes.py does not exist"]),
        ("SIZE = 3", CALLS_NOTHING, 0, []),
        (None, CALLS_NOTHING, 1, ["failed: the tests cannot be run"]),
    ],
    ids=["some noticed", "none noticed", "failing tests", "no tests", "no functions", "no module"],
)
def test_the_program_reports_the_functions_whose_errors_no_test_notices(
    tmp_path: Path, module: str | None, tests: str | None, status: int, expected: list[str]
) -> None:
    """Errors are noticed if they occur in the tests, during an import, or in a program that the tests start."""
    shutil.copytree(ROOT / "tools" / "raising_from_start", tmp_path / "tools" / "raising_from_start")
    shutil.copy(ROOT / "tools" / "raising.py", tmp_path / "tools")
    for path, content in {
        "tools/__init__.py": "",
        "otel_token_relay/__init__.py": "",
        "otel_token_relay/sizes.py": module,
        "tests/test_sizes.py": tests,
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        if content is not None:
            (tmp_path / path).write_text(content, encoding="utf-8")

    result = subprocess.run(
        [sys.executable, "-m", "tools.raising", "otel_token_relay/sizes.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.stdout.splitlines() == [f"otel_token_relay/sizes.py: {line}" for line in expected]
    assert result.returncode == status, result.stderr
