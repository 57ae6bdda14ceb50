"""Copy objects that belong to other libraries."""

from __future__ import annotations

from typing import TypeVar

_T = TypeVar("_T")


def shallow_copy(original: _T) -> _T:
    """Return a new object with the same state, without running a constructor that might modify that state."""
    new = object.__new__(type(original))
    new.__dict__.update(original.__dict__)
    return new
