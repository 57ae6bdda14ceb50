"""Entries of the list of destinations: their parameters."""

import pytest

from otel_token_relay.destinations import Destination


@pytest.mark.parametrize(
    ("entry", "shown"),
    [
        ("https://a ; required", "https://a;required"),
        ("https://a;audience=b;scope=c d;resource=e", "https://a;audience=b;scope=c d;resource=e"),
    ],
)
def test_parameters_are_read(entry, shown):
    """White space around parameters is ignored."""
    assert str(Destination.parse(entry)) == shown


@pytest.mark.parametrize(
    "entry",
    [
        "https://a;",
        "https://a;x",
        "https://a;required=yes",
        "https://a;audience",
        "https://a;audience=",
        "https://a;required;required",
    ],
)
def test_an_invalid_parameter_makes_the_entry_invalid(entry):
    """An entry with a misspelled `required` must not become a plain entry."""
    with pytest.raises(ValueError, match="parameter"):
        Destination.parse(entry)
