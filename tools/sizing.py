"""Estimate the number of requests to a token endpoint, and compare the estimate with the real cache.

    python tools/sizing.py            write the chart and the table of docs/exchange-sizing.md
    python tools/sizing.py --check    exit 1 if one of them is out of date

`estimate` is the formula on that page. `simulate` lets random users send requests to processes. Each process has
its own `ExchangeCache` with a clock that the simulation sets. The results are the same in every run.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from otel_token_relay.exchange.cache import DEFAULT_SIZE, ExchangeCache, key_of
from otel_token_relay.exchange.responses import Issued

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "exchange-sizing.md"
CHART = DOCS / "exchange-sizing.svg"
START, END = "<!-- The table is written by tools/sizing.py. -->\n", "<!-- End of the table. -->\n"

MARGIN_SECONDS, MARGIN_SHARE = 30.0, 0.1


@dataclass(frozen=True, kw_only=True)
class Load:
    """A service and its users.

    Attributes:
        users: The number of users who are active at the same time.
        destinations: The number of destinations with ``;audience=…`` that each request calls.
        processes: The number of the service's processes.
        requests: The number of requests that each user sends per second.
        used: The number of seconds for which a client uses a token before it gets a new one.
        life: The issued tokens' lifetime, in seconds.
        spare: The remaining lifetime, in seconds, of a caller's token when its client replaces it.
        is_sticky: Whether all of a user's requests are sent to the same process.
        restart: The number of seconds in which all processes restart, one after another; ``None`` for no restart.
        cache: The maximum number of results that a process caches.
    """

    users: int = 1_000
    destinations: int = 2
    processes: int = 8
    requests: float = 0.1
    used: float = 840.0
    life: float = 900.0
    spare: float = 60.0
    is_sticky: bool = False
    restart: float | None = None
    cache: int = DEFAULT_SIZE

    @property
    def cached(self) -> float:
        """The number of seconds for which a process uses a result."""
        return self.life - min(MARGIN_SECONDS, self.life * MARGIN_SHARE)

    @property
    def homes(self) -> int:
        """The number of processes among which one user's requests are distributed."""
        return 1 if self.is_sticky else self.processes


def estimate(load: Load) -> float:
    """Return the expected number of exchanges per second, according to the page's formula."""
    rate = load.requests / load.homes
    # In the last seconds of a token's lifetime, its results are used only briefly.
    late = max(0.0, min(MARGIN_SECONDS, (load.used + load.spare) * MARGIN_SHARE) - load.spare)
    main = load.used - late
    for_one = _more_than(0, rate * late)
    # A process exchanges a token at its first request, and again at the first request after each result becomes too
    # old. Another exchange follows several results if enough requests arrive while no result is cached.
    for earlier in range(math.ceil(main / load.cached)):
        for_one += _more_than(earlier, rate * (main - earlier * load.cached))
    return load.users * load.destinations * load.homes * for_one / load.used + _restart(load)


def _more_than(number: int, expected: float) -> float:
    """Return the probability that more than *number* requests arrive if *expected* arrive on average."""
    return 1 - math.exp(-expected) * sum(expected**k / math.factorial(k) for k in range(number + 1))


def _restart(load: Load) -> float:
    """Return the maximum number of additional exchanges per second during a restart."""
    return 0.0 if load.restart is None else load.users * load.destinations * load.homes / load.restart


def simulate(load: Load, *, seconds: float | None = None, seed: int = 1) -> float:
    """Return the number of exchanges per second that the real cache causes.

    Args:
        load: The service and its users.
        seconds: The duration of the count after the caches have filled; ``None`` for twice a token's lifetime.
        seed: The seed of the random number generator.
    """
    choice = random.Random(seed)  # must be reproducible, and need not be secret
    clock = 0.0

    def now() -> float:
        return clock

    def empty() -> ExchangeCache:
        return ExchangeCache(load.cache, now=now, monotonic=now)

    caches = [empty() for _ in range(load.processes)]
    endpoints = [b"%032d" % number for number in range(load.destinations)]
    shifts = [choice.random() * load.used for _ in range(load.users)]
    tokens = [(-1, b"")] * load.users
    issued = Issued("issued", load.life, None, has_claims=False, has_actor=False)
    begin = load.used + load.spare
    if seconds is None:
        seconds = load.restart or 2 * load.used
    restarts = _restarts(load, begin)
    due = next(restarts, None)
    exchanges = 0
    while True:
        clock += choice.expovariate(load.users * load.requests)
        if clock >= begin + seconds:
            return exchanges / seconds
        while due is not None and clock >= due[0]:
            caches[due[1]] = empty()
            due = next(restarts, None)
        user = int(choice.random() * load.users)
        cache = caches[user % load.processes if load.is_sticky else int(choice.random() * load.processes)]
        number = int((clock + shifts[user]) / load.used)
        if tokens[user][0] != number:
            tokens[user] = number, b"%016d%016d" % (user, number)
        for endpoint in endpoints:
            key = key_of(tokens[user][1], endpoint)
            if cache.get(key) is None:
                cache.put(key, issued, (number + 1) * load.used - shifts[user] + load.spare)
                exchanges += clock >= begin


def _restarts(load: Load, begin: float) -> Iterator[tuple[float, int]]:
    """Yield the time of each process's restart, at equal intervals."""
    if load.restart is not None:
        for process in range(load.processes):
            yield begin + process * load.restart / load.processes, process


EXAMPLE = Load()
MINUTES = (5, 15, 60)
PROCESSES = (1, 2, 4, 8, 16, 32)


def _with_life(minutes: int, processes: int = EXAMPLE.processes) -> Load:
    life = minutes * 60.0
    return replace(EXAMPLE, life=life, used=life - EXAMPLE.spare, processes=processes)


