"""Measure the cost of token verification relative to the recipe in PyJWT's documentation.

The recipe finds the key with ``jwt.get_unverified_header`` and passes it to ``jwt.decode``; it checks less than the
package's verifier. The recipe and the verifier alternate in a single process, and the result is the median of the
rounds.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import threading
import time
from collections.abc import Callable

import jwt

from otel_token_relay.verification import AsyncTokenVerifier, KeysUnavailable, TokenRejected, TokenVerifier
from tests.support.issuers import Issuer, issuing, wait_until
from tests.support.tokens import AUDIENCE, claims, make_token, public_jwk

Figure = tuple[str, float, float]

KIDS = {"RS256": "r1", "ES256": "e1", "EdDSA": "d1"}
CALLS = 20


def figures(quick: bool) -> list[Figure]:
    """Return each figure's name, ratio, and target; the ratio should not exceed the target."""
    rounds = 30 if quick else 200
    found: list[Figure] = []
    with issuing(*(public_jwk(alg, kid) for alg, kid in KIDS.items())) as issuer:
        for alg in KIDS:
            found += _cost(issuer, alg, rounds)
        found += _under_attack(issuer, 200 if quick else 2000)
    return found


def _cost(issuer: Issuer, alg: str, rounds: int) -> list[Figure]:
    # About 15 typical claims, including names, roles, and an email address.
    extra = {
        "name": "Alice Example",
        "email": "alice@example.com",
        "email_verified": True,
        "preferred_username": "alice",
        "session_state": "5b9d5b2e-1a3c-4b8e-9f4d-2f6a7c8b9d0e",
        "roles": ["reader", "writer", "auditor"],
        "realm_access": {"roles": ["offline_access", "default-roles"]},
        "azp": "web",
    }
    kid = KIDS[alg]
    token = make_token(claims(issuer.url, **extra), alg, kid=kid)
    keys = {kid: jwt.PyJWK(public_jwk(alg, kid))}
    fresh = TokenVerifier([issuer.url], AUDIENCE, cache_size=0)
    caching = TokenVerifier([issuer.url], AUDIENCE)

    def recipe() -> None:
        key = keys[jwt.get_unverified_header(token)["kid"]]
        jwt.decode(token, key, algorithms=[alg], audience=AUDIENCE, issuer=issuer.url)

    uncached = lambda: fresh.verify(token)  # noqa: E731
    cached = lambda: caching.verify(token)  # noqa: E731
    times = _interleave([recipe, uncached, cached], rounds)
    return [
        (f"verify, uncached, {alg}, relative to PyJWT's recipe", times[1] / times[0], 1.0),
        (f"verify, cached, {alg}, relative to PyJWT's recipe", times[2] / times[0], 1 / 30),
    ]


def _interleave(functions: list[Callable[[], object]], rounds: int) -> list[float]:
    """Return the median time in seconds for each function. Each round measures all functions."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for function, collected in zip(functions, times, strict=True):
                start = time.perf_counter()
                for _ in range(CALLS):
                    function()
                collected.append((time.perf_counter() - start) / CALLS)
    finally:
        gc.enable()
    return [statistics.median(collected) for collected in times]


def _under_attack(issuer: Issuer, requests: int) -> list[Figure]:
    """Measure verification with a known key, and the event loop's lag, while the issuer hangs and forged tokens
    arrive.
    """
    token = make_token(claims(issuer.url), "RS256", kid="r1")
    forged = make_token(claims(issuer.url), "RS256", kid="forged", name="second")
    verifier = TokenVerifier([issuer.url], AUDIENCE, cache_size=0)

    def median() -> float:
        times = []
        for _ in range(requests):
            start = time.perf_counter()
            verifier.verify(token)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    verifier.verify(token)
    quiet = median()
    issuer.behave = issuer.hang
    before = len(issuer.hits)
    attacker = threading.Thread(target=_expect_rejection, args=(verifier, forged))
    attacker.start()
    wait_until(lambda: len(issuer.hits) > before)
    attacked = median()
    lag = asyncio.run(_lag(issuer, forged))
    issuer.released.set()
    attacker.join(10)
    issuer.behave = None
    return [
        ("verify with a known key, issuer hanging relative to normal", attacked / quiet, 2.0),
        ("event loop lag while the issuer hangs, relative to 50 ms", lag / 0.05, 1.0),
    ]


def _expect_rejection(verifier: TokenVerifier, token: str) -> None:
    try:
        verifier.verify(token)
    except (TokenRejected, KeysUnavailable):
        return
    raise AssertionError("a forged token was accepted")


async def _lag(issuer: Issuer, token: str) -> float:
    """Return the 99th percentile of the event loop's wake-up delay while a request waits for keys."""
    verifier = AsyncTokenVerifier([issuer.url], AUDIENCE, timeout=1.0)
    request = asyncio.ensure_future(verifier.verify(token))
    late = []
    while not request.done():
        start = time.perf_counter()
        await asyncio.sleep(0.005)
        late.append(time.perf_counter() - start - 0.005)
    await asyncio.gather(request, return_exceptions=True)
    return statistics.quantiles(late, n=100)[98]


def main() -> None:
    """Measure and print the figures."""
    for name, ratio, target in figures("--quick" in sys.argv[1:]):
        print(f"  {name:60} {ratio:8.3f}   target {target:.3f}{'' if ratio <= target else '  (missed)'}")


if __name__ == "__main__":
    main()
