"""Normalize header names for comparison."""

from __future__ import annotations


def lower(name: str | bytes) -> str:
    """Return a header name in lowercase. Clients that are based on http.client also accept names as bytes."""
    return (name.decode("latin-1") if isinstance(name, bytes) else name).lower()
