"""A bounded cache of verification results. The cache keys are hashes, so the cache does not store any tokens."""

from __future__ import annotations

import contextlib
import hashlib
from collections import OrderedDict
from typing import Generic, TypeVar

_Entry = TypeVar("_Entry")


def digest(token: str) -> bytes:
    """Return the token's SHA-256 digest, which is used as the cache key."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


class Cache(Generic[_Entry]):
    """A thread-safe, least-recently-used cache that does not use a lock.

    Each step is a single dictionary operation. Another thread can remove an entry between two steps, but a lost entry
    costs only one additional verification.
    """

    __slots__ = ("_entries", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()

    def get(self, key: bytes) -> _Entry | None:
        """Return the entry for *key*, or ``None`` if it does not exist. Mark the entry as recently used."""
        entry = self._entries.get(key)
        if entry is not None:
            with contextlib.suppress(KeyError):
                self._entries.move_to_end(key)
        return entry

    def put(self, key: bytes, entry: _Entry) -> None:
        """Store an entry. If the cache is full, evict the least recently used entries."""
        if self._size < 1:
            return
        self._entries[key] = entry
        while len(self._entries) > self._size:
            with contextlib.suppress(KeyError):
                self._entries.popitem(last=False)

    def drop(self, key: bytes) -> None:
        """Remove the entry for *key* if it exists."""
        self._entries.pop(key, None)

    def __len__(self) -> int:
        return len(self._entries)
