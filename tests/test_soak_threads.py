"""A short run of `tools.soak.threads` succeeds."""

from __future__ import annotations

from tools.soak import threads


def test_no_wrong_and_no_missing_token_through_three_services():
    """No token is wrong or missing with threads, shared pools, tasks, retries, timeouts, cancellations, and
    anonymous callers.
    """
    counts, _ = threads.run(requests=200, users=50)

    assert counts["completed"] + counts["aborted"] == 200
    assert counts["calls"] > 500
    assert {name: counts[name] for name in ("wrong", "missing", "after_lease", "failed")} == {
        "wrong": 0,
        "missing": 0,
        "after_lease": 0,
        "failed": 0,
    }
