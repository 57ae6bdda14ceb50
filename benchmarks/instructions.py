"""Count the instructions of one request, with and without the relay: ``python -m benchmarks.instructions``.

An instruction count hardly depends on the machine's load, so it reveals differences that times do not.
Valgrind runs `benchmarks.in_process` twice for each mode, with 100 and with 300 requests. The difference, divided
by 200, is the cost of one request without startup, imports, and warm-up.

The counter is cachegrind without its cache simulation. Cachegrind counts the same instructions as callgrind in a
third of the time.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.in_process import STACKS

ROOT = Path(__file__).parent.parent
FEW, MANY = 100, 300
NAMES = {
    "otel": "OpenTelemetry alone",
    "hand": "middleware and hook written by hand",
    "relay": "relay",
    "redaction": "relay and redaction",
    "tracecontext": "TraceContext.extract",
}
TITLES = {
    "fastapi": "FastAPI, one call with httpx",
    "flask": "Flask, one call with requests",
    "extract": "extract inside a boundary",
}
# For each stack, the mode whose count is the divisor, and the mode whose count is subtracted first.
YARDSTICKS = {"fastapi": "otel", "flask": "otel", "extract": "tracecontext"}
BASES = {"extract": "nothing"}
# The upper limits, by stack, by mode, and by whether the caller is anonymous.
TARGETS = {
    ("fastapi", "relay", False): 1.06,
    ("fastapi", "redaction", False): 1.09,
    ("fastapi", "redaction", True): 1.04,
    ("flask", "redaction", False): 1.09,
    ("extract", "relay", False): 0.25,
}
_INSTRUCTIONS = re.compile(r"I\s+refs:\s+([\d,]+)")


class CannotCount(Exception):
    """An error for missing valgrind or for a failure of the measured program."""


@dataclass(frozen=True, slots=True)
class Program:
    """The measured program in one mode."""

    stack: str
    mode: str
    anonymous: bool

    def __str__(self) -> str:
        return f"{self.stack}, {self.mode}{', anonymous' if self.anonymous else ''}"

    def command(self, count: int) -> list[str]:
        """Return the command line that serves *count* requests."""
        flags = ["--anonymous"] if self.anonymous else []
        return [sys.executable, "-m", "benchmarks.in_process", self.stack, self.mode, str(count), *flags]


@dataclass(frozen=True, slots=True)
class Line:
    """One line in the table.

    Attributes:
        program: The counted program.
        instructions: The instructions of one request, without those of the base mode.
        ratio: The instructions divided by those of the yardstick with the same stack and the same kind of caller.
    """

    program: Program
    instructions: float
    ratio: float

    @property
    def target(self) -> float | None:
        """The upper limit for the ratio, or ``None``."""
        return TARGETS.get((self.program.stack, self.program.mode, self.program.anonymous))


def programs(stacks: Sequence[str]) -> list[Program]:
    """Return all programs to count for these stacks."""
    return [
        Program(stack, mode, anonymous)
        for stack in stacks
        for anonymous in ((False,) if stack == "extract" else (False, True))
        for mode in STACKS[stack]
    ]


def environment() -> dict[str, str]:
    """Return the measured program's environment: OpenTelemetry's defaults and fixed hashes."""
    return {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")} | {"PYTHONHASHSEED": "0"}


def instructions_of(program: Program, valgrind: str) -> float:
    """Return the number of instructions for one request.

    Raises:
        CannotCount: The measured program failed.
    """
    # The first run without valgrind compiles the modules and reveals a fault within a second.
    _run(program.command(1))
    few, many = (_count(program.command(count), valgrind) for count in (FEW, MANY))
    return (many - few) / (MANY - FEW)


def _count(command: Sequence[str], valgrind: str) -> int:
    tool = [valgrind, "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    printed = _run([*tool, *command])
    found = _INSTRUCTIONS.search(printed)
    if found is None:
        raise CannotCount(f"expected a line 'I refs' from valgrind, received: {printed[-500:]}")
    return int(found[1].replace(",", ""))


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotCount(f"{' '.join(command)} failed with status {done.returncode}: {done.stderr[-2000:]}")
    return done.stderr


def lines(counts: Mapping[Program, float]) -> Iterator[Line]:
    """Divide the counts by those of the yardstick. Yardsticks are first in their group and have the ratio 1."""
    for program in counts:
        base = BASES.get(program.stack)
        if program.mode == base:
            continue
        subtracted = counts[Program(program.stack, base, program.anonymous)] if base is not None else 0.0
        yardstick = counts[Program(program.stack, YARDSTICKS[program.stack], program.anonymous)] - subtracted
        own = counts[program] - subtracted
        yield Line(program, own, own / yardstick)


def table(rows: Sequence[Line]) -> Table:
    """Return the table."""
    made = Table(title="Instructions of one request", title_justify="left")
    made.add_column("measured")
    for heading in ("thousands", "added", "ratio", "target"):
        made.add_column(heading, justify="right")
    made.add_column("")
    group: tuple[str, bool] | None = None
    for row in rows:
        program = row.program
        if group != (program.stack, program.anonymous):
            group = program.stack, program.anonymous
            made.add_section()
            made.add_row(f"[bold]{TITLES[program.stack]}{', no token' if program.anonymous else ''}[/bold]")
        added = row.instructions - row.instructions / row.ratio
        mark = "" if row.target is None else "reached" if row.ratio <= row.target else "missed"
        made.add_row(
            "  " + NAMES[program.mode],
            f"{row.instructions / 1000:,.1f}",
            f"{added / 1000:+,.1f}",
            f"{row.ratio:.3f}",
            "" if row.target is None else f"≤ {row.target:g}",
            mark,
        )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Count the instructions and print the table. A missed target is not a failure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.instructions", description="Count the instructions of one request."
    )
    parser.add_argument("--only", action="append", choices=STACKS, help="count only this stack (can be repeated)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="the number of programs to run at the same time"
    )
    options = parser.parse_args(arguments)
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        print("valgrind is not installed; on Debian and Ubuntu: apt-get install valgrind", file=sys.stderr)
        return 1
    wanted = programs(options.only or list(STACKS))
    counter = valgrind
    counts: dict[Program, float] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            for program, count in zip(wanted, pool.map(lambda one: instructions_of(one, counter), wanted), strict=True):
                counts[program] = count
                print(f"{program}: {count / 1000:,.1f} thousand instructions", file=sys.stderr, flush=True)
        except CannotCount as error:
            pool.shutdown(cancel_futures=True)
            print(error, file=sys.stderr)
            return 1
    Console(width=None if sys.stdout.isatty() else 120).print(table(list(lines(counts))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
