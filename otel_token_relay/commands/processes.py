"""Read another process's environment for ``--pid``. None of that process's code is imported or run."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from otel_token_relay.commands import UsageError
from otel_token_relay.configuration_file import FILE_VARIABLE


class ProcessUnreadable(UsageError):
    """The process's environment cannot be read."""


def environment_of(pid: int | None) -> Mapping[str, str]:
    """Return the environment variables that a process was started with, or this process's if *pid* is ``None``.

    The variables include the flags of ``opentelemetry-instrument``, which passes its flags on as variables. The
    configuration file's name is replaced with a path through which this process can read the same file, even if the
    other process runs in a container.

    Raises:
        ProcessUnreadable: The process does not exist, it belongs to another user, or the system is not Linux.
    """
    if pid is None:
        return os.environ
    if not Path("/proc/self/environ").exists():
        raise ProcessUnreadable("--pid requires Linux: it reads /proc/PID/environ")
    path = Path("/proc", str(pid), "environ")
    try:
        # The file of a newly started process is empty until the process executes its program.
        content = path.read_bytes() or _read_later(path)
    except FileNotFoundError:
        raise ProcessUnreadable(f"process {pid} does not exist") from None
    except PermissionError:
        raise ProcessUnreadable(f"process {pid} belongs to another user") from None
    except OSError as error:
        raise ProcessUnreadable(f"the environment of process {pid} cannot be read: {error.strerror}") from None
    return _located(_parse(content), pid)


def _read_later(path: Path) -> bytes:
    time.sleep(0.1)
    return path.read_bytes()


def _parse(content: bytes) -> dict[str, str]:
    pairs = (item.partition("=") for item in os.fsdecode(content).split("\0") if "=" in item)
    return {name: value for name, _, value in pairs}


def _located(environ: dict[str, str], pid: int) -> dict[str, str]:
    if file := environ.get(FILE_VARIABLE, "").strip():
        environ[FILE_VARIABLE] = f"/proc/{pid}/root{file}" if file.startswith("/") else f"/proc/{pid}/cwd/{file}"
    return environ
