"""Each exchange error has advice, and the page has the same advice."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from otel_token_relay.errors import ExchangeError
from otel_token_relay.exchange.advice import ADVICE


def test_each_error_has_advice() -> None:
    """The set of errors is closed, and the page has the same advice."""
    assert {*ADVICE} == {*get_args(ExchangeError)}
    page = (Path(__file__).parents[2] / "docs" / "exchange.md").read_text("utf-8")
    assert [error for error, advice in ADVICE.items() if f"| {advice} |" not in page] == []
