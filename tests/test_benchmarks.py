"""The benchmarks run and produce figures. The tests do not depend on measured values."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context as otel_context

from benchmarks import instructions
from benchmarks.figures import Figure
from benchmarks.hops import clients, relay
from benchmarks.in_process import STACKS, WARM_UP
from benchmarks.instructions import TARGETS, Program, environment, lines, programs
from benchmarks.measure import Effort, side_by_side, statement
from benchmarks.samples import context_of_request, jwt, scope
from otel_token_relay.relay import Hop
from otel_token_relay.token import peek

ROOT = Path(__file__).parent.parent
QUICK_SECONDS = 500


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    # The benchmarks run in a separate process because other tests install hooks in this process.
    command = [sys.executable, "-m", "benchmarks", "--quick", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=QUICK_SECONDS, check=True)


def assert_figures(report: dict[str, object], count: int) -> None:
    figures = report["figures"]
    assert isinstance(figures, list)
    assert len(figures) == count
    for one in figures:
        numbers = [one["ratio"], one["microseconds"], *one["quartiles"]]
        assert all(math.isfinite(number) for number in numbers), one["name"]
        assert (one["target"] is None) == (one["reached"] is None), one["name"]


def test_every_measurement_writes_finite_figures_as_json() -> None:
    """Each measurement runs with --quick, and standard output contains only the JSON of all measurements."""
    counts = {"extract": 2, "hops": 12, "recorded": 3, "destinations": 3, "boundaries": 4}
    only = [word for name in counts for word in ("--only", name)]
    report = json.loads(run(*only, "--json", "-").stdout)

    assert_figures(report, sum(counts.values()))
    groups = itertools.groupby(report["figures"], lambda one: one["group"])  # one value for each measurement, in order
    assert [len([*figures]) for _, figures in groups] == [*counts.values()]


@pytest.mark.skipif(not os.environ.get("FULL_MATRIX"), reason="this takes long even with --quick; set FULL_MATRIX=1")
def test_a_request_over_loopback_is_measured_with_real_servers(tmp_path: Path) -> None:
    """Real servers are measured over loopback, the figures are written to a file, and the table is printed."""
    done = run("--only", "loopback", "--json", str(tmp_path / "figures.json"))

    assert "over loopback" in done.stdout
    assert_figures(json.loads((tmp_path / "figures.json").read_text(encoding="utf-8")), 2)


# The redaction program takes long even with --quick. This program runs only if FULL_MATRIX is set.
SEPARATE = [
    ("carry", 4),
    ("verification", 8),
    ("exchange", 3),
    *([("redaction", 6)] if os.environ.get("FULL_MATRIX") else []),
]


@pytest.mark.parametrize(("name", "count"), SEPARATE)
def test_the_separate_programs_print_one_figure_per_line(name: str, count: int) -> None:
    """Each separate program runs with --quick and without an exception in its threads."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=QUICK_SECONDS, check=True)

    assert len(re.findall(r"[+-]?\d+\.\d+%?", re.sub(r"target\D*[\d.]+", "", done.stdout))) == count
    assert "Traceback" not in done.stderr


