"""Time several operations in alternating rounds, so that a busy machine affects all of them equally.

Each round times every operation once, in rotating order, for a fraction of a millisecond. Operations are compared
within a round, and the result is the median of all rounds. A pause of the machine affects one round but not the
result.
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

# Run an operation the given number of times and return the time in seconds.
Timing = Callable[[int], float]
# One round: the time in seconds for one call of each operation.
Round = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Effort:
    """The duration of a measurement.

    Attributes:
        rounds: The number of rounds.
        seconds: The approximate duration of the slowest timing in a round. It is shorter than the machine's time
            slice, so most rounds are not interrupted.
        loops: The number of loopback rounds.
        requests: The number of requests to each pair of servers in a loopback round.
    """

    rounds: int
    seconds: float
    loops: int
    requests: int


FULL = Effort(rounds=1501, seconds=0.0002, loops=15, requests=40)
QUICK = Effort(rounds=3, seconds=0.00005, loops=2, requests=2)


def statement(code: str, names: Mapping[str, Any], context: Context | None = None) -> Timing:
    """Return the timing of a statement that runs in a loop without a surrounding function call, as in `timeit`.

    Args:
        code: The statement.
        names: The names that the statement uses.
        context: The OpenTelemetry context that is current during the timing.
    """
    return _within(timeit.Timer(code, globals=dict(names)).timeit, context)


def with_each(build: Callable[[], Any], call: Callable[[Any], Any], context: Context | None = None) -> Timing:
    """Return the timing of a call whose argument is new each time and is built before the timing starts."""

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
    """Return the timing of an awaited call in a single running loop, without a new task for each call."""

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
    """Time each operation once per round, and return the rounds."""
    count = min(_calibrate(timing, effort.seconds) for timing in timings.values())
    names = list(timings)
    rounds = []
    gc_was_on = gc.isenabled()
    gc.collect()
    gc.disable()  # garbage collection depends on the whole process and would affect a random operation
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
    timing(3)  # fill caches and do other one-time work
    took = min(timing(8) for _ in range(5)) / 8
    return max(1, round(seconds / took))


def quartiles(values: list[float]) -> tuple[float, float]:
    """Return the first and third quartiles, which indicate the stability of a figure."""
    ordered = sorted(values)
    return ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]


def middle(rounds: list[Round], of: Callable[[Round], float]) -> float:
    """Return the median of *of* over all rounds."""
    return median(of(one) for one in rounds)
