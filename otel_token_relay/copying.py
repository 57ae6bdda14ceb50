"""Copy other libraries' objects."""

from __future__ import annotations

from typing import Any, TypeVar

_T = TypeVar("_T")


def shallow_copy(original: _T) -> _T:
    """Return a shallow copy of *original* without calling the constructor, which might change the attributes."""
    new = object.__new__(type(original))
    new.__dict__.update(original.__dict__)
    return new


def with_changes(original: _T, **fields: Any) -> _T:
    """Return a shallow copy with the given attributes, or *original* itself if the attributes would not change."""
    if all(getattr(original, name) is value for name, value in fields.items()):
        return original
    new = shallow_copy(original)
    for name, value in fields.items():
        setattr(new, name, value)
    return new
