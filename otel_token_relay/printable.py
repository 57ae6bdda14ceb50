"""Make text safe for terminals and logs by escaping and truncating it."""

from __future__ import annotations


def escape(text: str) -> str:
    """Return *text* with all characters escaped except printable ASCII characters."""
    return "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in text)


def shorten(text: str, limit: int) -> str:
    """Return *text* truncated to at most *limit* characters. Truncated text ends with ``...``."""
    return text if len(text) <= limit else f"{text[: max(0, limit - 3)]}..."
