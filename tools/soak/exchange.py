"""A soak test of token exchange: ``python -m tools.soak.exchange [USERS] [MADE_UP]``.

Many users call four destinations at the same time. Threads share one requests session, and tasks share one httpx
session and one aiohttp session. Each destination requires its own token and responds with the Authorization lines
that it received. Every response is compared with the token of the user who sent the request.

Meanwhile, tokens and results expire, destinations respond with status 401, the authorization server rejects tokens,
and callers send made-up tokens.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
import httpx
import requests

from otel_token_relay import Settings, install, uninstall, use_token
from otel_token_relay.token import BearerToken
from tests.support.loopback import Party, Status, party
from tests.support.token_endpoint import SECRET, Endpoint, Response, Verified, serving

AUDIENCES = ("billing", "orders", "stock", "profile")
# Results for every tenth user expire after a second, so they expire during the run.
SHORT_LIVED_EVERY = 10
SHORT_SECONDS = 3
LONG_SECONDS = 3_600
UNAUTHORIZED_SHARE = 0.02
THREADS, TASKS = 16, 32
TIMEOUT_SECONDS = 60.0
_SESSIONS = ("requests", "httpx", "aiohttp")

Kind = Literal["valid", "expired", "refused", "made-up"]
Issue = Callable[[Endpoint, dict[str, str]], Response]


@dataclass(frozen=True)
class Visit:
    """A request to this service, which calls destinations.

    Attributes:
        kind: Whether the token can be exchanged, or the reason that it cannot.
        token: The caller's token.
        audiences: The destinations, in the order of the calls.
    """

    kind: Kind
    token: str
    audiences: tuple[str, ...]

    def caller(self) -> BearerToken:
        """Return the caller's token as the server boundary would have bound it."""
        if self.kind == "made-up":
            return BearerToken(self.token)
        token, accepted = BearerToken(self.token), Verified()
        # Without an expiry, results would be cached for only a minute.
        accepted.expires_at = time.time() + (-1 if self.kind == "expired" else LONG_SECONDS)
        token.mark_verified(accepted)
        return token


@dataclass
class Result:
    """The result of a run.

    Attributes:
        hops: The number of requests that the destinations received.
        unauthorized: The number of hops with a 401 response.
        wrong_subject: The number of hops with a different user's token.
        wrong_audience: The number of hops with a token for a different destination.
        original: The number of hops with the caller's own token.
        missing: The number of hops without a token although the caller's token could be exchanged.
        late: The number of hops without a token because their short-lived token expired before they arrived.
        uninvited: The number of hops with a token although the caller's token was expired, rejected, or made up.
        exchanges: The number of requests that the token endpoint received.
        repeated: The number of exchanges for a token and a destination that already had a result.
        displaced: The number of repeated exchanges while tokens were made up or rejected.
        lacking: The number of pairs of a token and a destination without an exchange.
        of_made_up: The number of exchanges for made-up tokens.
        refused_again: The number of exchanges for tokens that had already been rejected, at most one in five seconds.
        probes: The number of the circuit breaker's random tokens, which test the endpoint after several failures.
        seconds: The duration.
    """

    hops: int = 0
    unauthorized: int = 0
    wrong_subject: int = 0
    wrong_audience: int = 0
    original: int = 0
    missing: int = 0
    late: int = 0
    uninvited: int = 0
    exchanges: int = 0
    repeated: int = 0
    displaced: int = 0
    lacking: int = 0
    of_made_up: int = 0
    refused_again: int = 0
    probes: int = 0
    seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def problems(self) -> dict[str, int]:
        """The counts that must be zero but are not."""
        hops = ("wrong_subject", "wrong_audience", "original", "missing", "uninvited")
        exchanges = ("repeated", "displaced", "lacking", "of_made_up")
        return {name: getattr(self, name) for name in (*hops, *exchanges) if getattr(self, name)}

    def judge(self, visit: Visit, audience: str, status: int, received: str) -> None:
        """Count one hop."""
        subject, _, named = received.removeprefix("Bearer ").rpartition(".for.")
        with self._lock:
            self.hops += 1
            self.unauthorized += status == 401
            if visit.kind != "valid":
                self.uninvited += received != ""
            elif not received and _is_short_lived(visit.token):
                self.late += 1
            elif not received:
                self.missing += 1
            elif received == f"Bearer {visit.token}":
                self.original += 1
            else:
                self.wrong_subject += subject != visit.token
                self.wrong_audience += named != audience

    def count(self, forms: list[dict[str, str]], visits: Iterable[Visit], after: int, until: int) -> None:
        """Compare the requests that the token endpoint received with the visits.

        Args:
            forms: The requests.
            visits: All visits.
            after: The number of requests before the first made-up token.
            until: The number of requests after the last made-up token.
        """
        kinds = {visit.token: visit.kind for visit in visits if visit.kind != "expired"}
        asked = Counter((form["subject_token"], form["audience"]) for form in forms)
        self.exchanges = len(forms)
        for (subject, _), times in asked.items():
            kind = kinds.get(subject)
            self.probes += times if kind is None else 0
            self.repeated += times - 1 if kind == "valid" and not _is_short_lived(subject) else 0
            self.of_made_up += times if kind == "made-up" else 0
            self.refused_again += times - 1 if kind == "refused" else 0
        valid = {(visit.token, audience) for visit in visits if visit.kind == "valid" for audience in AUDIENCES}
        self.lacking = len(valid - asked.keys())
        self.displaced = sum(
            kinds.get(form["subject_token"]) == "valid" and not _is_short_lived(form["subject_token"])
            for form in forms[after:until]
        )


