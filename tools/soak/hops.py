"""Check that each of many users gets the correct token over two real hops: ``python -m tools.soak``.

user-service relays to profile-service, which responds with the Authorization line that it received. user-service
runs once as FastAPI on uvicorn with httpx, and once as Flask on threaded gunicorn with requests. Every response is
compared with the token of the user who sent the request. Some requests do not carry a token.
"""

from __future__ import annotations

import argparse
import http.client
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.processes import INSTRUMENT, instrumentations
from tests.support.servers import gunicorn_command, process, uvicorn_command

PROPAGATORS = "tracecontext,baggage,token_relay"
ANONYMOUS_SHARE = 0.2
LARGE_BODY_SHARE = 0.1
LARGE_BODY_BYTES = 100_000
WARM_UP_SHARE = 0.25
# The size of pools, caches, and the allocator becomes stable during the warm-up. Any growth afterward is due to the
# requests.
MEMORY_GROWTH_LIMIT = 0.05
CALL_TIMEOUT_SECONDS = 60.0


# The following functions run in the services. They do not import the package.


def profile_service() -> Any:
    """Respond with every Authorization line in the request, one per line."""
    from fastapi import FastAPI, Request, Response

    app = FastAPI()

    async def whoami(request: Request) -> Response:
        return Response("\n".join(request.headers.getlist("authorization")), media_type="text/plain")

    whoami.__annotations__ = {"request": Request}
    app.add_api_route("/whoami", whoami, response_model=None)
    return app


def user_service() -> Any:
    """Call profile-service with one httpx client that all requests share."""
    import os

    import httpx
    from fastapi import FastAPI, Request, Response

    app = FastAPI()
    client = httpx.AsyncClient(base_url=os.environ["PROFILE_SERVICE"], timeout=CALL_TIMEOUT_SECONDS, trust_env=False)

    async def me(request: Request) -> Response:
        await request.body()
        response = await client.get("/whoami")
        return Response(response.content, media_type="text/plain")

    me.__annotations__ = {"request": Request}
    app.add_api_route("/me", me, methods=["GET", "POST"], response_model=None)
    return app


def threaded_user_service() -> Any:
    """Call profile-service with the requests library, using one session per thread."""
    import os

    import requests
    from flask import Flask, Response, request

    app = Flask(__name__)
    local = threading.local()
    url = os.environ["PROFILE_SERVICE"] + "/whoami"

    def me() -> Response:
        request.get_data()
        session = getattr(local, "session", None)
        if session is None:
            session = local.session = requests.Session()
            session.trust_env = False
        return Response(session.get(url, timeout=CALL_TIMEOUT_SECONDS).content, mimetype="text/plain")

    app.add_url_rule("/me", "me", me, methods=["GET", "POST"])
    return app


VARIANTS: dict[str, Callable[[int], list[str]]] = {
    "async": lambda _: uvicorn_command("tools.soak.hops:user_service", "--factory"),
    "threaded": lambda threads: gunicorn_command("tools.soak.hops:threaded_user_service()", "gthread", threads=threads),
}


USED = {"async": ("fastapi", "httpx"), "threaded": ("flask", "requests")}


@dataclass
class Result:
    """The result of one run."""

    variant: str
    requests: int = 0
    wrong: int = 0
    missing: int = 0
    failed: int = 0
    seconds: float = 0.0
    memory: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        return self.requests > 0 and not (self.wrong or self.missing or self.failed)

    @property
    def memory_growth(self) -> float:
        """The largest relative growth in any service's memory after the warm-up."""
        return max((after - before) / before for before, after in self.memory.values())

    def __str__(self) -> str:
        rate = self.requests / self.seconds if self.seconds else 0.0
        memory = ", ".join(
            f"{name} {before / 2**20:.1f} -> {after / 2**20:.1f} MiB" for name, (before, after) in self.memory.items()
        )
        return (
            f"{self.variant}: {self.requests} requests, wrong = {self.wrong}, missing = {self.missing}, "
            f"failed = {self.failed}, {rate:.0f} requests/s, memory after warm-up {memory} ({self.memory_growth:+.1%})"
        )


