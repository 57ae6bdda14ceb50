"""Kill a program and its process group when the parent process exits, even if the parent is killed.

The parent keeps the write end of a pipe open. The operating system closes the write end when the parent exits. The
parent runs this file as a script, which forks a guard process and then executes the program. Because the program
replaces the script, it has the process ID that the parent expects. The guard waits for the pipe to close. A closed pipe
stays closed, so the guard also works if the parent exits before the guard starts to wait.

The program must be the leader of a process group (``start_new_session=True``). The guard belongs to the same group and
kills every process in the group. The guard ignores the signals that ask a program to exit, so the parent must send
SIGKILL to stop the group.

This module imports nothing from the rest of the package, because such imports would take longer than the script itself.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

# The script inherits only file descriptors below this number. On systems without the `close_range` system call, closing
# all possible file descriptors would take a long time.
_ABOVE_ALL_FDS = 1 << 16


def tie(command: Sequence[str], lifeline: int) -> list[str]:
    """Return a command that runs *command* until the process that keeps the pipe's write end open exits.

    Args:
        lifeline: The read end of the pipe, which the program must inherit (``pass_fds``). Only the parent may keep the
            write end open.
    """
    return [sys.executable, "-I", "-S", __file__, str(lifeline), *command]


def main() -> None:
    """Fork the guard, and then execute the program."""
    lifeline = int(sys.argv[1])
    if os.fork() == 0:
        _guard(lifeline)
    os.close(lifeline)
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  # the caller chooses the command


def _guard(lifeline: int) -> None:
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # Close the file descriptors that the guard inherited, such as the program's output and listening socket.
        os.closerange(0, lifeline)
        os.closerange(lifeline + 1, _ABOVE_ALL_FDS)
        os.read(lifeline, 1)
    finally:
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
