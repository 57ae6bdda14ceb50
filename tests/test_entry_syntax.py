"""The parameters of an entry, and which list items are parameters after a comma."""

from __future__ import annotations

import dataclasses

import pytest

from otel_token_relay import Destination
from otel_token_relay.entry_syntax import PARAMETERS, TEXT_PARAMETERS, field_of, is_parameter


@pytest.mark.parametrize("parameter", TEXT_PARAMETERS)
def test_each_parameter_is_a_field(parameter: str) -> None:
    """Code and the configuration file use an underscore, because Python requires one."""
    assert field_of(parameter) in {field.name for field in dataclasses.fields(Destination)}
    assert field_of("without-user") == "without_user"


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        *((f"{parameter};", True) for parameter in ("required", "never")),
        *((f"{parameter}=x", True) for parameter in PARAMETERS),
        ("required", True),
        (" ;required", True),
        ("AUDIENCE = billing", True),
        ("audiance=billing", True),
        ("scope:read", True),
        ("scope:8443", False),
        ("billing:8443", False),
        ("required.example", False),
        ("https://billing", False),
        ("billing", False),
        ("", False),
    ],
    ids=str,
)
def test_a_parameter_after_a_comma_is_recognized(item: str, expected: bool) -> None:
    """Anything that could be a host and a port is an entry."""
    assert is_parameter(item) is expected
