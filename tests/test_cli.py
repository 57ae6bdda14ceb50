"""The command line: parse it, run one command, and return its status."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path

import pytest

from otel_token_relay import cli
from otel_token_relay.commands import INTERRUPTED, PROBLEM, USAGE_ERROR, UsageError, demo


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(options: object) -> int:
        raise error

    monkeypatch.setattr(demo, "run", run)


def test_version_names_the_package_python_and_opentelemetry(capsys: pytest.CaptureFixture[str]) -> None:
    """The versions are what a bug report needs."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])

    assert ended.value.code == 0
    assert re.fullmatch(
        r"otel-token-relay \d\S* \(Python 3\.\d+\.\d+\S*, OpenTelemetry 1\.\d+\S*\)\n", capsys.readouterr().out
    )


def test_without_a_command_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """It lists every command, on standard error."""
    assert cli.main([]) == USAGE_ERROR

    shown = capsys.readouterr()
    assert shown.out == ""
    for command in ("check", "explain", "verify", "demo", "picture"):
        assert re.search(rf"^    {command} ", shown.err, re.M)


def test_an_unknown_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the option."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", "--recrod", "run.json"])

    assert ended.value.code == USAGE_ERROR
    assert "--recrod" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), INTERRUPTED, ""),
        (UsageError("the file is missing"), USAGE_ERROR, "otel-token-relay demo: error: the file is missing\n"),
        (BrokenPipeError(32, "Broken pipe"), PROBLEM, ""),
        (
            OSError(28, "No space left on device"),
            PROBLEM,
            "otel-token-relay: error: cannot write the output: No space left on device\n",
        ),
    ],
    ids=["interrupt", "usage", "closed pipe", "full disk"],
)
def test_an_expected_error_has_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    error: BaseException,
    status: int,
    message: str,
) -> None:
    """Each kind of error has its own exit status."""
    fail_with(monkeypatch, error)
    with (tmp_path / "output").open("w") as output:
        monkeypatch.setattr(sys, "stdout", output)

        assert cli.main(["demo"]) == status

    assert capsys.readouterr().err == message


def test_an_unexpected_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback is what a bug report needs."""
    fail_with(monkeypatch, ZeroDivisionError())

    with pytest.raises(ZeroDivisionError):
        cli.main(["demo"])


def test_closed_streams_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python sets a stream to ``None`` if the shell has closed it."""
    monkeypatch.setattr(demo, "run", lambda options: int(not sys.stdout.write("relayed")))
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)

    assert cli.main(["demo"]) == 0
    assert (sys.stdout.name, sys.stderr.name) == (os.devnull, os.devnull)
    sys.stdout.close()
    sys.stderr.close()


def test_output_that_the_terminal_cannot_encode_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command can quote what the user has typed."""
    written = io.BytesIO()
    monkeypatch.setattr(demo, "run", lambda options: int(not sys.stdout.write("h\u00f6st\n")))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))

    assert cli.main(["demo"]) == 0
    assert written.getvalue() == b"h\\xf6st\n"
