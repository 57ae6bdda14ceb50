"""Which name a misspelled one was meant to be."""

from __future__ import annotations

from typing import Final

# A letter that is missing, added or wrong is one edit, two letters that are swapped are two.
_MAX_EDITS: Final = 2


def resembles(name: str, other: str) -> bool:
    """Return whether at most two edits of a character make one of the other, whatever their case."""
    if abs(len(name) - len(other)) > _MAX_EDITS:
        return False
    name, other = name.upper(), other.upper()
    # Levenshtein's distance, row by row: the edits from the start of one to each start of the other.
    row = list(range(len(other) + 1))
    for count, character in enumerate(name, 1):
        diagonal, row[0] = row[0], count
        for column, opposite in enumerate(other, 1):
            cost = min(row[column] + 1, row[column - 1] + 1, diagonal + (character != opposite))
            diagonal, row[column] = row[column], cost
        if min(row) > _MAX_EDITS:
            return False
    return row[-1] <= _MAX_EDITS
