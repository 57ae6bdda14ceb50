"""All errors have a common base class, typed attributes, and messages without secrets."""

from __future__ import annotations

import copy
import pickle
from typing import get_args

import pytest

from otel_token_relay import errors
from otel_token_relay.errors import (
    ConfigurationError,
    ExchangeFailed,
    KeysUnavailable,
    RejectReason,
    RelayError,
    TokenRejected,
    TokenUnavailable,
)
from otel_token_relay.reasons import Reason

ERRORS = [
    pytest.param(
        ConfigurationError("destinations", "expected an origin"),
        {"setting": "destinations", "problem": "expected an origin"},
        "destinations: expected an origin",
        id="configuration",
    ),
    pytest.param(
        TokenUnavailable(Reason.EXPIRED, "https://profile-service;required"),
        {"reason": Reason.EXPIRED, "destination": "https://profile-service;required"},
        "no token to relay to https://profile-service;required: expired",
        id="unavailable",
    ),
    pytest.param(
        ExchangeFailed("invalid_grant", "status 400", claims_challenge="{}"),
        {"error": "invalid_grant", "detail": "status 400", "claims_challenge": "{}"},
        "token exchange failed: invalid_grant (status 400)",
        id="exchange",
    ),
    pytest.param(
        TokenRejected("bad_signature"), {"reason": "bad_signature"}, "token rejected: bad_signature", id="rejected"
    ),
    pytest.param(
        KeysUnavailable(),
        {"retry_after": 1.0},
        "the signing keys, the introspection result, or the revocation check is unavailable",
        id="keys",
    ),
    pytest.param(
        KeysUnavailable(7.5),
        {"retry_after": 7.5},
        "the signing keys, the introspection result, or the revocation check is unavailable",
        id="keys, with a time",
    ),
]


@pytest.mark.parametrize(("error", "attributes", "text"), ERRORS)
def test_an_error_has_its_attributes_and_its_text(error: RelayError, attributes: dict[str, object], text: str) -> None:
    """An error has attributes for callers and a text for operators."""
    assert {name: getattr(error, name) for name in attributes} == attributes
    assert str(error) == text


@pytest.mark.parametrize("transfer", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
@pytest.mark.parametrize(("error", "attributes", "text"), ERRORS)
def test_an_error_survives_the_transfer_to_another_process(
    error: RelayError, attributes: dict[str, object], text: str, transfer: object
) -> None:
    """An error can be pickled, as process pools and task queues do."""
    received = transfer(error)  # type: ignore[operator]

    assert type(received) is type(error)
    assert {name: getattr(received, name) for name in attributes} == attributes
    assert str(received) == text


def test_one_class_catches_every_error() -> None:
    """One class catches every error, only a configuration error is also a `ValueError`, and no error derives from
    another one.
    """
    classes = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, RelayError)}

    assert classes == {
        RelayError,
        ConfigurationError,
        TokenUnavailable,
        ExchangeFailed,
        TokenRejected,
        KeysUnavailable,
    }
    assert ConfigurationError.__bases__ == (RelayError, ValueError)
    assert all(c.__bases__ == (RelayError,) for c in classes - {RelayError, ConfigurationError})
    assert RelayError.__bases__ == (Exception,)


@pytest.mark.parametrize("reason", get_args(RejectReason))
def test_each_reason_of_a_rejection_is_one_stable_word(reason: RejectReason) -> None:
    """Each rejection reason is one stable word of lowercase letters and underscores, because operators alert on it."""
    assert reason.replace("_", "").isalpha()
    assert reason.islower()
    assert str(TokenRejected(reason)) == f"token rejected: {reason}"


def test_the_repr_of_a_rejection_has_no_value() -> None:
    """Tracebacks and logs show the reason and the claim's name, but no value from the token."""
    assert repr(TokenRejected("wrong_audience", "aud")) == "TokenRejected('wrong_audience', 'aud')"
