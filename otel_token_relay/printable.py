"""Make text safe to print in a terminal and in a log: printable ASCII of a limited length."""

from __future__ import annotations


def escape(text: str) -> str:
    """Return *text* with each character that is not printable ASCII escaped, such as a terminal control sequence."""
    return "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in text)


def shorten(text: str, limit: int) -> str:
    """Return *text*, cut to *limit* characters. The end of a text that was cut is ``...``."""
    return text if len(text) <= limit else f"{text[: max(0, limit - 3)]}..."
