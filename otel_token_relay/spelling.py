"""Recognize misspelled names."""

from __future__ import annotations

from typing import Final

# A missing, extra or wrong letter counts as one edit; two swapped letters count as two.
_MAX_EDITS: Final = 2


def resembles(name: str, other: str) -> bool:
    """Return whether at most two single-character edits turn *name* into *other*, ignoring case."""
    if abs(len(name) - len(other)) > _MAX_EDITS:
        return False
    name, other = name.upper(), other.upper()
    # The Levenshtein distance, row by row: a row counts the edits from a prefix of *name* to each prefix of *other*.
    row = list(range(len(other) + 1))
    for count, character in enumerate(name, 1):
        diagonal, row[0] = row[0], count
        for column, opposite in enumerate(other, 1):
            cost = min(row[column] + 1, row[column - 1] + 1, diagonal + (character != opposite))
            diagonal, row[column] = row[column], cost
        if min(row) > _MAX_EDITS:
            return False
    return row[-1] <= _MAX_EDITS
