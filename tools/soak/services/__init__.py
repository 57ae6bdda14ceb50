"""Three services that call each other in every way and check that each token belongs to the expected user.

The query string specifies the user and the way to call. The services do not derive the user or the way to call from the
token.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from typing import Any

ANONYMOUS = "0"


def token_of(user: str) -> str | None:
    """Return the token that a user's requests carry."""
    return None if user == ANONYMOUS else f"user-{user}-token-of-this-soak"


class Tally:
    """A thread-safe record of the calls that one service received."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts = {"calls": 0, "wrong": 0, "after_lease": 0}

    def check(self, user: str, authorization: str | None, *, late: bool) -> bool:
        """Record a call, and return whether its token is the user's.

        A late call is made by work that outlives its request, so the call must not have any token.
        """
        token = authorization and authorization.removeprefix("Bearer ")
        with self._lock:
            self.counts["calls"] += 1
            self.counts["wrong"] += token is not None and token != token_of(user)
            self.counts["after_lease"] += late and token is not None
        return token == token_of(user)


SUBMIT: tuple[Callable[[ThreadPool, Callable[..., bool], tuple[Any, ...]], list[bool]], ...] = (
    lambda pool, call, args: [pool.apply(call, args)],
    lambda pool, call, args: [pool.apply_async(call, args).get(60)],
    lambda pool, call, args: pool.map(lambda args: call(*args), [args, args]),
    lambda pool, call, args: pool.map_async(lambda args: call(*args), [args, args], 2).get(60),
    lambda pool, call, args: pool.starmap(call, [args, args], 1),
    lambda pool, call, args: pool.starmap_async(call, [args, args]).get(60),
    lambda pool, call, args: list(pool.imap(lambda args: call(*args), [args, args])),
    lambda pool, call, args: list(pool.imap(lambda args: call(*args), [args, args], 2)),
    lambda pool, call, args: list(pool.imap_unordered(lambda args: call(*args), [args, args])),
    lambda pool, call, args: list(pool.imap_unordered(lambda args: call(*args), [args, args], 2)),
)
"""Every method of a pool that submits tasks."""


class LazyPool:
    """A thread pool that the first request creates and later requests share.

    After every *uses* requests, the next request creates a new pool. Requests therefore often use a pool while
    the request that created the pool is still being served.
    """

    def __init__(self, threads: int = 4, uses: int = 25) -> None:
        self._threads, self._uses = threads, uses
        self._lock = threading.Lock()
        self._pool: ThreadPool | None = None
        self._left = 0
        self._users: dict[ThreadPool, int] = {}
        self._ways = itertools.cycle(SUBMIT)

    def run(self, call: Callable[..., bool], *args: Any) -> bool:
        """Run *call* in the pool with the next submit method, and return whether all results are true."""
        with self._taken() as pool:
            with self._lock:
                submit = next(self._ways)
            return all(submit(pool, call, args))

    @contextmanager
    def _taken(self) -> Iterator[ThreadPool]:
        with self._lock:
            if self._pool is None or not self._left:
                last, self._pool, self._left = self._pool, ThreadPool(self._threads), self._uses
                self._users[self._pool] = 0
                self._close_unused(last)
            pool = self._pool
            self._left -= 1
            self._users[pool] += 1
        try:
            yield pool
        finally:
            with self._lock:
                self._users[pool] -= 1
                self._close_unused(pool)

    def _close_unused(self, pool: ThreadPool | None) -> None:
        if pool is not None and pool is not self._pool and not self._users[pool]:
            del self._users[pool]
            pool.close()
