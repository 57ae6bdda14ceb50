"""The commands of ``otel-token-relay``, one module for each. Each defines ``add_parser`` and ``run``.

``run`` returns one of the statuses below. argparse exits with 2 for a usage error, and a command that finds a usage
error itself raises `UsageError`.
"""

from __future__ import annotations

from typing import Final

OK: Final = 0
PROBLEM: Final = 1
USAGE_ERROR: Final = 2
NO_RESPONSE: Final = 3
INTERRUPTED: Final = 130  # as in shells: 128 and the number of SIGINT


class UsageError(Exception):
    """The command cannot run with these arguments or this input. The message says why and is safe to print."""
