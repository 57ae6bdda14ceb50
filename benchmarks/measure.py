"""Time several things side by side, so that a busy machine slows all of them alike.

Nothing here knows what is timed. A round runs each thing once, in an order that turns, for some
milliseconds. What is compared is compared within a round, and the median of the rounds counts:
a pause of the machine spoils one round and not the figure.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import timeit
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from itertools import repeat
from statistics import median
from time import perf_counter
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.context import Context

# Runs something that often and gives the seconds it took.
Timing = Callable[[int], float]
# One round: what each thing took, in seconds for one call.
Round = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: How often each thing is timed.
        seconds: How long the slowest timing of a round lasts, about. Less than a time slice of the
            machine: most rounds are then not interrupted at all.
        loops: Rounds over loopback.
        requests: Requests to each pair of servers in one of them.
    """

    rounds: int
    seconds: float
    loops: int
    requests: int


FULL = Effort(rounds=1501, seconds=0.0002, loops=15, requests=40)
QUICK = Effort(rounds=3, seconds=0.00005, loops=2, requests=2)


def statement(code: str, names: Mapping[str, Any], context: Context | None = None) -> Timing:
    """Time a statement as `timeit` does: in a loop of its own, without a call around it.

    Args:
        code: What to time.
        names: The names that stand in it.
        context: What is OpenTelemetry's current context meanwhile.
    """
    return _within(timeit.Timer(code, globals=dict(names)).timeit, context)


def with_each(build: Callable[[], Any], call: Callable[[Any], Any], context: Context | None = None) -> Timing:
    """Time a call that gets another argument each time; they are made before the clock starts."""

    def loop(count: int) -> float:
        arguments = [build() for _ in range(count)]
        start = perf_counter()
        for argument in arguments:
            call(argument)
        return perf_counter() - start

    return _within(loop, context)


def awaited(
    runner: asyncio.Runner, call: Callable[..., Awaitable[Any]], *arguments: Any, context: Context | None = None
) -> Timing:
    """Time an awaited call within one running loop, without the start of a task for each."""

    async def loop(count: int) -> float:
        attached = otel_context.attach(Context() if context is None else context)
        try:
            start = perf_counter()
            for _ in repeat(None, count):
                await call(*arguments)
            return perf_counter() - start
        finally:
            otel_context.detach(attached)

    return lambda count: runner.run(loop(count))


def _within(timing: Timing, context: Context | None) -> Timing:
    own = contextvars.copy_context()
    own.run(otel_context.attach, Context() if context is None else context)
    return lambda count: own.run(timing, count)


def side_by_side(timings: Mapping[str, Timing], effort: Effort) -> list[Round]:
    """Time each thing once in each round, and give every round."""
    count = min(_calibrate(timing, effort.seconds) for timing in timings.values())
    names = list(timings)
    rounds = []
    gc_was_on = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection costs what the whole process holds, and hits one of the two by chance
    try:
        for number in range(effort.rounds):
            turn = number % len(names)
            took = {name: timings[name](count) / count for name in names[turn:] + names[:turn]}
            rounds.append(took)
            if number % 100 == 0:
                gc.collect(0)
    finally:
        if gc_was_on:
            gc.enable()
    return rounds


def _calibrate(timing: Timing, seconds: float) -> int:
    timing(3)  # whatever happens only once
    took = min(timing(8) for _ in range(5)) / 8
    return max(1, round(seconds / took))


def quartiles(values: list[float]) -> tuple[float, float]:
    """Give the bounds of the middle half, for showing how steady a figure was."""
    ordered = sorted(values)
    return ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]


def middle(rounds: list[Round], of: Callable[[Round], float]) -> float:
    """Give the median over all rounds of what *of* makes of one round."""
    return median(of(one) for one in rounds)
