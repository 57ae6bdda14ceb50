"""The commands can read the environment of another process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from otel_token_relay.commands import processes
from otel_token_relay.commands.processes import ProcessUnreadable, environment_of
from otel_token_relay.configuration_file import read_configuration_file


@contextmanager
def process(tmp_path: Path, **environ: str) -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"], env=environ, cwd=tmp_path) as running:
        try:
            yield running.pid
        finally:
            running.kill()


def test_the_variables_at_the_start_are_returned(tmp_path: Path) -> None:
    """The variables with which the process was started are returned, regardless of the characters in their values."""
    with process(tmp_path, A="1=2\n3", B="ä", C="") as pid:
        assert environment_of(pid) == {"A": "1=2\n3", "B": "ä", "C": ""}


@pytest.mark.parametrize("is_absolute", [True, False])
def test_the_configuration_file_is_found_from_here(tmp_path: Path, is_absolute: bool) -> None:
    """A relative path of the configuration file is resolved against the working directory of the process."""
    (tmp_path / "otel.json").write_text('{"propagator": {"composite_list": "token_relay"}}')
    name = str(tmp_path / "otel.json") if is_absolute else "otel.json"
    with process(tmp_path, OTEL_CONFIG_FILE=name) as pid:
        assert read_configuration_file(environment_of(pid)).names_propagator


@pytest.mark.parametrize("pid", [-1, 0, 2**31])
def test_a_process_that_does_not_exist_is_an_error(pid: int) -> None:
    """A process that does not exist causes an error that contains its ID."""
    with pytest.raises(ProcessUnreadable, match=f"process {pid} does not exist"):
        environment_of(pid)


def test_a_process_of_another_user_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreadable process of another user causes an error, which the test simulates because it might run as root."""

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(processes.Path, "read_bytes", refuse)
    with pytest.raises(ProcessUnreadable, match="belongs to another user"):
        environment_of(os.getpid())


def test_another_system_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a system other than Linux, reading a process's environment is an error."""
    monkeypatch.setattr(processes.Path, "exists", lambda _: False)
    with pytest.raises(ProcessUnreadable, match="requires Linux"):
        environment_of(os.getpid())


def test_the_environment_of_a_new_process_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has not executed its program yet has an empty environment file."""
    contents = iter([b"", b"A=1\0"])
    monkeypatch.setattr(processes.Path, "read_bytes", lambda path: next(contents))
    assert environment_of(os.getpid()) == {"A": "1"}
