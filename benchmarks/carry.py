"""What it costs to carry a token into threads, and what an open lease weighs.

python -m benchmarks.carry
"""

from __future__ import annotations

import gc
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from opentelemetry import context as otel_context
from opentelemetry.instrumentation.threading import ThreadingInstrumentor

from otel_token_relay import Settings, carry, install, uninstall, use_token
from otel_token_relay.servers.boundary import Boundary

SETTINGS = Settings(destinations=("https://profile-service",))
TOKEN = "t" * 900
SUBMIT_TARGET = 1.1

Row = tuple[str, float, float | None]


def _submit_seconds(count: int) -> float:
    """Time submits to a pool whose threads are busy, so that they alone are timed."""
    with ThreadPoolExecutor(2) as pool:
        gate = threading.Event()
        for _ in range(4):
            pool.submit(gate.wait)
        work = int
        started = time.perf_counter()
        for _ in range(count):
            pool.submit(work)
        taken = time.perf_counter() - started
        gate.set()
    return taken


def _start_seconds(count: int) -> float:
    """Time threads that do nothing, from their start to their end."""
    started = time.perf_counter()
    for _ in range(count):
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
    return time.perf_counter() - started


def _ratio(measure: Callable[[int], float], count: int, rounds: int) -> float:
    """Give ours divided by the bare instrumentation's, measured in turns; the median of the rounds."""

    def bare() -> float:
        with use_token(TOKEN):
            return measure(count)

    def ours() -> float:
        install(SETTINGS)
        try:
            return bare()
        finally:
            uninstall()

    ratios = []
    for number in range(rounds):
        gc.collect()
        gc.disable()
        # In turns, so that neither is always the first.
        if number % 2:
            ours_seconds, bare_seconds = ours(), bare()
        else:
            bare_seconds, ours_seconds = bare(), ours()
        gc.enable()
        ratios.append(ours_seconds / bare_seconds)
    return median(ratios)


def _carry_ratio(count: int, rounds: int) -> float:
    """Give a carried call of a function divided by the instrumentation's own way of wrapping one."""

    def seconds(call: Callable[[], object]) -> float:
        started = time.perf_counter()
        for _ in range(count):
            call()
        return time.perf_counter() - started

    def work() -> None:
        """Do nothing, as a function of Python's."""

    def instrumented() -> None:
        attached = otel_context.attach(current)
        try:
            work()
        finally:
            otel_context.detach(attached)

    ratios = []
    with use_token(TOKEN):
        current = otel_context.get_current()
        carried = carry(work)
        for _ in range(rounds):
            ratios.append(seconds(carried) / seconds(instrumented))
    return median(ratios)


def _lease_bytes(count: int) -> float:
    """Give what one open boundary keeps, with its token of 900 characters."""
    headers = [f"Bearer {number:0900d}" for number in range(count)]
    Boundary(lambda _: [headers[0]], SETTINGS)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        # What each lambda keeps is the header, which the server has anyway.
        kept = [Boundary(lambda _, value=value: [value], SETTINGS) for value in headers]
        after, _ = tracemalloc.get_traced_memory()
        return (after - before) / len(kept)
    finally:
        tracemalloc.stop()


def figures(quick: bool) -> list[Row]:
    """Measure everything.

    Args:
        quick: A few calls of each: shows that it runs, measures nothing.

    Returns:
        Name, figure and target; a target of ``None`` is for information.
    """
    count, rounds = (20, 1) if quick else (2_000, 41)
    ThreadingInstrumentor().instrument()
    try:
        submit = _ratio(_submit_seconds, count, rounds)
        start = _ratio(_start_seconds, max(count // 10, 1), rounds)
    finally:
        ThreadingInstrumentor().uninstrument()
        if "start" in vars(threading.Timer):
            del threading.Timer.start
    return [
        ("executor.submit, against bare threading instrumentation", submit, SUBMIT_TARGET),
        ("Thread.start and join, against bare threading instrumentation", start, SUBMIT_TARGET),
        ("carry(function)(), against attach and detach", _carry_ratio(count, rounds), None),
        ("bytes for each open lease with a token of 900 characters", _lease_bytes(max(count, 100)), None),
    ]


if __name__ == "__main__":
    for name, figure, target in figures("--quick" in sys.argv):
        print(f"{figure:10.2f}  {'' if target is None else f'(target {target})':14} {name}")
