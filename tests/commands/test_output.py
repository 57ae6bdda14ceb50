"""Printed lines: wrapped only on a terminal, and always printable ASCII."""

from __future__ import annotations

import os
import pty
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from otel_token_relay.commands.output import emphasize, say

WORDS = "The relay is off, because OTEL_PROPAGATORS does not contain token_relay."


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Make standard output a terminal of 40 columns. Yields a function that returns its lines up to an empty one."""
    ours, theirs = pty.openpty()
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def displayed() -> str:
        sys.stdout.flush()
        shown = ""
        while not shown.endswith("\n\n"):
            shown += os.read(ours, 65536).decode().replace("\r\n", "\n")
        return shown

    with open(theirs, "w") as output, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        yield displayed
    os.close(ours)


def test_a_program_gets_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A program that reads the output can match whole sentences."""
    say(WORDS * 4, indent=2)
    say()

    assert capsys.readouterr().out == f"  {WORDS * 4}\n\n"


def test_a_terminal_gets_lines_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Continuation lines have a larger indent, and no word is broken."""
    with terminal(monkeypatch) as displayed:
        say(WORDS, indent=2)
        say()
        shown = displayed()

    assert shown == "  The relay is off, because\n    OTEL_PROPAGATORS does not contain\n    token_relay.\n\n"


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """Input that is quoted must not control the terminal."""
    say("https://\x1b[31mhost")

    assert capsys.readouterr().out == "https://\\x1b[31mhost\n"


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [("LANG", "C", "\x1b[1mrelayed\x1b[0m"), ("NO_COLOR", "1", "relayed"), ("TERM", "dumb", "relayed")],
    ids=["terminal", "NO_COLOR", "dumb terminal"],
)
def test_bold_text_is_for_terminals(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: str) -> None:
    """NO_COLOR and a dumb terminal switch it off."""
    with terminal(monkeypatch):
        monkeypatch.setenv(variable, value)
        found = emphasize("relayed")

    assert found == expected


def test_bold_text_is_not_for_files(capsys: pytest.CaptureFixture[str]) -> None:
    """A file contains the text alone."""
    assert emphasize("relayed") == "relayed"
