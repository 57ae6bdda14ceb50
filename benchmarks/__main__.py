"""Measure the cost of the relay and print a table: ``python -m benchmarks [--quick] [--json FILE]``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.boundaries import measure_boundaries
from benchmarks.destinations import measure_destinations
from benchmarks.extract import measure_extract
from benchmarks.figures import Figure, show, to_json
from benchmarks.hops import measure_hops, measure_recorded_hop
from benchmarks.loopback import measure_loopback
from benchmarks.measure import FULL, QUICK, Effort

MEASUREMENTS: dict[str, Callable[[Effort], Iterator[Figure]]] = {
    "extract": measure_extract,
    "hops": measure_hops,
    "recorded": measure_recorded_hop,
    "destinations": measure_destinations,
    "boundaries": measure_boundaries,
    "loopback": measure_loopback,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the selected measurements and print the figures. A missed target is not a failure."""
    options = _parser().parse_args(arguments)
    # Exit normally on SIGTERM, so that the servers of the loopback measurement also end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    effort = QUICK if options.quick else FULL
    # If the JSON goes to standard output, all other output goes to standard error.
    console = Console(stderr=options.json == "-", width=None if sys.stdout.isatty() else 140)
    figures: list[Figure] = []
    for name in options.only or MEASUREMENTS:
        console.print(f"[dim]measuring {name} …[/dim]")
        figures += MEASUREMENTS[name](effort)
    show(figures, console)
    missed = [one for one in figures if one.is_reached is False]
    console.print(f"{len(missed)} of {sum(one.target is not None for one in figures)} targets missed.")
    if options.json == "-":
        print(to_json(figures))
    elif options.json is not None:
        Path(options.json).write_text(to_json(figures) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the cost of the relay.")
    parser.add_argument("--json", metavar="FILE", help="also write the figures as JSON; - for standard output")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="make only a few calls of each operation to test the programs; the figures are meaningless",
    )
    parser.add_argument(
        "--only", action="append", choices=MEASUREMENTS, help="run only this measurement (can be repeated)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
