"""Tests for ``otel-token-relay picture``: its output, and errors about files that are not recordings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from otel_token_relay import cli
from otel_token_relay.commands import picture
from tests.support.otlp_json import every_outcome

SECRET = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"


@pytest.fixture
def recording(tmp_path: Path) -> str:
    path = tmp_path / "run.json"
    path.write_text(every_outcome())
    return str(path)


def test_page_goes_to_standard_output_or_to_a_file(
    recording: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command prints the page or, with -o, writes the same page to a file and prints nothing."""
    target = tmp_path / "page.html"

    assert cli.main(["picture", recording]) == 0
    printed = capsys.readouterr().out
    assert cli.main(["picture", recording, "-o", str(target)]) == 0

    assert printed.startswith("<!doctype html>")
    assert target.read_text("ascii") == printed
    assert capsys.readouterr() == ("", "")


def test_mermaid(recording: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With --mermaid, the command prints a sequence diagram."""
    assert cli.main(["picture", recording, "--mermaid"]) == 0

    assert capsys.readouterr().out.startswith("sequenceDiagram\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SECRET.encode(), "the file is not JSON"),
        (f'{{"token": "{SECRET}"}}'.encode(), "the file is JSON, but not OTLP"),
        (b"\xff\xfe" + SECRET.encode(), "the file is not UTF-8 text"),
        (b"", "the file is empty"),
    ],
)
def test_another_file_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    """A file that is not a recording causes a usage error that quotes neither the file's content nor its name."""
    path = tmp_path / SECRET
    path.write_bytes(content)

    assert cli.main(["picture", str(path)]) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert SECRET[:20] not in err


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing.json", "No such file"), (".", "Is a directory"), ("a\0b", "its name is invalid")],
)
def test_a_file_that_cannot_be_read_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    """A file that cannot be read causes a usage error that contains the reason."""
    assert cli.main(["picture", os.path.join(tmp_path, name)]) == 2

    assert message in capsys.readouterr().err


def test_a_large_file_is_a_usage_error(
    recording: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is too large causes a usage error and is not read completely."""
    monkeypatch.setattr(picture, "MAX_BYTES", 1000)

    assert cli.main(["picture", recording]) == 2

    assert "the file is larger than" in capsys.readouterr().err


def test_a_page_that_cannot_be_written(recording: str, tmp_path: Path) -> None:
    """If the page cannot be written, the command exits with 1 and prints no traceback."""
    command = [sys.executable, "-m", "otel_token_relay", "picture", recording, "-o", str(tmp_path / "no" / "page.html")]

    ran = subprocess.run(command, capture_output=True, text=True)

    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "otel-token-relay: error: cannot write the output: No such file or directory\n"
