"""Compute the figures' ratios and targets, and present them."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Round, middle, quartiles


@dataclass(frozen=True, slots=True)
class Figure:
    """One line in the table.

    Attributes:
        group: The heading above the line in the table.
        name: The measured operation.
        yardstick: The operation whose cost is the divisor.
        ratio: The median of all rounds' ratios.
        low: The first quartile of the rounds' ratios.
        high: The third quartile of the rounds' ratios.
        target: The upper limit for the ratio; ``None`` for a figure without a target.
        microseconds: The median cost on this machine in microseconds, before division.
    """

    group: str
    name: str
    yardstick: str
    ratio: float
    low: float
    high: float
    target: float | None
    microseconds: float

    @property
    def is_reached(self) -> bool | None:
        """Whether the ratio reaches the target; ``None`` for a figure without a target."""
        return None if self.target is None else self.ratio <= self.target


def figure(
    rounds: list[Round],
    cost: Callable[[Round], float],
    by: Callable[[Round], float],
    *,
    group: str,
    name: str,
    yardstick: str,
    target: float | None = None,
) -> Figure:
    """Return a figure built from each round's *cost* divided by the same round's *by*."""
    ratios = [cost(one) / by(one) for one in rounds]
    low, high = quartiles(ratios)
    return Figure(
        group, name, yardstick, sorted(ratios)[len(ratios) // 2], low, high, target, middle(rounds, cost) * 1e6
    )


def show(figures: Sequence[Figure], console: Console) -> None:
    """Print the table."""
    table = Table(title="Cost of the relay, as ratios within one run", title_justify="left")
    for heading, justify in (
        ("measured", "left"),
        ("divided by", "left"),
        ("ratio", "right"),
        ("middle half", "right"),
        ("target", "right"),
        ("", "left"),
        ("cost, µs", "right"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    group = None
    for one in figures:
        if one.group != group:
            table.add_section()
            table.add_row(f"[bold]{one.group}[/bold]")
            group = one.group
        target = "" if one.target is None else f"≤ {one.target:g}"
        mark = {None: "", True: "[green]reached[/green]", False: "[red]missed[/red]"}[one.is_reached]
        spread = f"{one.low:.3f}…{one.high:.3f}"
        table.add_row(
            "  " + one.name, one.yardstick, f"{one.ratio:.3f}", spread, target, mark, f"{one.microseconds:.2f}"
        )
    console.print(table)


def to_json(figures: Sequence[Figure]) -> str:
    """Return the figures and the versions of the measured packages as one JSON object."""
    packages = ("otel-token-relay", "opentelemetry-api", "httpx", "httpx2", "urllib3", "requests", "aiohttp", "fastapi")
    report = {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "figures": [_as_dict(one) for one in figures],
    }
    return json.dumps(report, indent=2, allow_nan=False)


def _as_dict(one: Figure) -> dict[str, Any]:
    return {
        "group": one.group,
        "name": one.name,
        "yardstick": one.yardstick,
        "ratio": one.ratio,
        "quartiles": [one.low, one.high],
        "target": one.target,
        "reached": one.is_reached,
        "microseconds": one.microseconds,
    }
