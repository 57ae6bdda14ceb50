"""A bounded memory of verdicts, keyed by a hash, so that no token is kept."""

from __future__ import annotations

import contextlib
import hashlib
from collections import OrderedDict
from typing import Generic, TypeVar

_Entry = TypeVar("_Entry")


def digest(token: str) -> bytes:
    """Give what stands for *token*; two tokens never share one."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


class Cache(Generic[_Entry]):
    """Least recently used goes first. Safe to share between threads without a lock of its own.

    Every step is one operation of the dictionary; what can happen between two steps is that an
    entry is gone, and a lost entry costs one more verification.
    """

    __slots__ = ("_entries", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()

    def get(self, key: bytes) -> _Entry | None:
        """Give the entry and count it as used."""
        entry = self._entries.get(key)
        if entry is not None:
            with contextlib.suppress(KeyError):
                self._entries.move_to_end(key)
        return entry

    def put(self, key: bytes, entry: _Entry) -> None:
        """Keep an entry, and forget the oldest ones beyond the bound."""
        if self._size < 1:
            return
        self._entries[key] = entry
        while len(self._entries) > self._size:
            with contextlib.suppress(KeyError):
                self._entries.popitem(last=False)

    def drop(self, key: bytes) -> None:
        """Forget an entry, if it is there."""
        self._entries.pop(key, None)

    def __len__(self) -> int:
        return len(self._entries)
