"""Run third-party test suites with the relay off and on, and print the tests whose outcomes differ.

    python -m tools.suites [--bound] [SUITE ...]

Each suite is installed from the project's source distribution into its own environment in ``.suites``. The
``suites.toml`` file lists the suites and the expected differences with their reasons. The exit status is 1 if any
unexpected difference is found.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tomllib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".suites"
PINS = ROOT / "requirements" / "development.txt"
CONFIGURATION = Path(__file__).with_name("suites.toml")
PLUGIN = Path(__file__).with_name("suites_plugin.py")
SECONDS_FOR_A_TEST = 180
SECONDS_FOR_A_SUITE = 3600
# Repetitions exclude tests that compare durations and fail at random on a busy machine.
REPETITIONS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A project's test suite.

    Attributes:
        name: The suite's name on the command line and the distribution's name on PyPI.
        requires: The environment's requirements in addition to the distribution itself. A version in this list
            overrides the pin.
        extras: The distribution's extras to install.
        tests: The files and directories in the source distribution that contain the tests.
        options: Additional arguments for pytest.
        version_of: The distribution whose pinned version is used; by default, the suite's own. Without a pin, the
            newest version is used.
    """

    name: str
    requires: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    tests: tuple[str, ...] = ("tests",)
    options: tuple[str, ...] = ()
    version_of: str | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """Tests whose outcomes are expected to differ.

    Attributes:
        suite: The suite's name.
        tests: The tests' names, in which ``*`` matches any text.
        reason: One sentence.
        modes: The modes in which the outcome differs.
    """

    suite: str
    tests: tuple[str, ...]
    reason: str
    modes: tuple[str, ...] = ("listed", "bound")

    def matches(self, suite: str, mode: str, test: str) -> bool:
        """Return whether this entry applies to the test."""
        pattern = "|".join(".*".join(map(re.escape, one.split("*"))) for one in self.tests)
        return suite == self.suite and mode in self.modes and re.fullmatch(pattern, test) is not None


class Outcome(NamedTuple):
    """A test's outcome and the first line of its error."""

    outcome: str
    message: str


class Difference(NamedTuple):
    """A test with different outcomes. If a test exists in only one mode, its outcome in the other mode is
    ``absent``.
    """

    test: str
    off: str
    on: str
    message: str

    def __str__(self) -> str:
        return f"{self.test}: {self.off} → {self.on}" + f" ({self.message})" * bool(self.message)


def read_configuration(text: str) -> tuple[dict[str, Suite], list[Expected]]:
    """Return the suites by name, and the expected differences.

    Raises:
        ValueError: A key is unknown or missing, or an expected difference refers to an unknown suite.
    """
    tables = tomllib.loads(text)
    try:
        suites = [Suite(**table) for table in map(_with_tuples, tables.pop("suite", []))]
        expected = [Expected(**table) for table in map(_with_tuples, tables.pop("expected", []))]
    except TypeError as error:
        raise ValueError(f"suites.toml: {error}") from None
    by_name = {suite.name: suite for suite in suites}
    unknown = sorted({*tables, *(one.suite for one in expected if one.suite not in by_name)})
    if unknown:
        raise ValueError(f"suites.toml: unknown names: {', '.join(unknown)}")
    return by_name, expected


def _with_tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def read_outcomes(lines: Iterable[str]) -> dict[str, Outcome]:
    """Return each test's worst outcome, because subtests and a teardown have their own reports."""
    worst_last = ("absent", "skipped", "passed", "xfailed", "xpassed", "error", "failed")
    found: dict[str, Outcome] = {}
    for line in lines:
        test, outcome, message = json.loads(line)
        # Some tests have parameters whose names contain a memory address.
        test = re.sub(r"\b0x[0-9a-f]{6,}\b", "0x…", test)
        known = found.get(test)
        if known is None or worst_last.index(outcome) > worst_last.index(known.outcome):
            found[test] = Outcome(outcome, message)
    return found


def compare(off: Mapping[str, Outcome], on: Mapping[str, Outcome]) -> list[Difference]:
    """Return the tests whose outcomes differ, sorted by name. Outcomes that differ only in their messages are equal."""
    absent = Outcome("absent", "")
    pairs = ((test, off.get(test, absent), on.get(test, absent)) for test in sorted({*off, *on}))
    return [
        Difference(test, before.outcome, after.outcome, after.message or before.message)
        for test, before, after in pairs
        if before.outcome != after.outcome
    ]


def reason_for(expected: Iterable[Expected], suite: str, mode: str, difference: Difference) -> Expected | None:
    """Return the entry that explains this difference, or ``None`` if the difference is unexpected."""
    return next((one for one in expected if one.matches(suite, mode, difference.test)), None)


