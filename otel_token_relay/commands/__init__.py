"""The ``otel-token-relay`` commands, one per module. Each module defines ``add_parser`` and ``run``.

``run`` returns one of the exit statuses below. For a usage error, argparse exits with status 2, and a command that
detects the error itself raises `UsageError`.
"""

from __future__ import annotations

from typing import Final

OK: Final = 0
PROBLEM: Final = 1
USAGE_ERROR: Final = 2
NO_RESPONSE: Final = 3
INTERRUPTED: Final = 130  # the shell convention: 128 plus the signal number of SIGINT


class UsageError(Exception):
    """The command cannot run with these arguments or this input. The message explains why and is safe to print."""
