"""Recognize misspelled names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

# A missing, extra, or wrong letter counts as one edit. Two swapped letters count as two edits.
_MAX_EDITS: Final = 2


def resembles(name: str, other: str) -> bool:
    """Return whether at most two single-character edits turn *name* into *other*, ignoring case."""
    return _distance(name, other) <= _MAX_EDITS


def nearest(name: str, names: Iterable[str], max_edits: int = _MAX_EDITS) -> str | None:
    """Return the first of the *names* that is the fewest edits away from *name*; ``None`` if none is close enough.

    Case is ignored. A name with fewer than four characters allows one fewer edit, because it resembles too many names.
    """
    found = None
    for candidate in names:
        allowed = max_edits if len(candidate) > 3 else max_edits - 1
        edits = _distance(name, candidate)
        if edits <= allowed and (found is None or edits < found[0]):
            found = edits, candidate
    return None if found is None else found[1]


def hint(name: str, names: Iterable[str]) -> str:
    """Return the most likely of the *names* as a suffix for a message; empty if none of them resembles *name*."""
    meant = nearest(name, names)
    return "" if meant is None else f"; did you mean {meant}?"


def _distance(name: str, other: str) -> int:
    """Return the number of edits, ignoring case. If it exceeds the maximum, the result can be any larger number.

    Source: the Levenshtein distance, row by row.
    """
    if abs(len(name) - len(other)) > _MAX_EDITS:
        return _MAX_EDITS + 1
    name, other = name.upper(), other.upper()
    # A row counts the edits from a prefix of *name* to each prefix of *other*.
    row = list(range(len(other) + 1))
    for count, character in enumerate(name, 1):
        diagonal, row[0] = row[0], count
        for column, opposite in enumerate(other, 1):
            cost = min(row[column] + 1, row[column - 1] + 1, diagonal + (character != opposite))
            diagonal, row[column] = row[column], cost
        if min(row) > _MAX_EDITS:
            return _MAX_EDITS + 1
    return row[-1]
