"""Let one function of a module raise in every process whose module search path contains this file's folder.

Python imports ``sitecustomize`` when a process starts. ``tools/raising.py`` adds this folder to ``PYTHONPATH``, so that
the function raises from the beginning and in programs that the tests start.
"""

from __future__ import annotations

import ast
import os
import sys
import types
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location

# The module's name, its path, and the line at which the function starts. The name of this variable must not resemble
# the package's settings, because the package would load at startup.
VARIABLE = "RAISING_FUNCTION"

Definition = ast.FunctionDef | ast.AsyncFunctionDef


def first_line(node: Definition) -> int:
    """Return the line of ``def`` or of the first decorator."""
    return min(part.lineno for part in (node, *node.decorator_list))


def compile_raising(tree: ast.Module, path: str, is_changed: Callable[[int], bool]) -> types.CodeType:
    """Return the code of a module in which some functions raise an error as their first step.

    The rest of the body remains so that a generator function remains one and a closure keeps its variables.

    Args:
        tree: The module, which is changed.
        path: The module's path.
        is_changed: A function that returns whether the function that starts at a line raises an error.
    """
    for node in ast.walk(tree):
        if isinstance(node, Definition) and is_changed(first_line(node)):
            position = 1 if ast.get_docstring(node) is not None else 0
            node.body.insert(position, ast.parse("raise Exception('raised on purpose')").body[0])
    code: types.CodeType = compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)
    return code


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, line: int) -> None:
        super().__init__(name, path)
        self.line = line

    def get_code(self, fullname: str) -> types.CodeType:
        return compile_raising(ast.parse(self.get_data(self.path)), self.path, self.line.__eq__)


class _Finder(MetaPathFinder):
    def __init__(self, name: str, path: str, line: int) -> None:
        self.name, self.path, self.line = name, path, line

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        return spec_from_file_location(fullname, self.path, loader=_Loader(fullname, self.path, self.line))


if __name__ == "sitecustomize" and VARIABLE in os.environ:
    _name, _path, _line = os.environ[VARIABLE].split(" ")
    sys.meta_path.insert(0, _Finder(_name, _path, int(_line)))
