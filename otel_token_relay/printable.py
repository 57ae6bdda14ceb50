"""Make text safe for terminals and logs by escaping and truncating it."""

from __future__ import annotations


def escape(text: str) -> str:
    """Return *text* with every character escaped that is not printable ASCII, such as a terminal control character."""
    return "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in text)


def shorten(text: str, limit: int) -> str:
    """Return *text*, truncated to *limit* characters if necessary. Truncated text ends with ``...``."""
    return text if len(text) <= limit else f"{text[: max(0, limit - 3)]}..."
