"""Whether an environment switches the relay on."""

from __future__ import annotations

import importlib
import sys
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import propagate

from otel_token_relay.commands.activation import activation_problem

TO_SET = "set OTEL_PROPAGATORS=tracecontext,baggage,token_relay"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        pytest.param(None, ["is not set", TO_SET], id="unset"),
        pytest.param("", ["is not set", TO_SET], id="empty"),
        pytest.param("  ", ["blank", "does not start", TO_SET], id="blank"),
        pytest.param("tracecontext,baggage", ["does not contain token_relay", TO_SET, "install()"], id="missing"),
        pytest.param("token-relay", ["contains token-relay", "does not start", TO_SET], id="hyphen"),
        pytest.param(
            "tracecontext,tokenrelay", ["contains tokenrelay", "tracecontext,token_relay"], id="no underscore"
        ),
        pytest.param("TOKEN_RELAY", ["contains TOKEN_RELAY", TO_SET], id="upper case"),
        pytest.param(
            "token_rely,baggage", ["contains token_rely", "set OTEL_PROPAGATORS=baggage,token_relay"], id="typo"
        ),
        pytest.param("tracecontext,baggage,none,token_relay", ["contains none", TO_SET], id="none"),
        pytest.param("token_relay,NONE", ["contains none", TO_SET], id="none in upper case"),
        pytest.param("tracecontext,zipkin9,token_relay", ["contains zipkin9", "no installed package"], id="unknown"),
        pytest.param("tracecontext,,token_relay", ["contains an empty name", "does not start"], id="empty name"),
        pytest.param(
            "tracecontext;token_relay", ["tracecontext;token_relay", "does not start", TO_SET], id="semicolon"
        ),
        pytest.param("token_relay,x\x1b[0m", ["x\\x1b[0m"], id="control characters"),
    ],
)
def test_the_problem_names_the_value_and_what_to_set(value: str | None, words: list[str]) -> None:
    """The sentence is in ASCII, for terminals."""
    problem = activation_problem({} if value is None else {"OTEL_PROPAGATORS": value})

    assert problem is not None
    assert [word for word in words if word not in problem] == []
    assert problem.isprintable()


@pytest.mark.parametrize("value", ["token_relay", "tracecontext,baggage,token_relay", " baggage , token_relay "])
def test_the_relay_is_on(value: str) -> None:
    """Blanks around names are ignored, as by OpenTelemetry."""
    assert activation_problem({"OTEL_PROPAGATORS": value}) is None


def test_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A propagator is found by name only: importing it would run its code."""
    monkeypatch.delitem(sys.modules, "opentelemetry.baggage.propagation", raising=False)

    assert activation_problem({"OTEL_PROPAGATORS": "baggage,token_relay"}) is None
    assert "opentelemetry.baggage.propagation" not in sys.modules


NAMES = st.sampled_from(["tracecontext", "baggage", "token_relay", "none", "NONE", "", " ", "token-relay", "zipkin9"])


@given(st.lists(NAMES, max_size=4).map(",".join))
def test_the_problem_agrees_with_opentelemetry(value: str) -> None:
    """OpenTelemetry loads the relay's propagator exactly if no problem is reported."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("OTEL_PROPAGATORS", value)
        try:
            loaded = [type(p).__name__ for p in propagate._load_propagators()._propagators]  # type: ignore[attr-defined]
        except ValueError:
            loaded = []

    assert (activation_problem({"OTEL_PROPAGATORS": value}) is None) == ("TokenRelayPropagator" in loaded)


def test_the_module_can_be_imported_alone() -> None:
    """`check` uses it too."""
    assert importlib.import_module("otel_token_relay.commands.activation").NAME == "token_relay"