@contextmanager
def services(variant: str, *, threads: int, propagators: str) -> Iterator[tuple[int, dict[str, int]]]:
    """Run both services. Yield user-service's port and a mapping of service names to process IDs."""
    with ExitStack() as stack:
        profile_port, profile_process = stack.enter_context(
            process(
                [*INSTRUMENT, *uvicorn_command("tools.soak.hops:profile_service", "--factory")],
                **instrumentations("fastapi"),
                OTEL_PROPAGATORS="tracecontext",
            )
        )
        url = f"http://127.0.0.1:{profile_port}"
        port, user_process = stack.enter_context(
            process(
                [*INSTRUMENT, *VARIANTS[variant](threads)],
                **instrumentations(*USED[variant]),
                OTEL_PROPAGATORS=propagators,
                OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS=url,
                PROFILE_SERVICE=url,
            )
        )
        yield port, {"user-service": user_process.pid, "profile-service": profile_process.pid}


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process and its children, or 0 if the system does not report it."""
    pids = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        pids += [int(child) for child in task.read_text().split()]
    total = 0
    for each in pids:
        for line in Path(f"/proc/{each}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) * 1024
    return total


def ask(port: int, numbers: range, users: int, deadline: float, result: Result, lock: threading.Lock) -> None:
    """Send requests over one persistent connection, each with a random user's token or without a token."""
    choice = random.Random(numbers.start)  # must be reproducible, and need not be secret
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CALL_TIMEOUT_SECONDS)
    sent = wrong = missing = failed = 0
    try:
        for _ in numbers:
            if time.monotonic() > deadline:
                break
            user = None if choice.random() < ANONYMOUS_SHARE else choice.randrange(users)
            expected = "" if user is None else f"Bearer token-of-user-{user}"
            # A large body makes an event loop keep a request's context for the connection.
            body = b"x" * LARGE_BODY_BYTES if choice.random() < LARGE_BODY_SHARE else None
            headers = {"Authorization": expected} if expected else {}
            connection.request("POST" if body else "GET", "/me", body=body, headers=headers)
            response = connection.getresponse()
            found = response.read().decode("latin-1")
            sent += 1
            if response.status != 200:
                failed += 1
            elif found != expected:
                missing, wrong = (missing + 1, wrong) if not found else (missing, wrong + 1)
    finally:
        connection.close()
        with lock:
            result.requests += sent
            result.wrong += wrong
            result.missing += missing
            result.failed += failed


def soak(
    variant: str, *, requests: int, users: int, connections: int, seconds: float, propagators: str = PROPAGATORS
) -> Result:
    """Run one variant.

    Args:
        variant: One of `VARIANTS`.
        requests: The maximum number of requests, including the warm-up.
        users: The number of different tokens.
        connections: The number of concurrent clients, each with one connection.
        seconds: The maximum number of seconds for which requests are sent.
        propagators: The propagators that user-service uses.
    """
    result, lock = Result(variant), threading.Lock()
    warm_up = int(requests * WARM_UP_SHARE)
    started = time.monotonic()
    with services(variant, threads=connections, propagators=propagators) as (port, pids):

        def send(first: int, last: int) -> dict[str, int]:
            with ThreadPoolExecutor(connections) as pool:
                each = -(-(last - first) // connections)
                parts = [range(n, min(n + each, last)) for n in range(first, last, each)]
                runs = [pool.submit(ask, port, part, users, started + seconds, result, lock) for part in parts]
                for run in runs:
                    run.result()
            return {name: resident_bytes(pid) for name, pid in pids.items()}

        before = send(0, warm_up)
        began, counted = time.monotonic(), result.requests
        after = send(warm_up, requests)
        elapsed = time.monotonic() - began
    result.seconds = elapsed * result.requests / max(result.requests - counted, 1)
    result.memory = {name: (before[name], after[name]) for name in pids}
    return result


def main() -> int:
    """Run the soak test and print its result. Return 1 if a token was wrong or missing, or if memory grew."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=20_000, help="the total for both variants")
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=900.0, help="time limit for each variant")
    options = parser.parse_args()
    is_good = True
    for variant in VARIANTS:
        result = soak(
            variant,
            requests=options.requests // len(VARIANTS),
            users=options.users,
            connections=options.connections,
            seconds=options.seconds,
        )
        print(result, flush=True)
        complete = result.requests == options.requests // len(VARIANTS)
        if not complete:
            print(f"{variant}: stopped by the time limit", flush=True)
        is_good &= result.is_clean and complete and result.memory_growth < MEMORY_GROWTH_LIMIT
    print("good" if is_good else "NOT GOOD")
    return 0 if is_good else 1
