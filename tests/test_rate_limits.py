"""Limits apply to the events that requests can cause."""

from __future__ import annotations

from otel_token_relay.rate_limits import _MAX_KEYS, RateLimit


def test_events_beyond_the_limit_are_skipped_and_their_number_is_reported() -> None:
    """Events beyond the limit are skipped and counted, and each period starts with its first event."""
    now = 100.0
    limit = RateLimit(2, 10.0, lambda: now)

    assert [limit.admit("expired") for _ in range(5)] == [0, 0, None, None, None]
    now = 109.9
    assert limit.admit("expired") is None
    now = 110.0
    assert [limit.admit("expired") for _ in range(3)] == [4, 0, None]


def test_each_key_has_its_own_limit() -> None:
    """Each key has its own limit, so one kind of rejected request does not hide a different kind."""
    limit = RateLimit(1, 10.0, lambda: 0.0)

    assert limit.admit("expired") == 0
    assert limit.admit("absent") == 0
    assert limit.admit("expired") is None


def test_keys_beyond_a_number_share_one_limit() -> None:
    """Keys beyond a maximum number share one limit, so memory use is bounded."""
    limit = RateLimit(1, 10.0, lambda: 0.0)
    admitted = [limit.admit(str(number)) for number in range(_MAX_KEYS + 100)]

    assert admitted.count(0) == _MAX_KEYS + 1
    assert len(limit._windows) == _MAX_KEYS + 1
