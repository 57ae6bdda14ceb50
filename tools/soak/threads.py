"""A soak test with threads, tasks, and three frameworks: FastAPI, Flask, and aiohttp.web.

    python -m tools.soak.threads [REQUESTS] [USERS]

The test runs three real processes whose code does not relay tokens itself. One request in ten is anonymous. The
test includes random delays, clients that disconnect, timeouts, retries, worker threads, and work that outlives its
request. Some threads belong to pools that one user's request creates and other users' requests share.

``wrong`` counts calls with a different user's token. ``missing`` counts completed requests in which a call lacked
its token. ``after_lease`` counts calls that had a token although their request had ended.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import urllib.request
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import aiohttp

from tests.support.processes import BIN, INSTRUMENT, RELAY, Service, instrumentations, service, uvicorn
from tools.soak.services import ANONYMOUS, token_of

WAYS = ("await", "gather", "to_thread", "executor", "pool", "retry", "timeout", "later", "sync")
CONCURRENCY = 32
# The instrumentation of each service's libraries.
BACK, MIDDLE, FRONT = (
    instrumentations(*used)
    for used in (("aiohttp-server",), ("flask", "requests", "urllib3"), ("fastapi", "httpx", "urllib"))
)
ABORTED_SHARE = 0.05
ANONYMOUS_SHARE = 0.1


class Soak:
    """The three services and the results.

    Attributes:
        counts: ``completed``, ``aborted``, ``missing``, ``wrong``, ``after_lease``, ``calls``.
    """

    def __init__(self, stack: ExitStack, users: int) -> None:
        self.users = users
        self.counts: Counter[str] = Counter()
        back = stack.enter_context(
            service(*INSTRUMENT, sys.executable, "-m", "tools.soak.services.back", environ=RELAY | BACK)
        )
        environ = {**RELAY, **MIDDLE, "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS": back.url, "BACK_URL": back.url}
        gunicorn = (str(BIN / "gunicorn"), "tools.soak.services.middle:app", "--bind", "127.0.0.1:0")
        options = ("--worker-class", "gthread", "--threads", "16", "--keep-alive", "120", "--no-control-socket")
        middle = stack.enter_context(service(*INSTRUMENT, *gunicorn, *options, environ=environ))
        environ = {**RELAY, **FRONT, "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS": middle.url, "MIDDLE_URL": middle.url}
        app = uvicorn("tools.soak.services.front:app", "--no-access-log")
        front = stack.enter_context(service(*INSTRUMENT, *app, environ=environ))
        self.services = {"front": front, "middle": middle, "back": back}
        self._url = front.url
        self._random = random.Random(20261123)

    async def send(self, requests: int) -> None:
        """Send the given number of requests, several at a time."""
        numbers = iter(range(requests))
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(120)) as session:

            async def worker() -> None:
                for number in numbers:
                    await self._send_one(session, WAYS[number % len(WAYS)])

            await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))

    async def _send_one(self, session: aiohttp.ClientSession, way: str) -> None:
        is_anonymous = self._random.random() < ANONYMOUS_SHARE
        user = ANONYMOUS if is_anonymous else str(self._random.randint(1, self.users))
        token = token_of(user)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        path = f"/sync?user={user}" if way == "sync" else f"/front?user={user}&way={way}"
        patience = self._random.random() * 0.02 if self._random.random() < ABORTED_SHARE else 120
        try:
            async with (
                asyncio.timeout(patience),
                session.get(self._url + path, headers=headers) as response,
            ):
                text = await response.text()
                self.counts["completed"] += 1
                self.counts["failed"] += response.status != 200
                self.counts["missing"] += response.status == 200 and text != "true"
        except TimeoutError:
            self.counts["aborted"] += 1

    async def settle(self) -> None:
        """Wait until all work that outlives its request has ended, and then add up the services' counts."""
        while _stats(self.services["front"])["left_behind"]:
            await asyncio.sleep(0.05)
        for one in self.services.values():
            stats = _stats(one)
            self.counts.update({name: stats[name] for name in ("calls", "wrong", "after_lease")})

    def memory(self) -> dict[str, int]:
        """Return the resident memory of each service and its children in kilobytes, or 0 on platforms without /proc."""
        return {name: _resident_kilobytes(one.process.pid) for name, one in self.services.items()}


def _stats(one: Service) -> dict[str, int]:
    with urllib.request.urlopen(f"{one.url}/stats", timeout=60) as response:
        counts: dict[str, int] = json.load(response)
        return counts


def _resident_kilobytes(group: int) -> int:
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                status = (stat.parent / "status").read_text()
                total += int(status.partition("VmRSS:")[2].split()[0])
        except (OSError, IndexError):
            continue
    return total


async def _run(soak: Soak, requests: int, warm_up: int) -> dict[str, int]:
    await soak.send(warm_up)
    before = soak.memory()
    await soak.send(requests - warm_up)
    await soak.settle()
    after = soak.memory()
    return {name: after[name] - before[name] for name in after}


def run(requests: int, users: int) -> tuple[Counter[str], dict[str, int]]:
    """Run the soak test.

    Returns:
        The counts, and each service's memory growth in kilobytes after the first tenth of the requests.
    """
    with ExitStack() as stack:
        soak = Soak(stack, users)
        growth = asyncio.run(_run(soak, requests, max(requests // 10, 1)))
        return soak.counts, growth


def main(requests: int = 100_000, users: int = 1_000) -> int:
    """Run the soak test and print its result. Return 1 if any check failed."""
    counts, growth = run(requests, users)
    print(f"{requests} requests from {users} users, {ANONYMOUS_SHARE:.0%} anonymous, through three services")
    print(f"completed = {counts['completed']}, aborted = {counts['aborted']}, calls checked = {counts['calls']}")
    print(f"wrong = {counts['wrong']}, missing = {counts['missing']}, after the lease = {counts['after_lease']}")
    print("memory growth = " + ", ".join(f"{name} {kilobytes / 1024:+.1f} MiB" for name, kilobytes in growth.items()))
    return int(any(counts[name] for name in ("wrong", "missing", "after_lease", "failed")))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
