"""Print text with long lines wrapped and with all characters except printable ASCII escaped."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import Final

from otel_token_relay.printable import escape

__all__ = ["emphasize", "escape", "say"]

# Longer lines are hard to read, even on a wide terminal.
_MAX_WIDTH: Final = 120


def say(text: str = "", *, indent: int = 0) -> None:
    """Print one paragraph.

    To keep redirected output easy to parse, the text is wrapped only if standard output is a terminal.

    Args:
        text: A sentence or a list item.
        indent: The number of spaces before the first line. Continuation lines are indented by two additional spaces.
    """
    text = escape(text)
    first = " " * indent
    if not sys.stdout.isatty():
        print(first + text)
        return
    width = min(shutil.get_terminal_size().columns, _MAX_WIDTH)
    lines = textwrap.wrap(
        text,
        max(width, 20),
        initial_indent=first,
        subsequent_indent=first + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    print(*lines or [""], sep="\n")


def emphasize(text: str) -> str:
    """Return *text* in bold if standard output is a terminal that supports bold text and NO_COLOR is not set.

    Do not pass the result to `say`, which escapes the formatting characters.
    """
    is_plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if is_plain else f"\x1b[1m{text}\x1b[0m"
