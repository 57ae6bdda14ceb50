"""Whether the relay is on, judged from the variables and the configuration file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from otel_token_relay.commands.activation import relay_problem


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("token_relay", None),
        ("tracecontext, token_relay ,baggage", None),
        ("token_relay,none", None),  # loaded before none
        ("", "does not contain token_relay"),
        ("tracecontext,baggage", "does not contain token_relay"),
        ("none", "contains none before"),
        ("None,token_relay", "contains none before"),
        ("none,nonsense", "contains none before"),
        (" ", "there is no propagator (empty)"),
        ("token_relay,", "there is no propagator (empty)"),
        ("tracecontext;token_relay", "there is no propagator tracecontext;token_relay"),
        ("tracecontext,token-relay", "did you mean token_relay?"),
        ("tracecontext,token relay", "did you mean token_relay?"),
        ("tokenrelay", "did you mean token_relay?"),
        ("TOKEN_RELAY", "did you mean token_relay?"),
        ("token_rely", "did you mean token_relay?"),
        ("tracecontex,token_relay", "did you mean tracecontext?"),
        ("zipkin9,token_relay", "install the package that contains it"),
        ("\x1b[31m" + "x" * 200, "there is no propagator \\x1b[31mxxx"),
    ],
)
def test_each_list_of_propagators(names: str, words: str | None) -> None:
    """The problem names what is wrong, and what was probably meant."""
    problem = relay_problem({"OTEL_PROPAGATORS": names})

    if words is None:
        assert problem is None
    else:
        assert problem is not None
        assert words in problem
        assert "\x1b" not in problem
        assert len(problem) < 400


def test_the_configuration_file_may_switch_the_relay_on(tmp_path: Path) -> None:
    """OTEL_PROPAGATORS is then not needed."""
    path = tmp_path / "otel.json"
    environ = {"OTEL_CONFIG_FILE": str(path)}
    path.write_text(json.dumps({"propagator": {"composite_list": "token_relay"}}))
    assert relay_problem(environ) is None

    path.write_text("{}")
    assert "add token_relay to propagator.composite" in (relay_problem(environ) or "")
    assert relay_problem({**environ, "OTEL_PROPAGATORS": "token_relay"}) is None
