"""The parameters of allow-list entries."""

from __future__ import annotations

import re
from typing import Final, Literal

Grant = Literal["token-exchange", "on-behalf-of"]
GRANTS: Final[tuple[Grant, ...]] = ("token-exchange", "on-behalf-of")
"""How a caller's token is exchanged: according to RFC 8693, or with Microsoft Entra's grant."""

Retry = Literal["off", "idempotent"]
RETRIES: Final[tuple[Retry, ...]] = ("off", "idempotent")
"""Whether a request whose token is rejected is retried once with a new token."""

FLAGS: Final = ("required", "never")
EXCHANGE_PARAMETERS: Final = ("audience", "scope", "resource")
"""The parameters that cause a destination to receive an exchanged token."""
TEXT_PARAMETERS: Final = (*EXCHANGE_PARAMETERS, "expect", "grant", "without-user", "retry")
PARAMETERS: Final = FLAGS + TEXT_PARAMETERS

CONTAINS_COMMA: Final = (
    "it contains a comma; write a comma in a value as %2C, start an entry after parameters with its scheme, such as"
    " https://, and in code pass each entry as a separate string"
)

# A colon may replace the equals sign unless a number follows it: ``scope:8443`` could be a host and a port.
_is_parameter: Final = re.compile(
    rf"\s*(?:;|(?:{'|'.join(FLAGS)})\s*(?:;|$)|[A-Za-z_-]+\s*=|(?:{'|'.join(TEXT_PARAMETERS)})\s*:\s*[^\s\d*])",
    re.IGNORECASE,
).match


def field_of(parameter: str) -> str:
    """Return the name of a parameter's field in `Destination`, which is also its key in a configuration file."""
    return parameter.replace("-", "_")


def is_parameter(item: str) -> bool:
    """Return whether a list item is a parameter that belongs to the preceding entry but was written after a comma."""
    return _is_parameter(item) is not None
