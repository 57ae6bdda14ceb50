"""The cache stores verification results."""

from __future__ import annotations

import random
import threading

import pytest

from otel_token_relay.verification.cache import Cache, digest


def test_what_is_remembered_is_bounded() -> None:
    """The cache evicts the least recently used entry first, and a cache of size 0 stores nothing."""
    cache: Cache[int] = Cache(3)
    for number in range(3):
        cache.put(bytes([number]), number)
    cache.get(b"\0")
    cache.put(b"\3", 3)

    assert [cache.get(bytes([number])) for number in range(4)] == [0, None, 2, 3]
    assert len(cache) == 3
    none: Cache[int] = Cache(0)
    none.put(b"\0", 0)
    assert len(none) == 0


def test_the_key_of_a_token_is_its_hash() -> None:
    """The key of a token is its FIPS 180-4 hash, so the cache contains no token."""
    assert digest("abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest("abcd") != digest("abc")


def test_a_text_that_cannot_be_encoded_has_a_key_of_its_own() -> None:
    """A string with a lone surrogate raises no error and does not share another token's cache entry."""
    keys = {digest(text) for text in ("\ud800", "\udfff", "?", "\ufffd", "")}

    assert len(keys) == 5


def test_an_entry_is_replaced_and_dropped() -> None:
    """An entry can be replaced and removed, and removing a missing entry is harmless."""
    cache: Cache[str] = Cache(2)
    cache.put(b"a", "old")
    cache.put(b"a", "new")
    assert (cache.get(b"a"), len(cache)) == ("new", 1)

    for _ in range(2):
        cache.drop(b"a")
        assert (cache.get(b"a"), len(cache)) == (None, 0)


@pytest.mark.parametrize("size", [0, -1])
def test_a_cache_without_a_size_stores_nothing(size: int) -> None:
    """A cache of size 0 stores nothing, so every lookup verifies again."""
    cache: Cache[str] = Cache(size)
    cache.put(b"a", "entry")

    assert (cache.get(b"a"), len(cache)) == (None, 0)


def test_threads_share_a_cache_without_errors() -> None:
    """Concurrent threads can lose entries, but never exceed the limit or find an entry under the wrong key."""
    cache: Cache[bytes] = Cache(8)
    problems: list[object] = []
    start = threading.Barrier(4)

    def work(seed: int) -> None:
        choose = random.Random(seed)
        start.wait(10)
        try:
            for _ in range(2000):
                key = bytes([choose.randrange(16)])
                choose.choice((lambda: cache.put(key, key), lambda: cache.drop(key)))()  # noqa: B023
                found = cache.get(key)
                if found not in (None, key):
                    problems.append(found)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert problems == []
    assert len(cache) <= 8
