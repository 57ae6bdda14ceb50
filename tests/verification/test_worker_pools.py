"""A thread pool with the number of its calls."""

from __future__ import annotations

import threading

from otel_token_relay.verification.worker_pools import WorkerPool


def test_a_pool_is_busy_when_a_call_would_wait() -> None:
    """The owner counts the calls."""
    pool = WorkerPool("lookups", 2)

    found = []
    for pool.load in range(4):
        found.append(pool.is_busy)
    assert found == [False, False, True, True]


def test_a_pool_starts_over_with_new_threads() -> None:
    """A forked child has none of its parent's threads. The name shows whose threads they are."""
    pool = WorkerPool("lookups", 1)
    first = pool.executor
    assert first.submit(lambda: threading.current_thread().name).result(30) == "token-relay-lookups_0"

    pool.start_over()

    assert pool.executor is not first
    assert pool.executor.submit(lambda: threading.current_thread().name).result(30) == "token-relay-lookups_0"
    first.shutdown()
    pool.executor.shutdown()
