"""Check that the test file of each module fails if one of the module's functions raises.

    python -m tools.raising                              every module; takes about an hour
    python -m tools.raising otel_token_relay/origin.py   some modules

`tests/` mirrors the package: ``tests/redaction/test_spans.py`` tests ``otel_token_relay/redaction/spans.py``. For each
function and method of a module, the program runs the module's test file with that function raising an error, and prints
the functions whose error that file does not notice. It exits with status 1 if a module has no test file, or if its test
file notices none of the errors.

pytest imports and collects a test file once. The program then forks a child process for each function, which changes
the function and runs the tests until one fails. If no test fails, the program runs the tests in a new process, because
some functions run only while a module is being imported or in programs that the tests start. The tests must pass
without a change.
"""

from __future__ import annotations

import ast
import gc
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, cast

import pytest

from tools.raising_from_start import sitecustomize

ROOT = Path(__file__).parent.parent
PACKAGE = "otel_token_relay"

# A test that waits for a function that has raised would wait too long.
SECONDS_PER_FUNCTION: Final = 120

FAILED: Final = "failed: "
OPTIONS: Final = ("-x", "-p", "no:cacheprovider", "-p", "no:xdist")


class Function(NamedTuple):
    """A function or method.

    Attributes:
        name: The qualified name within its module.
        line: The line of ``def``, or of the first decorator.
    """

    name: str
    line: int


def test_file(module: Path) -> Path:
    """Return the path of the test file for a module. Both paths are relative to the checkout."""
    inner = module.relative_to(PACKAGE)
    return Path("tests") / inner.parent / f"test_{inner.stem.strip('_')}.py"


def modules() -> list[Path]:
    """Return the modules that must have a test file. Packages' ``__init__`` modules contain only names."""
    listed = subprocess.run(
        ["git", "ls-files", f"{PACKAGE}/*.py"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return [Path(line) for line in listed.stdout.splitlines() if not line.endswith("/__init__.py")]


def functions(tree: ast.Module) -> Iterator[Function]:
    """Find the functions and methods that have code of their own, but not the functions within functions."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[Function]:
        for node in body:
            if isinstance(node, ast.ClassDef):
                yield from walk(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not _is_empty(node):
                yield Function(prefix + node.name, sitecustomize.first_line(node))
            elif isinstance(node, (ast.If, ast.Try)):
                yield from walk([*node.body, *node.orelse], prefix)

    return walk(tree.body, "")


def _is_empty(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether a function has only a docstring, ``...``, or an error that a subclass prevents."""
    return all(
        (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
        or (isinstance(part, ast.Raise) and "NotImplementedError" in ast.dump(part))
        for part in node.body
    )


def raising_code(tree: ast.Module, path: str) -> dict[Function, types.CodeType]:
    """Return the code of each function of a module, changed to raise an error."""
    found = set(functions(tree))
    lines = {function.line for function in found}
    compiled = sitecustomize.compile_raising(tree, path, lines.__contains__)
    codes: dict[Function, types.CodeType] = {}

    def walk(code: types.CodeType) -> None:
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                key = Function(constant.co_qualname, constant.co_firstlineno)
                if key in found:
                    codes[key] = constant
                elif "<locals>" not in constant.co_qualname:
                    walk(constant)

    walk(compiled)
    return codes


class Raising:
    """The pytest plugin that runs the collected tests once for each function of a module.

    Attributes:
        unnoticed: The functions whose error no test has noticed.
        passes: Whether the tests pass without a change.
        is_child: Whether this process runs the tests for one function.
    """

    def __init__(self, module: Path) -> None:
        self.path = str(ROOT / module)
        self.codes = raising_code(ast.parse((ROOT / module).read_text(encoding="utf-8")), self.path)
        self.unnoticed: list[Function] = []
        self.passes = False
        self.is_child = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run the tests in a child for each function. In the child, return ``None`` to let pytest run them."""
        gc.unfreeze()
        loaded = [thing for thing in gc.get_objects() if isinstance(thing, types.FunctionType)]
        # Tests that fail anyway would seem to notice every error, so they first run without a change.
        for function, code in (None, None), *self.codes.items():
            changed = [thing for thing in loaded if function is not None and _is(thing.__code__, function, self.path)]
            child = os.fork()
            if child == 0:
                self._become_child(session)
                for thing in changed:
                    thing.__code__ = cast(types.CodeType, code)
                return None
            has_passed = _succeeds(child)
            if function is not None and has_passed:
                self.unnoticed.append(function)
            elif function is None and not has_passed:
                break
            self.passes = True
        return True

    def _become_child(self, session: pytest.Session) -> None:
        self.is_child = True
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.setsid()
        session.config.option.maxfail = 1


def _passes_from_start(module: Path, line: int) -> bool:
    """Return whether all tests pass if the function at a line raises from the beginning, and in programs they start."""
    name = ".".join(module.with_suffix("").parts)
    changed = {sitecustomize.VARIABLE: f"{name} {ROOT / module} {line}"}
    path = {"PYTHONPATH": os.pathsep.join([str(Path(sitecustomize.__file__).parent), str(ROOT)])}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *OPTIONS, str(test_file(module))],
            cwd=ROOT,
            env=os.environ | changed | path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=SECONDS_PER_FUNCTION,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _is(code: types.CodeType, function: Function, path: str) -> bool:
    return (code.co_qualname, code.co_firstlineno, code.co_filename) == (function.name, function.line, path)


def _succeeds(child: int) -> bool:
    """Wait for a child, and return whether all its tests have passed."""
    deadline = time.monotonic() + SECONDS_PER_FUNCTION
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def check(module: Path) -> list[str]:
    """Run the test file of one module in this process, and return the functions whose error no test notices.

    If no error is noticed, the last item says so.
    """
    tests = test_file(module)
    plugin = Raising(module)
    if not plugin.codes:
        return []
    if not (ROOT / tests).exists():
        return [f"{FAILED}{tests} does not exist"]
    status = pytest.main([*OPTIONS, str(tests)], plugins=[plugin])
    if plugin.is_child:
        os._exit(status)
    if not plugin.passes or (plugin.unnoticed and not _passes_from_start(module, 0)):
        return [f"{FAILED}the tests fail without a change"]
    unnoticed = [function.name for function in plugin.unnoticed if _passes_from_start(module, function.line)]
    if len(unnoticed) == len(plugin.codes):
        unnoticed.append(f"{FAILED}{tests} notices no error")
    return unnoticed


def main(arguments: list[str]) -> int:
    """Check the modules, each in a process of its own."""
    if arguments[:1] == ["--in-process"]:
        unnoticed = check(Path(arguments[1]))
        Path(arguments[2]).write_text("\n".join(unnoticed), encoding="utf-8")
        os._exit(0)  # the tests of a module can leave threads behind
    has_failed = False
    for module in map(Path, arguments) if arguments else modules():
        report = ROOT / "build" / "raising" / f"{module.as_posix().replace('/', '-')}.txt"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.unlink(missing_ok=True)
        subprocess.run(
            [sys.executable, "-m", "tools.raising", "--in-process", str(module), str(report)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        found = report.read_text(encoding="utf-8") if report.exists() else f"{FAILED}the tests cannot be run"
        has_failed = has_failed or FAILED in found
        print(*(f"{module}: {line}" for line in found.splitlines()), sep="\n", end="\n" * bool(found), flush=True)
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
