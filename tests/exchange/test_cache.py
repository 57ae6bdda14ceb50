"""A cached result is found only with its own subject token and is used only while it is valid."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.errors import ExchangeError, ExchangeFailed
from otel_token_relay.exchange.cache import ExchangeCache, endpoint_hash, key_of
from otel_token_relay.exchange.grants import Request
from otel_token_relay.exchange.responses import Issued
from otel_token_relay.token import BearerToken
from otel_token_relay.verification.cache import digest

NOW = 1_000_000.0


class Clocks:
    def __init__(self) -> None:
        self.now = NOW
        self.monotonic = 50.0

    def cache(self, size: int = 100) -> ExchangeCache:
        return ExchangeCache(size, now=lambda: self.now, monotonic=lambda: self.monotonic)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.monotonic += seconds


def issued(token: str = "issued", *, expires_in: float | None = None, expires_at: float | None = None) -> Issued:
    return Issued(token, expires_in, expires_at, has_claims=False, has_actor=False)


@pytest.mark.parametrize(
    ("expires_in", "expires_at", "subject", "seconds"),
    [
        (300.0, None, NOW + 3600, 270.0),
        (100.0, None, NOW + 3600, 90.0),
        (7200.0, None, NOW + 3600, 3570.0),
        (None, NOW + 300, NOW + 3600, 270.0),
        (3600.0, NOW + 300, NOW + 3600, 270.0),
        (None, None, NOW + 3600, 3570.0),
        (3600.0, None, None, 54.0),
        (None, None, None, 54.0),
        (0.0, None, NOW + 3600, 0.0),
        (300.0, NOW - 10, NOW + 3600, 0.0),
        (300.0, None, NOW - 1, 0.0),
    ],
)
def test_a_result_is_used_for_the_shortest_life_less_a_margin(
    expires_in: float | None, expires_at: float | None, subject: float | None, seconds: float
) -> None:
    """A result is used until a safety margin before the token or its subject token expires."""
    clocks = Clocks()
    cache = clocks.cache()

    cache.put(b"k", issued(expires_in=expires_in, expires_at=expires_at), subject)

    if seconds:
        clocks.wait(seconds - 0.5)
        assert cache.get(b"k") is not None
        clocks.wait(0.6)
    assert cache.get(b"k") is None


def test_a_clock_that_is_set_forward_ends_the_use() -> None:
    """Setting the clock forward ends the use of a result, because the monotonic clock might stop during sleep."""
    clocks = Clocks()
    cache = clocks.cache()
    cache.put(b"k", issued(expires_in=300.0), NOW + 600)

    clocks.now += 601

    assert cache.get(b"k") is None


@pytest.mark.parametrize(("error", "seconds"), [("unavailable", 1), ("timeout", 1), ("invalid_grant", 5)])
def test_a_failure_is_remembered_for_a_moment(error: ExchangeError, seconds: float) -> None:
    """A failure is remembered for a moment, without its traceback, which refers to tokens."""
    clocks = Clocks()
    cache = clocks.cache()
    try:
        raise ExchangeFailed(error, "status 400", claims_challenge="c")
    except ExchangeFailed as failure:
        cache.put_failure(b"k", failure)

    kept = cache.failure(b"k")
    assert kept is not None
    assert (kept.error, kept.claims_challenge, kept.__traceback__, kept.__context__) == (error, "c", None, None)
    clocks.wait(seconds + 0.1)
    assert cache.failure(b"k") is None


def test_failures_evict_no_success() -> None:
    """Failures of made-up tokens do not evict successful results."""
    cache = Clocks().cache()
    cache.put(b"good", issued(), NOW + 600)

    for number in range(10_000):
        cache.put_failure(b"%d" % number, ExchangeFailed("invalid_grant"))

    assert cache.get(b"good") is not None
    assert len(cache._failures) <= 1024


def test_a_success_ends_a_failure() -> None:
    """A success replaces an earlier failure of the same exchange."""
    cache = Clocks().cache()
    cache.put_failure(b"k", ExchangeFailed("unavailable"))

    cache.put(b"k", issued(), NOW + 600)
    assert cache.failure(b"k") is None


REQUESTS = [
    Request("token-exchange", audience="a"),
    Request("on-behalf-of", audience="a"),
    Request(resource="a"),
    Request(scope="a"),
    Request(audience="a", scope="b"),
    Request(audience="a", resource="b"),
    Request(audience="ab"),
    Request(audience="a", expected=("b",)),
    Request(audience="a", expected=("b", "c")),
    Request(audience="a", expected=("bc",)),
    Request(audience=""),
    Request(audience="-"),
]


def test_no_two_different_exchanges_have_the_same_key() -> None:
    """The cache key depends on the subject, endpoint, client, grant, audience, resource, scope, and actor."""
    combinations: Any = itertools.product(
        ("alice", "alic", "alicee", "bob"),
        ("https://idp/token", "https://idp/oauth"),
        ("client", "nclient"),
        REQUESTS,
        (b"", digest("actor"), digest("actor2")),
    )
    keys = [
        key_of(digest(subject), endpoint_hash(endpoint, client, request), actor)
        for subject, endpoint, client, request, actor in combinations
    ]

    assert len(set(keys)) == len(keys) == 4 * 2 * 2 * len(REQUESTS) * 3


@given(st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3), st.text(max_size=3)), min_size=2, unique=True))
def test_parts_of_different_lengths_are_not_joined(parts: list[tuple[str, str, str]]) -> None:
    """The key parts ``("ab", "c")`` and ``("a", "bc")`` result in different keys."""
    keys = {endpoint_hash(endpoint, client, Request(audience=audience)) for endpoint, client, audience in parts}

    assert len(keys) == len(parts)


def test_nothing_in_the_cache_is_printed() -> None:
    """The cache's ``repr``, which can appear in error reports, contains no token."""
    cache = Clocks().cache()
    result = cache.put(b"k", issued("secret-token"), NOW + 600)

    assert "secret-token" not in repr(cache) + repr(result)


def test_a_rejected_result_is_dropped_unless_it_has_been_replaced() -> None:
    """A late rejection of an old token does not remove the token that replaced it."""
    cache = Clocks().cache()
    cache.put(b"k", issued("first"), NOW + 600)
    cache.put(b"k", issued("second"), NOW + 600)

    cache.drop(b"k", BearerToken("first"))
    assert cache.get(b"k") is not None
    cache.drop(b"k", BearerToken("second"))
    assert cache.get(b"k") is None
    cache.drop(b"k", BearerToken("second"))


def test_one_result_has_several_keys() -> None:
    """A result can be stored under the keys of equal requests."""
    cache = Clocks().cache()
    result = cache.put(b"k", issued(), NOW + 600)
    cache.keep(b"l", result)
    assert cache.get(b"l") is result


def test_a_subject_token_that_has_been_exchanged_is_recognized() -> None:
    """The same subject token is recognized with any destination, and a different subject token is not."""
    cache = Clocks().cache()
    keys = [
        key_of(digest(subject), endpoint_hash("https://idp/token", "client", Request(audience=audience)), b"")
        for subject, audience in (("alice", "a"), ("alice", "b"), ("bob", "a"))
    ]
    cache.put(keys[0], issued(), NOW + 600)
    assert [cache.has_succeeded(key) for key in keys] == [True, True, False]
