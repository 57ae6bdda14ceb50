"""Kill a program and everything that it has started as soon as the program's parent exits, even if it is killed.

The parent holds the write end of a pipe, which the operating system closes when the parent exits. This file runs as
a script between the parent and the program: it forks a guard, which waits for the pipe to close, and then becomes the
program, so the program has the process ID that the parent expects. A closed pipe stays closed, so it does not matter
whether the parent exits before or after the guard starts to wait.

The program must lead a process group (``start_new_session=True``). The guard belongs to that group and kills all of
it. The guard ignores the signals that ask programs to exit, so the parent must finally send SIGKILL to the group.

Importing this module loads nothing else from this package, because loading the rest would take longer than running
the script.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

# The program inherits only file descriptors that its parent specifies, which are below this number. On systems
# without the `close_range` call, closing all possible descriptors would take a long time.
_ABOVE_ALL_FDS = 1 << 16


def tie(command: Sequence[str], lifeline: int) -> list[str]:
    """Return the command that runs *command* only as long as the process that holds the pipe's write end is alive.

    Args:
        lifeline: The read end of the pipe, which the program must inherit (``pass_fds``). Only the parent may hold
            the write end.
    """
    return [sys.executable, "-I", "-S", __file__, str(lifeline), *command]


def main() -> None:
    """Fork the guard, then become the program."""
    lifeline = int(sys.argv[1])
    if os.fork() == 0:
        _guard(lifeline)
    os.close(lifeline)
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  # the caller chooses the command


def _guard(lifeline: int) -> None:
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # Keep neither the program's output nor its listener open.
        os.closerange(0, lifeline)
        os.closerange(lifeline + 1, _ABOVE_ALL_FDS)
        os.read(lifeline, 1)
    finally:
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