def _token(user: int, generation: int) -> str:
    return f"user-{user}-token-{generation}-{'short' if user % SHORT_LIVED_EVERY == 0 else 'long'}"


def _is_short_lived(token: str) -> bool:
    return token.endswith("short")


def _issue(endpoint: Endpoint, form: dict[str, str]) -> Response:
    subject = form["subject_token"]
    if subject.startswith("refused"):
        return 400, {"error": "invalid_grant"}
    status, members = endpoint.issue(form)
    return status, members | {"expires_in": SHORT_SECONDS if _is_short_lived(subject) else LONG_SECONDS}


class Soak:
    """The service, its destinations, and the token endpoint.

    Args:
        stack: A stack that ends the servers when it closes.
        issue: A function that responds to each exchange.
    """

    def __init__(self, stack: ExitStack, issue: Issue) -> None:
        self.result = Result()
        self.endpoint = stack.enter_context(serving())
        self.endpoint.respond = lambda form: issue(self.endpoint, form)
        self._parties: dict[str, Party] = {name: stack.enter_context(party()) for name in AUDIENCES}
        self._random = random.Random(20261127)  # must be reproducible, and need not be secret
        stack.callback(uninstall)
        install(
            Settings(
                destinations=tuple(f"{to.url};audience={name}" for name, to in self._parties.items()),
                token_endpoint=self.endpoint.url,
                client_id="user-service",
                client_secret=SECRET,
            )
        )

    def visit(self, kind: Kind, token: str, destinations: int = len(AUDIENCES)) -> Visit:
        """Return a visit that calls a number of destinations in random order."""
        return Visit(kind, token, tuple(self._random.sample(AUDIENCES, destinations)))

    def run(self, visits: dict[str, list[Visit]]) -> None:
        """Make each session's visits in random order, and run all sessions simultaneously."""
        for each in visits.values():
            self._random.shuffle(each)
        with ThreadPoolExecutor(1) as loop:
            tasks = loop.submit(asyncio.run, self._in_tasks(visits["httpx"], visits["aiohttp"]))
            self._in_threads(visits["requests"])
            tasks.result()

    def _hops(self, visit: Visit) -> Iterator[tuple[str, str]]:
        """Yield each destination and its URL. Some destinations respond with status 401 and are then called again."""
        for audience in visit.audiences:
            to = self._parties[audience]
            is_unauthorized = self._random.random() < UNAUTHORIZED_SHARE
            if is_unauthorized:
                to.answers.append(Status(401))
            for _ in range(1 + is_unauthorized):
                yield audience, to.url

    def _in_threads(self, visits: list[Visit]) -> None:
        with requests.Session() as session, ThreadPoolExecutor(THREADS) as pool:
            session.trust_env = False
            session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=THREADS))

            def make(visit: Visit) -> None:
                with use_token(visit.caller()):
                    for audience, url in self._hops(visit):
                        response = session.get(url, timeout=TIMEOUT_SECONDS)
                        self.result.judge(visit, audience, response.status_code, response.text)

            list(pool.map(make, visits))

    async def _in_tasks(self, with_httpx: list[Visit], with_aiohttp: list[Visit]) -> None:
        async with (
            httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False) as client,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(TIMEOUT_SECONDS)) as session,
        ):

            async def by_httpx(url: str) -> tuple[int, str]:
                response = await client.get(url)
                return response.status_code, response.text

            async def by_aiohttp(url: str) -> tuple[int, str]:
                async with session.get(url) as response:
                    return response.status, await response.text()

            workers = []
            for visits, send in ((iter(with_httpx), by_httpx), (iter(with_aiohttp), by_aiohttp)):
                workers += [self._worker(visits, send) for _ in range(TASKS)]
            await asyncio.gather(*workers)

    async def _worker(self, visits: Iterator[Visit], send: Callable[[str], Awaitable[tuple[int, str]]]) -> None:
        for visit in visits:
            with use_token(visit.caller()):
                for audience, url in self._hops(visit):
                    self.result.judge(visit, audience, *await send(url))


