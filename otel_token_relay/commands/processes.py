"""Read another process's environment for the ``--pid`` option, without running any of that process's code."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from otel_token_relay.commands import UsageError
from otel_token_relay.configuration_file import FILE_VARIABLE


class ProcessUnreadable(UsageError):
    """An error raised if a process's environment cannot be read."""


def environment_of(pid: int | None) -> Mapping[str, str]:
    """Return a process's initial environment variables, or the current process's variables if *pid* is ``None``.

    The result includes the variables that ``opentelemetry-instrument`` sets from its command-line flags. The
    configuration file's path is rewritten so that the current process can read the file, even if the other process runs
    in a container.

    Raises:
        ProcessUnreadable: The process does not exist or belongs to a different user, or the system is not Linux.
    """
    if pid is None:
        return os.environ
    if not Path("/proc/self/environ").exists():
        raise ProcessUnreadable("--pid requires Linux: it reads /proc/PID/environ")
    path = Path("/proc", str(pid), "environ")
    try:
        # A new process's environment file is empty until the process executes its program.
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