def read_pins(text: str) -> dict[str, str]:
    """Return each distribution's version in a requirements file."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, re.MULTILINE))


class CannotRun(Exception):
    """An error for a suite that cannot be downloaded, installed, or run."""


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotRun(f"{' '.join(map(str, command[:4]))} … failed: {done.stderr.strip()[-1500:]}")


def _uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise CannotRun("uv is not installed: run make")
    return found


def build_wheel() -> Path:
    """Build this checkout's wheel and return its path.

    The environments do not use the checkout itself, because imports would find its ``tests`` and ``docs`` directories.
    """
    target = CACHE / "wheel"
    shutil.rmtree(target, ignore_errors=True)
    _run([_uv(), "build", "--quiet", "--wheel", "--out-dir", target])
    return next(target.glob("*.whl"))


def fetch_source(suite: Suite, version: str | None, home: Path) -> Path:
    """Download and unpack the source distribution, unless it already exists. Return its directory."""
    target = home / "source"
    wanted = f"{suite.name}=={version}" if version else suite.name
    ready = home / f"{wanted}.unpacked"
    if not ready.exists():
        shutil.rmtree(target, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", suite.name]
        _run([*command, "--dest", home, wanted])
        archive = max(home.glob("*.tar.gz"), key=lambda path: path.stat().st_mtime)
        with tarfile.open(archive) as opened:
            opened.extractall(target, filter="data")
        ready.touch()
    (source,) = (path for path in target.iterdir() if path.is_dir())
    _limit_configuration(source)
    return source


def _limit_configuration(source: Path) -> None:
    """Keep pytest from using this project's configuration, which it would find in a parent directory."""
    tables = {"pytest.ini": "", "pyproject.toml": "[tool.pytest", "tox.ini": "[pytest]", "setup.cfg": "[tool:pytest]"}
    files = ((source / name, table) for name, table in tables.items())
    if not any(path.exists() and table in path.read_text(encoding="utf-8") for path, table in files):
        (source / "pytest.ini").touch()


def constraints(pins: Mapping[str, str], requirements: Iterable[str]) -> list[str]:
    """Return the pins, except those of distributions whose version the requirements specify."""
    versioned = {match[1] for one in requirements if (match := re.match(r"([A-Za-z0-9._-]+)(?:\[.*\])?[<>=!~]", one))}
    return [f"{name}=={version}" for name, version in pins.items() if name not in versioned]


def make_environment(suite: Suite, source: Path, home: Path, pins: Mapping[str, str], wheel: Path) -> Path:
    """Create the environment, unless it already exists, and install the current wheel. Return its Python."""
    python = home / "environment" / "bin" / "python"
    version = re.fullmatch(r".+-(\d[^-]*)", source.name)
    if version is None:
        raise CannotRun(f"expected a version in the directory's name: {source.name}")
    extras = f"[{','.join(suite.extras)}]" if suite.extras else ""
    requirements = (f"{suite.name}{extras}=={version[1]}", "pytest", "pytest-timeout", *suite.requires)
    limits = constraints(pins, requirements)
    wanted = "\n".join((*requirements, *limits))
    ready = home / "installed.txt"
    if not (python.exists() and ready.exists() and ready.read_text(encoding="utf-8") == wanted):
        _run([_uv(), "venv", "--quiet", "--clear", "--python", sys.executable, python.parent.parent])
        limits_file = home / "constraints.txt"
        limits_file.write_text("\n".join(limits), encoding="utf-8")
        install: list[str | Path] = [_uv(), "pip", "install", "--quiet", "--python", python]
        _run([*install, "--constraint", limits_file, *requirements, wheel])
        ready.write_text(wanted, encoding="utf-8")
    reinstall: list[str | Path] = [_uv(), "pip", "install", "--quiet", "--python", python, "--no-deps", "--reinstall"]
    _run([*reinstall, wheel])
    return python


