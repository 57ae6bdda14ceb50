"""The package runs as a module, like the command."""

from __future__ import annotations

import importlib
import runpy
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
def test_the_exit_status_is_that_of_the_command(
    arguments: list[str], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scripts and container health checks rely on it."""
    monkeypatch.setattr(sys, "argv", ["otel-token-relay", *arguments])
    monkeypatch.delitem(sys.modules, "otel_token_relay.__main__", raising=False)

    with pytest.raises(SystemExit) as exit_:
        runpy.run_module("otel_token_relay", run_name="__main__", alter_sys=True)

    assert exit_.value.code == status
    assert "otel-token-relay" in "".join(capsys.readouterr())


def test_importing_the_module_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Tools that import every module of a package do not start the command."""
    importlib.import_module("otel_token_relay.__main__")

    assert capsys.readouterr() == ("", "")
