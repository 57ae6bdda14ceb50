"""Make text safe to print in terminals and logs: printable ASCII of limited length."""

from __future__ import annotations


def escape(text: str) -> str:
    """Return *text* with all characters other than printable ASCII escaped, such as terminal control characters."""
    return "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in text)


def shorten(text: str, limit: int) -> str:
    """Return *text*, truncated to *limit* characters. Truncated text ends with ``...``."""
    return text if len(text) <= limit else f"{text[: max(0, limit - 3)]}..."
