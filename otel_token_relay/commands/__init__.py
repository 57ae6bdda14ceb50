"""The ``otel-token-relay`` commands, with one module for each command.

Each module defines ``add_parser`` and ``run``. The ``run`` function returns one of the exit statuses below. If argparse
detects a usage error, the program exits with status 2. A command that detects a usage error raises `UsageError`.
"""

from __future__ import annotations

from typing import Final

OK: Final = 0
PROBLEM: Final = 1
USAGE_ERROR: Final = 2
NO_RESPONSE: Final = 3
INTERRUPTED: Final = 130  # Shells report 128 plus the signal number; SIGINT is signal 2.


class UsageError(Exception):
    """An error in the command's arguments or input. The message explains the problem but never contains tokens."""