ROWS: tuple[tuple[str, Load], ...] = (
    ("the example", EXAMPLE),
    ("2 processes", replace(EXAMPLE, processes=2)),
    ("32 processes", replace(EXAMPLE, processes=32)),
    ("sticky sessions", replace(EXAMPLE, is_sticky=True)),
    ("one destination", replace(EXAMPLE, destinations=1)),
    ("all tokens live for 5 minutes", _with_life(5)),
    ("all tokens live for 60 minutes", _with_life(60)),
    ("only the issued tokens live for 5 minutes", replace(EXAMPLE, life=300.0)),
    ("clients use each token until it expires", replace(EXAMPLE, used=900.0, spare=0.0)),
    ("each user sends a request every 5 minutes", replace(EXAMPLE, requests=1 / 300)),
    ("each user sends a request every 2 seconds", replace(EXAMPLE, requests=0.5)),
    ("all processes restart within 10 minutes", replace(EXAMPLE, restart=600.0)),
    ("3,000 users: too many for the cache", replace(EXAMPLE, users=3_000)),
)
"""A row of the table: the change to the example, and the load."""


SCALES = (1, 2, 4, 5, 10, 20)
_REQUESTS = 30_000


@lru_cache
def simulate_scaled(load: Load) -> float:
    """Return the rate for all users by simulating a fraction of them with the same fraction of the cache, which is
    faster.
    """
    whole = load.users * load.requests * load.used * 3
    scale = next((scale for scale in SCALES if whole / scale <= _REQUESTS), SCALES[-1])
    return scale * simulate(replace(load, users=load.users // scale, cache=load.cache // scale))


def table() -> str:
    """Return the page's table."""
    lines = ["| | formula | simulation |", "|---|---:|---:|"]
    lines += [f"| {name} | {estimate(load):.1f} | {simulate_scaled(load):.1f} |" for name, load in ROWS]
    return "\n".join(lines) + "\n"


_STYLE = """\
text { font: 14px system-ui, sans-serif; fill: #1f2328 }
.paper { fill: #ffffff } .grid { stroke: #d1d9e0 } path { fill: none; stroke-width: 2 }
.a { stroke: #bc4c00; fill: #bc4c00 } .b { stroke: #0969da; fill: #0969da } .c { stroke: #1a7f37; fill: #1a7f37 }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc }
.paper { fill: #0d1117 } .grid { stroke: #3d444d }
.a { stroke: #ffa657; fill: #ffa657 } .b { stroke: #79c0ff; fill: #79c0ff } .c { stroke: #7ee787; fill: #7ee787 }
}"""
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 400, 64, 150, 48, 56
_TITLE = "Exchanges per second as a function of the number of processes"


def chart() -> str:
    """Return the chart, with one line for each token lifetime and a dot for each simulation."""
    lines = {m: [estimate(_with_life(m, n)) for n in PROCESSES] for m in MINUTES}
    dots = {m: [simulate_scaled(_with_life(m, n)) for n in PROCESSES] for m in MINUTES}
    top = 50 * math.ceil(max(map(max, lines.values())) / 50)

    def x(number: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * math.log2(number) / math.log2(PROCESSES[-1])

    def y(rate: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * rate / top

    ends = ", ".join(f"{lines[m][0]:.0f} to {lines[m][-1]:.0f} for tokens of {m} minutes" for m in MINUTES)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        ' aria-labelledby="title description">',
        f'<title id="title">{_TITLE}</title>',
        f'<desc id="description">With {EXAMPLE.users:,} users, {EXAMPLE.destinations} destinations and a request every'
        f" {1 / EXAMPLE.requests:.0f} seconds, from 1 to {PROCESSES[-1]} processes: {ends}."
        " Lines are the formula, dots the simulation.</desc>",
        f"<style>\n{_STYLE}\n</style>",
        f'<rect class="paper" width="{_WIDTH}" height="{_HEIGHT}"/>',
        f'<text x="{_LEFT}" y="26">{_TITLE}</text>',
    ]
    for tick in range(0, top + 1, 50):
        right = _WIDTH - _RIGHT
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(tick) + 5:.1f}" text-anchor="end">{tick}</text>')
    for number in PROCESSES:
        parts.append(f'<text x="{x(number):.1f}" y="{_HEIGHT - _BOTTOM + 22}" text-anchor="middle">{number}</text>')
    parts.append(f'<text x="{x(1):.1f}" y="{_HEIGHT - 10}">processes</text>')
    for name, minutes in zip("abc", MINUTES, strict=True):
        points = [(x(number), y(rate)) for number, rate in zip(PROCESSES, lines[minutes], strict=True)]
        path = " L".join(f"{left:.1f} {up:.1f}" for left, up in points)
        parts.append(f'<g class="{name}"><path class="{name}" style="fill: none" d="M{path}"/>')
        for number, simulated in zip(PROCESSES, dots[minutes], strict=True):
            parts.append(f'<circle cx="{x(number):.1f}" cy="{y(simulated):.1f}" r="4"/>')
        parts.append(f'</g><text x="{points[-1][0] + 12:.1f}" y="{points[-1][1] + 5:.1f}">{minutes} minutes</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def page() -> str:
    """Return the page with the current table."""
    before, _, rest = PAGE.read_text("utf-8").partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}{table()}{END}{after}"


def main(arguments: list[str]) -> int:
    """Write the files, or return 1 if ``--check`` finds one that is out of date."""
    status = 0
    for path, content in ((CHART, chart()), (PAGE, page())):
        if not path.exists() or path.read_text("utf-8") != content:
            if "--check" in arguments:
                print(f"{path.name} is out of date: run python tools/sizing.py")
                status = 1
            else:
                path.write_text(content, "utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
