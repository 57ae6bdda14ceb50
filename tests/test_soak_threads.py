"""A short run of `tools.soak.threads`."""

from __future__ import annotations

from tools.soak import threads


def test_no_wrong_and_no_missing_token_through_three_services():
    """Threads, pools that users share, tasks, retries, time limits, aborts and anonymous callers mixed."""
    counts, _ = threads.run(requests=200, users=50)

    assert counts["completed"] + counts["aborted"] == 200
    assert counts["calls"] > 500
    assert {name: counts[name] for name in ("wrong", "missing", "after_lease", "failed")} == {
        "wrong": 0,
        "missing": 0,
        "after_lease": 0,
        "failed": 0,
    }
