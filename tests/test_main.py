"""The package runs as a module exactly as the command does."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.test_check import run


def test_the_script_and_the_module_are_the_same() -> None:
    """``otel-token-relay`` and ``python -m otel_token_relay`` have the same result."""
    script = Path(sys.executable).parent / "otel-token-relay"
    command = ("explain", "https://a")

    assert run(*command, program=(str(script),)) == run(*command)


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["unknown"], 2), ([], 2)])
def test_the_exit_status_is_that_of_the_command(arguments: list[str], status: int) -> None:
    """The exit status is the command's, which scripts and container health checks use."""
    ran = subprocess.run(
        [sys.executable, "-m", "otel_token_relay", *arguments], capture_output=True, text=True, timeout=120, check=False
    )

    assert ran.returncode == status
    assert "otel-token-relay" in ran.stdout + ran.stderr


def test_importing_the_module_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Importing the module does not start the command."""
    importlib.import_module("otel_token_relay.__main__")

    assert capsys.readouterr() == ("", "")