def run(users: int, made_up: int, issue: Issue = _issue) -> Result:
    """Run the soak test.

    Args:
        users: The number of users, each of whom uses two tokens in sequence.
        made_up: The number of made-up tokens.
        issue: A function that responds to each exchange.
    """
    started = time.monotonic()
    with ExitStack() as stack, _quiet():
        soak = Soak(stack, issue)
        first = {name: [soak.visit("valid", _token(user, 1)) for user in range(users)] for name in _SESSIONS}
        soak.run(first)
        after = len(soak.endpoint.forms)

        second: dict[str, list[Visit]] = {
            name: [soak.visit("valid", _token(user, 1)) for user in range(users)] for name in _SESSIONS
        }
        for number in range(made_up):
            second[_SESSIONS[number % 3]].append(soak.visit("made-up", f"made-up-token-{number}", 1))
        for number in range(users):
            second[_SESSIONS[number % 3]].append(soak.visit("refused", f"refused-token-{number}", 1))
        soak.run(second)
        until = len(soak.endpoint.forms)

        third: dict[str, list[Visit]] = {name: [] for name in _SESSIONS}
        for name in _SESSIONS:
            for user in range(users):
                third[name] += [soak.visit("expired", _token(user, 1), 1), soak.visit("valid", _token(user, 2))]
        soak.run(third)

        visits = [visit for phase in (first, second, third) for each in phase.values() for visit in each]
        soak.result.count(soak.endpoint.forms, visits, after, until)
    soak.result.seconds = time.monotonic() - started
    return soak.result


@contextmanager
def _quiet() -> Iterator[None]:
    """Do not print the warnings about rejected tokens."""
    logger = logging.getLogger("otel_token_relay")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def main(users: int = 1_000, made_up: int = 10_000) -> int:
    """Run the soak test and print its result. Return 1 if any check failed."""
    result = run(users, made_up)
    print(f"{users} users, {len(AUDIENCES)} destinations, {made_up} made-up tokens, {result.seconds:.0f} s")
    print(f"hops = {result.hops}, of which {result.unauthorized} with status 401; exchanges = {result.exchanges}")
    print(f"wrong subject = {result.wrong_subject}, wrong audience = {result.wrong_audience}")
    print(f"the caller's own token = {result.original}, missing = {result.missing}, uninvited = {result.uninvited}")
    print(f"repeated exchanges = {result.repeated}, displaced = {result.displaced}, lacking = {result.lacking}")
    print(f"exchanges of made-up tokens = {result.of_made_up}, of refused tokens again = {result.refused_again}")
    print(f"tests of the circuit breaker = {result.probes}")
    print(f"NOT GOOD: {result.problems}" if result.problems else "good")
    return int(bool(result.problems))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
