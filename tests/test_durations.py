"""A duration is a number of seconds, and any other value is an error at startup."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay import Settings
from otel_token_relay.durations import check_seconds
from otel_token_relay.errors import ConfigurationError


@pytest.mark.parametrize("value", [0, 0.0, 1e-9, 1, 2.5, 300, 999_999_999, math.nextafter(1e9, 0)])
def test_seconds_from_zero_to_thirty_years_are_accepted(value: float) -> None:
    """Durations from zero to thirty years are accepted, including fractions of a second."""
    check_seconds("max_age", value)


@pytest.mark.parametrize(
    "value",
    [-1, -1e-9, 1e9, 10**400, math.inf, -math.inf, math.nan, True, False, "5", b"5", None, [5], Decimal(5)],
    ids=lambda value: f"{type(value).__name__} {str(value)[:12]}",
)
def test_another_value_is_an_error(value: object) -> None:
    """The error for an invalid value contains the setting's name but not the value, which could be a secret."""
    with pytest.raises(ConfigurationError) as caught:
        check_seconds("max_age", value)

    assert (caught.value.setting, caught.value.problem) == ("max_age", "expected a number of seconds, 0 or more")


@given(st.one_of(st.floats(), st.integers(), st.text(), st.binary(), st.none(), st.booleans()))
def test_no_value_raises_another_error(value: object) -> None:
    """Any value either can be compared with a clock or raises `ConfigurationError`."""
    try:
        check_seconds("linger", value)
    except ConfigurationError:
        return

    assert isinstance(value, (int, float))
    assert 0 <= value < math.inf


def test_settings_check_their_durations() -> None:
    """The settings check their durations and use the field's name in the error."""
    with pytest.raises(ConfigurationError, match=r"^max_age: expected a number of seconds"):
        Settings(max_age=-1)