def in_process(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.in_process", *arguments, "--report"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=QUICK_SECONDS, check=True
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


# Each program takes seconds to start. FULL_MATRIX runs all of them.
COUNTED = [
    pytest.param(stack, mode, anonymous, id=f"{stack}-{mode}-{'anonymous' if anonymous else 'token'}")
    for stack in ("fastapi", "flask")
    for mode in STACKS["fastapi"]
    for anonymous in (False, True)
    if os.environ.get("FULL_MATRIX") or (mode, anonymous) in (("redaction", False), ("otel", True))
]


@pytest.mark.parametrize(("stack", "mode", "anonymous"), COUNTED)
def test_counted_requests_relay_their_own_token(stack: str, mode: str, anonymous: bool) -> None:
    """The service's own request has a CLIENT span and the caller's token, except with OpenTelemetry alone."""
    report = in_process(stack, mode, "3", *["--anonymous"] * anonymous)

    relayed = mode != "otel" and not anonymous
    assert report["statuses"] == [200, 200, 200]
    assert report["without"] == (0 if relayed else 3)
    assert report["own"] == (3 if relayed or anonymous else 0)
    assert report["spans"]["CLIENT"] == report["spans"]["SERVER"] == 3 + WARM_UP
    assert report["redaction"] is {"relay": False, "redaction": True}.get(mode)


@pytest.mark.parametrize(
    ("mode", "own", "traces"), [("nothing", 0, 0), ("tracecontext", 0, 3), ("relay", 3, 0)], ids=STACKS["extract"]
)
def test_counted_extractions_return_what_the_request_contains(mode: str, own: int, traces: int) -> None:
    """Each propagator extracts its own part of the request."""
    report = in_process("extract", mode, "3")

    assert (report["own"], report["traces"]) == (own, traces)


def test_instructions_are_divided_by_those_of_the_same_kind_of_caller() -> None:
    """A count is divided by OpenTelemetry's count for the same kind of caller, after subtracting the base mode."""
    counts = {
        Program("fastapi", "otel", False): 2000.0,
        Program("fastapi", "relay", False): 2100.0,
        Program("fastapi", "otel", True): 1000.0,
        Program("fastapi", "redaction", True): 1040.0,
        Program("extract", "nothing", False): 500.0,
        Program("extract", "tracecontext", False): 540.0,
        Program("extract", "relay", False): 510.0,
    }
    found = {(line.program.stack, line.program.mode): line for line in lines(counts)}

    assert found["fastapi", "relay"].ratio == pytest.approx(1.05)
    assert found["fastapi", "relay"].target == 1.06
    assert found["fastapi", "redaction"].ratio == pytest.approx(1.04)
    assert found["fastapi", "redaction"].target == 1.04
    assert found["extract", "relay"].ratio == pytest.approx(0.25)
    assert found["extract", "relay"].target == 0.25
    assert ("extract", "nothing") not in found


def test_every_target_is_one_of_a_counted_program() -> None:
    """Every target has a program that counts it, so no target is missing from the table."""
    counted = {(one.stack, one.mode, one.anonymous) for one in programs(list(STACKS))}

    assert set(TARGETS) <= counted


def test_missing_valgrind_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If valgrind is missing, a one-line message specifies the Debian package."""
    monkeypatch.setenv("PATH", "")

    assert instructions.main([]) == 1
    assert capsys.readouterr().err == "valgrind is not installed; on Debian and Ubuntu: apt-get install valgrind\n"


def test_hops_with_and_without_a_token_are_timed() -> None:
    """Every client's wrapper adds the header only to the hop with a token."""
    given: dict[str, list[str | None]] = {}
    with asyncio.Runner() as runner:
        for client in clients(runner):
            for has_token in (True, False):
                watched = relay()
                watched.decide = partial(_note, given.setdefault(client.name, []), watched.decide)  # type: ignore[method-assign]
                client.timing(watched, context_of_request(token=has_token))(1)

    assert len(given) == 6
    for name, (with_token, without) in given.items():
        assert with_token is not None, name
        assert len(with_token) == len("Bearer ") + 900, name
        assert without is None, name


def _note(values: list[str | None], decide: Callable[..., Any], *arguments: object, **options: object) -> Any:
    decided = decide(*arguments, **options)
    values.append(decided.reveal() if isinstance(decided, Hop) else decided)
    return decided


def test_each_round_times_everything_the_same_number_of_times() -> None:
    """Each round runs every timing equally often, and the slowest operation determines the number of calls."""
    calls: dict[str, list[int]] = {"fast": [], "slow": []}

    def counted(name: str, seconds: float) -> object:
        def timing(count: int) -> float:
            calls[name].append(count)
            return count * seconds

        return timing

    timings = {"fast": counted("fast", 1e-6), "slow": counted("slow", 1e-4)}
    rounds = side_by_side(timings, Effort(rounds=5, seconds=1e-3, loops=1, requests=1))  # type: ignore[arg-type]

    assert [set(one) for one in rounds] == [{"fast", "slow"}] * 5
    assert calls["fast"][-5:] == calls["slow"][-5:] == [10] * 5
    assert rounds[0]["slow"] == pytest.approx(1e-4)


def test_a_statement_runs_in_the_context_it_is_given() -> None:
    """The timed code runs in the given context, and the caller's context is unchanged."""
    seen: list[object] = []
    given = otel_context.set_value("benchmark", 1, otel_context.Context())
    statement("seen.append(get_value('benchmark'))", {"seen": seen, "get_value": otel_context.get_value}, given)(2)

    assert seen == [1, 1]
    assert otel_context.get_value("benchmark") is None


def test_the_sample_token_is_a_valid_jwt_of_900_characters() -> None:
    """The sample token is a valid 900-character JWT with an expiry, in the eighth header."""
    token = jwt()
    expires_at, is_bound = peek(token)

    assert len(token) == 900
    assert expires_at is not None
    assert not is_bound
    assert len(scope(authorization=f"Bearer {token}")["headers"]) == 8


@pytest.mark.parametrize(
    ("ratio", "target", "reached"),
    [
        pytest.param(0.6, 0.6, True, id="at the target"),
        pytest.param(0.61, 0.6, False, id="above the target"),
        pytest.param(9.0, None, None, id="without a target"),
    ],
)
def test_a_figure_reaches_its_target_up_to_the_limit(ratio: float, target: float | None, reached: bool | None) -> None:
    """A figure reaches its target if its ratio is at most the target's upper limit."""
    one = Figure("group", "name", "yardstick", ratio, ratio, ratio, target, 1.0)

    assert one.is_reached is reached
