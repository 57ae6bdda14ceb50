"""Tokens in use are kept when older tokens are evicted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.redaction.recent_tokens import MAX_IN_USE, RecentTokens, TokensInUse, within_limit
from otel_token_relay.token import BearerToken, Lease


def test_the_oldest_unused_value_is_evicted_first() -> None:
    """The oldest unused value is evicted first, and values in use remain in order."""
    assert within_limit(("a", "b", "c", "d"), 3, {"a"}) == ("a", "c", "d")
    assert within_limit(("a", "b", "c", "d"), 2, {"a", "b", "c"}) == ("a", "b", "c", "d")
    assert within_limit(("a", "b"), 2, set()) == ("a", "b")


@given(st.lists(st.booleans(), max_size=200), st.integers(1, 10))
def test_the_newest_value_is_always_kept_and_the_number_is_bounded(in_use: list[bool], limit: int) -> None:
    """The newest value is always kept, and the number of values is bounded, in tuples and in ordered sets."""
    used = {str(at) for at, is_used in enumerate(in_use) if is_used}
    recent, values = RecentTokens(limit, used), ()
    for at in range(len(in_use)):
        recent.add(str(at))
        values = within_limit((*values, str(at)), limit, used)
        for kept in (values, recent.values()):
            assert str(at) in kept
            assert len(kept) <= limit + MAX_IN_USE
        if len(used) <= MAX_IN_USE:
            assert {value for value in used if int(value) <= at} <= set(values)
            assert {value for value in used if int(value) <= at} <= set(recent.values())


def test_a_value_that_is_added_again_is_the_newest_one() -> None:
    """A value that is added again becomes the newest value and is not reported as new."""
    recent = RecentTokens(2, ())

    assert [recent.add(value) for value in ("a", "b", "a", "c")] == [True, True, False, True]
    assert recent.values() == ("a", "c")


def test_the_values_that_were_not_evicted_are_contained() -> None:
    """A collection contains its most recent values, but no evicted value."""
    recent = RecentTokens(2, ())
    for value in ("a", "b", "c"):
        recent.add(value)

    assert [value in recent for value in ("a", "b", "c")] == [False, True, True]
    assert None not in recent


def test_a_value_is_added_only_if_there_is_room() -> None:
    """A value that is added only if there is room does not evict any other value."""
    recent = RecentTokens(2, ())

    assert [recent.add_if_room(value) for value in ("a", "a", "b", "c")] == [True, False, True, False]
    assert recent.values() == ("a", "b")


@pytest.mark.parametrize("has_lease", [True, False])
def test_a_token_is_in_use_while_its_lease_is_open(has_lease: bool) -> None:
    """A token is in use only while its lease is open."""
    in_use = TokensInUse()
    token = BearerToken("value-of-a", lease=Lease() if has_lease else None)
    in_use.add(token)

    assert ("value-of-a" in in_use) is has_lease
    if token.lease is not None:
        token.lease.end()
    assert "value-of-a" not in in_use


def test_a_token_that_nothing_refers_to_is_not_in_use() -> None:
    """A token to which nothing refers is not in use, even if its lease never ends."""
    in_use = TokensInUse()
    in_use.add(BearerToken("value-of-a", lease=Lease()))

    assert "value-of-a" not in in_use


def test_tokens_that_are_not_in_use_are_swept() -> None:
    """Unused tokens are removed, so the number of values is proportional to the number of tokens in use."""
    in_use = TokensInUse()
    kept = [BearerToken(f"kept-{at}", lease=Lease()) for at in range(100)]
    for at in range(10_000):
        in_use.add(BearerToken(f"value-{at}", lease=Lease()))
        in_use.add(kept[at % 100])

    assert len(in_use) <= 512
    assert all(f"kept-{at}" in in_use for at in range(100))
