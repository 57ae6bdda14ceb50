"""Measure the cost of a whole request from one FastAPI service to a second one over httpx, on loopback.

Two pairs of servers, one with OpenTelemetry alone and one with the relay, run in separate processes and receive
requests in turn. A third pair repeats the measurement without the relay, and the difference between the two results
is the measurement error.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import entry_points
from pathlib import Path
from statistics import median

import httpx

from benchmarks.figures import Figure, figure
from benchmarks.measure import Effort, Round
from benchmarks.samples import jwt

TARGET = 1.03
START_SECONDS = 240.0
# All other instrumentation is disabled, because its import is slow and it does not affect a request.
USED = frozenset({"fastapi", "httpx", "logging", "threading", "token_relay"})

# ``opentelemetry-instrument python -m benchmarks.service`` has the same effect but starts Python twice.
_INSTRUMENTED = (
    "import sys; from opentelemetry.instrumentation.auto_instrumentation import initialize; initialize(); "
    "from benchmarks.service import main; main(*sys.argv[1:])"
)


def _environment(*destination: str, relays: bool) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    unused = {entry.name for entry in entry_points(group="opentelemetry_instrumentor")} - USED
    own |= {
        "OTEL_PROPAGATORS": "tracecontext,baggage",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        # Metrics are aggregated as in production but exported only once an hour, and the output is discarded.
        "OTEL_METRICS_EXPORTER": "console",
        "OTEL_METRIC_EXPORT_INTERVAL": "3600000",
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join(sorted(unused)),
        "PYTHONHASHSEED": "0",
    }
    if relays:
        own["OTEL_PROPAGATORS"] += ",token_relay"
        own["OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS"] = ",".join(destination)
    return own


def _start(stack: ExitStack, environment: dict[str, str], *upstream: str) -> str:
    """Start a service on a free port and return its URL. Closing the stack ends the service."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        descriptor = listener.fileno()
        command = [sys.executable, "-c", _INSTRUMENTED]
        process = subprocess.Popen(
            [*command, str(descriptor), *upstream],
            env=environment,
            pass_fds=[descriptor],
            stdout=subprocess.DEVNULL,
            cwd=Path(__file__).parent.parent,
        )
        stack.callback(_stop, process)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def measure_loopback(effort: Effort) -> Iterator[Figure]:
    """Yield the time of a request with the relay divided by the time of one without the relay."""
    headers = {"Authorization": f"Bearer {jwt()}"}
    with ExitStack() as stack:
        plain = _start(stack, _environment(relays=False)) + "/profile"
        relaying = _start(stack, _environment(relays=True))
        pairs = {
            "alone": _start(stack, _environment(relays=False), plain) + "/profile",
            "relayed": _start(stack, _environment(relaying, relays=True), f"{relaying}/profile") + "/profile",
            "alone again": _start(stack, _environment(relays=False), plain) + "/profile",
        }
        client = stack.enter_context(httpx.Client(headers=headers, timeout=START_SECONDS, trust_env=False))
        for url in pairs.values():
            for _ in range(3 * effort.requests):  # import, connect, and warm up
                client.get(url).raise_for_status()
        rounds = [_round(client, pairs, number, effort.requests) for number in range(effort.loops)]
    for name, key, target in (("with the relay", "relayed", TARGET), ("the same again", "alone again", None)):
        yield figure(
            rounds,
            lambda one, key=key: one[key],  # type: ignore[misc]
            lambda one: one["alone"],
            group="A request from FastAPI to FastAPI with httpx over loopback",
            name=name,
            yardstick="OpenTelemetry alone",
            target=target,
        )


def _round(client: httpx.Client, pairs: dict[str, str], number: int, requests: int) -> Round:
    """Send requests to the pairs in turn, and return the median request time for each pair."""
    took: dict[str, list[float]] = {name: [] for name in pairs}
    names = list(pairs)
    for request in range(requests):
        turn = (number + request) % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            client.get(pairs[name]).raise_for_status()
            took[name].append(time.perf_counter() - start)
    return {name: median(times) for name, times in took.items()}
