"""Names of headers, as applications spell them."""

from __future__ import annotations


def lower(name: str | bytes) -> str:
    """Give the name in lower case. Clients that build on http.client also take bytes."""
    return (name.decode("latin-1") if isinstance(name, bytes) else name).lower()
