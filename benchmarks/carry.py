"""Measure the cost of carrying a token into threads, and the memory that an open lease uses.

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
from otel_token_relay.boundary import Boundary

SETTINGS = Settings(destinations=("https://profile-service",))
TOKEN = "t" * 900
SUBMIT_TARGET = 1.1

Row = tuple[str, float, float | None]


def _submit_seconds(count: int) -> float:
    """Return the time in seconds that submitting calls takes. The pool's threads are busy, so only the submission is
    timed.
    """
    with ThreadPoolExecutor(2) as pool:
        release = threading.Event()
        for _ in range(4):
            pool.submit(release.wait)
        work = int
        started = time.perf_counter()
        for _ in range(count):
            pool.submit(work)
        seconds = time.perf_counter() - started
        release.set()
    return seconds


def _start_seconds(count: int) -> float:
    """Return the time in seconds that starting and joining threads takes if the threads do nothing."""
    started = time.perf_counter()
    for _ in range(count):
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
    return time.perf_counter() - started


def _ratio(measure: Callable[[int], float], count: int, rounds: int) -> float:
    """Return the time with the package divided by that of bare instrumentation, as the median of alternating rounds."""

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
        # Alternate the order, so that each timing comes first in half of the rounds.
        if number % 2:
            ours_seconds, bare_seconds = ours(), bare()
        else:
            bare_seconds, ours_seconds = bare(), ours()
        gc.enable()
        ratios.append(ours_seconds / bare_seconds)
    return median(ratios)


def _carry_ratio(count: int, rounds: int) -> float:
    """Return the time of a carried call divided by that of a call that is wrapped as instrumentation wraps it."""

    def seconds(call: Callable[[], object]) -> float:
        started = time.perf_counter()
        for _ in range(count):
            call()
        return time.perf_counter() - started

    def work() -> None:
        """Do nothing in a function that is written in Python."""

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
    """Return the number of bytes that an open boundary with a 900-character token uses."""
    headers = [f"Bearer {number:0900d}" for number in range(count)]
    Boundary.of(lambda _: [headers[0]], SETTINGS)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        # Each lambda keeps only the header, which the server keeps in any case.
        kept = [Boundary.of(lambda _, value=value: [value], SETTINGS) for value in headers]
        after, _ = tracemalloc.get_traced_memory()
        return (after - before) / len(kept)
    finally:
        tracemalloc.stop()


def figures(quick: bool) -> list[Row]:
    """Measure everything.

    Args:
        quick: Make only a few calls of each operation to test the program; the figures are meaningless.

    Returns:
        The name, figure, and target of each measurement; the target is ``None`` for a figure without a target.
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
        ("executor.submit, relative to bare threading instrumentation", submit, SUBMIT_TARGET),
        ("Thread.start and join, relative to bare threading instrumentation", start, SUBMIT_TARGET),
        ("carry(function)(), relative to attach and detach", _carry_ratio(count, rounds), None),
        ("bytes for each open lease with a 900-character token", _lease_bytes(max(count, 100)), None),
    ]


if __name__ == "__main__":
    for name, figure, target in figures("--quick" in sys.argv):
        print(f"{figure:10.2f}  {'' if target is None else f'(target {target})':14} {name}")
