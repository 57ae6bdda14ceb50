"""Read a token from standard input."""

from __future__ import annotations

import getpass
import re
import sys
from typing import Final

from otel_token_relay.commands import UsageError

# No token exceeds this limit, which is much higher than the verifier's default limit.
MAX_BYTES: Final = 1024 * 1024
# The maximum length of a line of terminal input on Linux (N_TTY) and macOS (MAX_CANON).
_LONGEST_TYPED: Final = {"linux": 4095, "darwin": 1024}

_PREFIX: Final = re.compile(r"(?:authorization[ \t]*:[ \t]*)?bearer[ \t]+", re.IGNORECASE)


class NoToken(UsageError):
    """An error raised if standard input does not contain a usable token."""


def read_token(command: str) -> tuple[str, list[str]]:
    """Read a token from standard input, and remove surrounding whitespace and the ``Bearer`` prefix.

    If standard input is a terminal, the token is not displayed while the user is typing.

    Args:
        command: The command that error messages suggest.

    Returns:
        The token and a note about each correction.

    Raises:
        NoToken: The input is empty, too large, or truncated by the terminal.
    """
    text = (_ask(command) if sys.stdin is not None and sys.stdin.isatty() else _read()).strip()
    notes = []
    if (prefix := _PREFIX.match(text)) is not None:
        text = text[prefix.end() :]
        notes.append('The "Bearer" prefix was removed from the input.')
    if not text:
        raise NoToken(f"standard input contains no token; pass a token, for example: {command} < token.txt")
    return text, notes


def _read() -> str:
    data = b"" if sys.stdin is None else sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise NoToken(f"standard input is larger than {MAX_BYTES} bytes; expected one token")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):  # PowerShell writes files in this encoding.
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig", "replace")


def _ask(command: str) -> str:
    try:
        text = getpass.getpass("Token (not shown): ", stream=sys.stderr)
    except EOFError:
        return ""
    if len(text) >= _LONGEST_TYPED.get(sys.platform, MAX_BYTES):
        raise NoToken(
            f"the terminal truncates long lines; pass the token from a file, for example: {command} < token.txt"
        )
    return text
