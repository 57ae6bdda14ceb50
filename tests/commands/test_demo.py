"""The command ``demo``: pass its option to the demo, and name what is missing."""

from __future__ import annotations

import pytest

import otel_token_relay.demo
from otel_token_relay.cli import main
from otel_token_relay.commands import USAGE_ERROR


@pytest.mark.parametrize(
    ("arguments", "file"), [([], None), (["--record", "run.json"], "run.json")], ids=["plain", "recorded"]
)
def test_the_demo_runs_with_the_option(monkeypatch: pytest.MonkeyPatch, arguments: list[str], file: str | None) -> None:
    """Its exit status is the demo's. tests/demo runs the real demo."""
    ran: list[str | None] = []
    monkeypatch.setattr(otel_token_relay.demo, "run", lambda record: ran.append(record) or 3)

    assert main(["demo", *arguments]) == 3
    assert ran == [file]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The message contains the command that installs it."""

    def run(record: str | None) -> int:
        raise ModuleNotFoundError("No module named 'flask'", name="flask")

    monkeypatch.setattr(otel_token_relay.demo, "run", run)

    assert main(["demo"]) == USAGE_ERROR
    assert capsys.readouterr().err == (
        "the demo requires the 'demo' extra: pip install 'otel-token-relay[demo]' (flask is missing)\n"
    )
