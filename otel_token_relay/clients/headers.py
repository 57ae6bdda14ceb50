"""Normalize header names, which applications write in different forms."""

from __future__ import annotations


def lower(name: str | bytes) -> str:
    """Return *name* in lowercase. Clients based on http.client also accept bytes."""
    return (name.decode("latin-1") if isinstance(name, bytes) else name).lower()
