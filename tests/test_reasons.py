"""Reasons are a closed set of stable strings, each with a meaning and advice."""

from __future__ import annotations

import copy
import pickle

import pytest

from otel_token_relay.reasons import Reason

every_reason = pytest.mark.parametrize("reason", Reason, ids=str)


def test_the_strings_are_stable() -> None:
    """The strings are stable, because operators alert on them."""
    assert [str(reason) for reason in Reason] == [
        "relayed",
        "exchanged",
        "own",
        "no_token",
        "no_boundary",
        "destination_unknown",
        "destination_not_listed",
        "explicit_credential",
        "expired",
        "too_old",
        "lease_ended",
        "other_process",
        "sender_constrained",
        "not_verified",
        "exchange_failed",
        "suppressed",
        "absent",
        "malformed",
        "ambiguous",
        "too_long",
    ]


@every_reason
def test_a_reason_is_its_string(reason: Reason) -> None:
    """A reason's value, lowercase name, and text in messages are the same string."""
    assert str(reason) == f"{reason}" == reason.value == reason.name.lower()
    assert Reason(reason.value) is reason


@every_reason
def test_a_reason_states_what_happened_and_what_to_do(reason: Reason) -> None:
    """A reason's meaning has at most two sentences, and its advice has at most three."""
    assert reason.meaning.endswith(".")
    assert 1 <= reason.meaning.count(". ") + 1 <= 2
    assert reason.advice.endswith(".")
    assert 1 <= reason.advice.count(". ") + 1 <= 3
    assert reason.meaning != reason.advice


@every_reason
def test_a_reason_is_a_singleton_in_every_process(reason: Reason) -> None:
    """A reason is a singleton in every process, because its hash depends on the object's identity."""
    assert copy.deepcopy(reason) is pickle.loads(pickle.dumps(reason)) is reason
    assert {reason: "found"}[Reason(reason.value)] == "found"
    assert hash(reason) == object.__hash__(reason)


@pytest.mark.parametrize("text", ["RELAYED", "unknown", "", None, "relayed "])
def test_another_string_is_not_a_reason(text: object) -> None:
    """A string outside the closed, case-sensitive set is not a reason."""
    with pytest.raises(ValueError, match="is not a valid Reason"):
        Reason(text)  # type: ignore[call-arg]  # the lookup by value takes one argument
