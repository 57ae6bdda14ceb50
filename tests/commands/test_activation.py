"""The variables and the configuration file determine whether the relay is enabled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from otel_token_relay.commands.activation import context_problem, relay_problem

ALL = "set OTEL_PROPAGATORS=tracecontext,baggage,token_relay"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("token_relay", None),
        ("tracecontext, token_relay ,baggage", None),
        ("token_relay,none", None),  # loaded before ``none`` takes effect
        ("", ["is not set, so it does not contain token_relay", ALL, "or call install()"]),
        ("tracecontext,baggage", ["does not contain token_relay", ALL]),
        ("tracecontext", ["set OTEL_PROPAGATORS=tracecontext,token_relay"]),
        ("none", ["contains none before", ALL]),
        ("None,token_relay", ["contains none before", ALL]),
        ("none,nonsense", ["contains none before", ALL]),
        (" ", ["contains an empty name", "cannot start", ALL]),
        ("token_relay,", ["contains an empty name", "cannot start"]),
        ("tracecontext;token_relay", ["contains tracecontext;token_relay, which no installed", ALL]),
        (
            "tracecontext,token-relay",
            [
                "token-relay, which no installed package provides; did you mean token_relay?",
                "=tracecontext,token_relay",
            ],
        ),
        ("token relay", ["did you mean token_relay?"]),
        ("tokenrelay", ["did you mean token_relay?"]),
        ("TOKEN_RELAY", ["did you mean token_relay?"]),
        ("Token-Relay", ["did you mean token_relay?"]),
        ("token_rely", ["did you mean token_relay?"]),
        (
            "tracecontex,token_relay",
            [
                "contains tracecontex, which",
                "did you mean tracecontext?",
                "set OTEL_PROPAGATORS=tracecontext,token_relay",
            ],
        ),
        ('"tracecontext,token_relay"', ["did you mean tracecontext?", "set OTEL_PROPAGATORS=tracecontext,token_relay"]),
        ("zipkin9,token_relay", ["contains zipkin9, which no installed package provides"]),
        ("\x1b[31m" + "x" * 200, ["contains \\x1b[31mxxx"]),
    ],
)
def test_each_list_of_propagators(names: str, words: list[str] | None) -> None:
    """A problem with a list of propagators is reported with a suggested correction."""
    problem = relay_problem({"OTEL_PROPAGATORS": names})

    if words is None:
        assert problem is None
    else:
        assert problem is not None
        assert [word for word in words if word not in problem] == []
        assert "\x1b" not in problem
        assert len(problem) < 400


def test_the_configuration_file_may_switch_the_relay_on(tmp_path: Path) -> None:
    """A configuration file can enable the relay without OTEL_PROPAGATORS."""
    path = tmp_path / "otel.json"
    environ = {"OTEL_CONFIG_FILE": str(path)}
    path.write_text(json.dumps({"propagator": {"composite_list": "token_relay"}}))
    assert relay_problem(environ) is None

    path.write_text("{}")
    assert "add token_relay to propagator.composite" in (relay_problem(environ) or "")
    assert relay_problem({**environ, "OTEL_PROPAGATORS": "token_relay"}) is None

    path.write_text("{")
    assert f"correct OTEL_CONFIG_FILE, if that file contains token_relay, or {ALL}" in (relay_problem(environ) or "")


@pytest.mark.parametrize(
    ("name", "words"),
    [(None, None), ("", None), ("contextvars_context", None), ("x\x1b", "contains x\\x1b, which no installed package")],
)
def test_the_runtime_context(name: str | None, words: str | None) -> None:
    """A runtime context that OpenTelemetry cannot load is reported as a problem."""
    problem = context_problem({} if name is None else {"OTEL_PYTHON_CONTEXT": name})

    assert problem is None if words is None else words in (problem or "")
