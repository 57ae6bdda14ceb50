"""Check code and pages for retired names and for unwanted words and constructions.

    python tools/prose.py [FILE ...]

If no files are given, the program checks every Python file and Markdown page that git tracks or does not ignore. In
Python files, it checks names, docstrings, comments, and strings; in pages, it checks everything except code. The
program prints one line per finding and exits with status 1 if there are any. ``tools/prose.toml`` lists the
patterns to find and their replacements.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
# The program and its tests quote what they look for.
UNCHECKED = (Path(__file__), ROOT / "tests" / "test_prose.py")
RULES: dict[str, Any] = tomllib.loads((ROOT / "tools" / "prose.toml").read_text(encoding="utf-8"))


class Finding(NamedTuple):
    """A word or construction that must be changed."""

    path: Path
    line: int
    found: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.found!r}: write {self.instead}"


class Rule(NamedTuple):
    """A pattern and its replacement."""

    pattern: re.Pattern[str]
    instead: str


def _rules(table: dict[str, str], flags: re.RegexFlag = re.IGNORECASE) -> list[Rule]:
    return [Rule(re.compile(pattern, flags), instead) for pattern, instead in table.items()]


WORDS = _rules(RULES["words"])
DOCSTRING_STARTS = _rules(RULES["docstring_starts"], re.RegexFlag(0))
NAMES: dict[str, str] = RULES["names"]
ALLOWED = re.compile("|".join(RULES["allowed"]), re.IGNORECASE)


def check_text(path: Path, line: int, text: str) -> Iterator[Finding]:
    """Find unwanted words and constructions in prose that starts at *line*."""
    # Replace allowed phrases with blanks of the same length, so that positions do not change.
    plain = ALLOWED.sub(lambda match: " " * len(match[0]), text)
    for rule in WORDS:
        for match in rule.pattern.finditer(plain):
            yield Finding(path, line + plain.count("\n", 0, match.start()), match[0], rule.instead)


def check_python(path: Path, source: str) -> Iterator[Finding]:
    """Find unwanted names, words, and constructions in a program's names, docstrings, comments, and strings."""
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings.add(first.lineno)
                for rule in DOCSTRING_STARTS:
                    if match := rule.pattern.match(str(first.value.value)):
                        yield Finding(path, first.lineno, match[0], rule.instead)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type == tokenize.NAME and token.string in NAMES:
            yield Finding(path, line, token.string, NAMES[token.string])
        elif token.type == tokenize.COMMENT:
            yield from check_text(path, line, token.string)
        elif token.type in (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)):
            text = token.string
            if re.match("[rR]?[fF]", text):  # before Python 3.12, an f-string is one token with its code
                text = re.sub(r"\{[^{}]*\}", "", text)
            is_data = " " not in text.strip()  # a single word is a name, a key, or a claim
            if line in docstrings or not is_data:
                yield from check_text(path, line, text)


def check_page(path: Path, source: str) -> Iterator[Finding]:
    """Find unwanted names, words, and constructions in a page, except for words in its code."""
    without_blocks = re.sub(r"^```.*?^```", lambda match: "\n" * match[0].count("\n"), source, flags=re.M | re.S)
    without_code = re.sub(r"`[^`\n]*`", lambda match: " " * len(match[0]), without_blocks)
    yield from check_text(path, 1, without_code)
    for name, instead in NAMES.items():
        for match in re.finditer(rf"`[^`\n]*\b{re.escape(name)}\b[^`\n]*`", without_blocks):
            yield Finding(path, 1 + without_blocks.count("\n", 0, match.start()), name, instead)


def check(path: Path) -> list[Finding]:
    """Check one file."""
    source = path.read_text(encoding="utf-8")
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return list(check_python(shown, source) if path.suffix == ".py" else check_page(shown, source))


def main(arguments: list[str]) -> int:
    """Check the files and print the findings."""
    if arguments:
        paths = [Path(argument).resolve() for argument in arguments]
    else:
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "*.py", "*.md"],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        paths = [ROOT / name for name in listed.stdout.split() if (ROOT / name).exists()]
    findings = [finding for path in paths if path not in UNCHECKED for finding in check(path)]
    print(*findings, sep="\n", end="\n" * bool(findings))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
