"""Detect misspelled names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

# Inserting, deleting, or replacing a character is one edit. Swapping two characters requires two edits.
_MAX_EDITS: Final = 2


def resembles(name: str, other: str) -> bool:
    """Return whether *name* and *other* differ by at most two single-character edits, ignoring case."""
    return _distance(name, other) <= _MAX_EDITS


def nearest(name: str, names: Iterable[str], max_edits: int = _MAX_EDITS) -> str | None:
    """Return the closest match for *name* among *names*; ``None`` if no name is close enough.

    Case is ignored. If two candidates are equally close, the first is returned. For a candidate with fewer than four
    characters, the maximum number of edits is reduced by one, because short names resemble too many other names.
    """
    found = None
    for candidate in names:
        allowed = max_edits if len(candidate) > 3 else max_edits - 1
        edits = _distance(name, candidate)
        if edits <= allowed and (found is None or edits < found[0]):
            found = edits, candidate
    return None if found is None else found[1]


def hint(name: str, names: Iterable[str]) -> str:
    """Return a message suffix that suggests the closest match for *name*.

    If no name is close enough, the suffix is an empty string.
    """
    meant = nearest(name, names)
    return "" if meant is None else f"; did you mean {meant}?"


def _distance(name: str, other: str) -> int:
    """Return the Levenshtein distance between *name* and *other*, ignoring case.

    If the distance exceeds ``_MAX_EDITS``, the result can be any number greater than ``_MAX_EDITS``.
    """
    if abs(len(name) - len(other)) > _MAX_EDITS:
        return _MAX_EDITS + 1
    name, other = name.upper(), other.upper()
    # Each row contains the distances between one prefix of *name* and all prefixes of *other*.
    row = list(range(len(other) + 1))
    for count, character in enumerate(name, 1):
        diagonal, row[0] = row[0], count
        for column, opposite in enumerate(other, 1):
            cost = min(row[column] + 1, row[column - 1] + 1, diagonal + (character != opposite))
            diagonal, row[column] = row[column], cost
        if min(row) > _MAX_EDITS:
            return _MAX_EDITS + 1
    return row[-1]