def run_tests(
    suite: Suite, mode: str, source: Path, python: Path, home: Path, only: Sequence[str] = ()
) -> dict[str, Outcome]:
    """Run the tests in one mode and return their outcomes.

    Args:
        suite: The suite.
        mode: ``off``, ``listed`` or ``bound``.
        source: The unpacked source distribution.
        python: The environment's Python.
        home: The directory for the outcomes and the log.
        only: The tests to run; by default, all tests.

    Raises:
        CannotRun: No test passed. The log of each run is next to the environment.
    """
    name = f"{mode}-again" if only else mode
    outcomes = home / f"{name}.jsonl"
    outcomes.unlink(missing_ok=True)
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "PYTEST_"))}
    environ |= {
        "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(PLUGIN.parent),
        "SUITES_MODE": mode,
        "SUITES_OUTCOMES": str(outcomes),
    }
    command: list[str | Path] = [
        python,
        "-m",
        "pytest",
        "-p",
        PLUGIN.stem,
        "-p",
        "no:cacheprovider",
        "-q",
        "--tb=short",
    ]
    command += [f"--rootdir={source}", f"--timeout={SECONDS_FOR_A_TEST}", *suite.options, *(only or suite.tests)]
    with (home / f"{name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, cwd=source, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            process.wait(SECONDS_FOR_A_SUITE)
        except subprocess.TimeoutExpired:
            print(f"  {mode:7} stopped after {SECONDS_FOR_A_SUITE} seconds; the remaining tests are absent")
        finally:
            _end(process)
    found = read_outcomes(outcomes.read_text(encoding="utf-8").splitlines()) if outcomes.exists() else {}
    if not any(one.outcome == "passed" for one in found.values()) and not only:
        raise CannotRun(f"no test passed; see {(home / f'{name}.log').relative_to(ROOT)}")
    return found


def differs_again(
    differences: Sequence[Difference], suite: Suite, mode: str, source: Path, python: Path, home: Path
) -> set[str]:
    """Run these tests again in both modes, and return those whose outcomes differ each time.

    This excludes tests that fail at random. A test that does not exist in one of the modes is not run again.
    """
    again = {one.test for one in differences if "absent" not in one and "…" not in one.test}
    kept = {one.test for one in differences} - again
    for _ in range(REPETITIONS):
        if again:
            off, on = (run_tests(suite, one, source, python, home, sorted(again)) for one in ("off", mode))
            again = {one.test for one in compare(off, on)}
    return kept | again


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and all processes that its tests started and left running."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def counts_of(outcomes: Mapping[str, Outcome]) -> str:
    """Return the counts of all outcomes as text."""
    counts = Counter(one.outcome for one in outcomes.values())
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())


def describe(reasons: Mapping[Difference, Expected | None], repeated: Collection[str]) -> Iterator[str]:
    """Yield a line with the number of tests for each entry that applies, and a line for each unexpected difference."""
    for entry, count in Counter(entry for entry in reasons.values() if entry is not None).items():
        yield f"    expected    {count} of {', '.join(entry.tests)}: {entry.reason}"
    for one, reason in reasons.items():
        if reason is None:
            yield f"    {'UNEXPECTED' if one.test in repeated else 'unstable':10}  {one}"


def check(
    suite: Suite, modes: Sequence[str], expected: Sequence[Expected], pins: Mapping[str, str], wheel: Path
) -> bool:
    """Run one suite in all modes and print the differences. Return whether all differences are expected."""
    home = CACHE / suite.name
    home.mkdir(parents=True, exist_ok=True)
    source = fetch_source(suite, pins.get(suite.version_of or suite.name), home)
    print(source.name, flush=True)
    if not all((source / path).exists() for path in suite.tests):
        print("  the source distribution does not contain the tests, so they are not run")
        return True
    python = make_environment(suite, source, home, pins, wheel)
    off = run_tests(suite, "off", source, python, home)
    print(f"  off     {len(off)} tests: {counts_of(off)}", flush=True)
    is_clean = True
    used: set[Expected] = set()
    for mode in modes:
        reasons = {
            one: reason_for(expected, suite.name, mode, one)
            for one in compare(off, run_tests(suite, mode, source, python, home))
        }
        unexpected = [one for one, entry in reasons.items() if entry is None]
        repeated = differs_again(unexpected, suite, mode, source, python, home) if unexpected else set()
        print(f"  {mode:7} {len(reasons)} tests differ, {len(repeated)} of them unexpectedly", flush=True)
        print(*describe(reasons, repeated), sep="\n", end="\n" * bool(reasons), flush=True)
        used |= {entry for entry in reasons.values() if entry is not None}
        is_clean = is_clean and not repeated
    for entry in expected:
        if entry.suite == suite.name and entry not in used and set(entry.modes) & set(modes):
            print(f"  no test differs as expected in suites.toml: {', '.join(entry.tests)}")
    return is_clean


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suites. Return 1 if a difference is unexpected, and 2 if a suite cannot be run."""
    suites, expected = read_configuration(CONFIGURATION.read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(prog="python -m tools.suites", description="Run third-party test suites.")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"by default, all: {', '.join(suites)}")
    parser.add_argument("--bound", action="store_true", help="also run with a token bound to the whole process")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.suites) - set(suites)):
        parser.error(f"unknown suites: {', '.join(unknown)}; expected some of {', '.join(suites)}")

    pins = read_pins(PINS.read_text(encoding="utf-8"))
    CACHE.mkdir(exist_ok=True)
    modes = ("listed", "bound") if options.bound else ("listed",)
    try:
        wheel = build_wheel()
    except CannotRun as error:
        print(error)
        return 2
    status = 0
    for name in options.suites or suites:
        suite = suites[name]
        try:
            is_clean = check(suite, modes, expected, pins, wheel)
        except CannotRun as error:
            print(f"{name}: {error}")
            status = 2
        else:
            status = max(status, 0 if is_clean else 1)
    return status


if __name__ == "__main__":
    sys.exit(main())
