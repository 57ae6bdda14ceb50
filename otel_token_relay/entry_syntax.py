"""Define the parameters of allow-list entries."""

from __future__ import annotations

import re
from typing import Final, Literal

Grant = Literal["token-exchange", "on-behalf-of"]
GRANTS: Final[tuple[Grant, ...]] = ("token-exchange", "on-behalf-of")
"""The grants for token exchange, as defined by RFC 8693 and by Microsoft Entra."""

Retry = Literal["off", "idempotent"]
RETRIES: Final[tuple[Retry, ...]] = ("off", "idempotent")
"""The policies for retrying a request once with a new token if the destination rejects the original token."""

FLAGS: Final = ("required", "never")
EXCHANGE_PARAMETERS: Final = ("audience", "scope", "resource")
"""The parameters that enable token exchange for a destination."""
TEXT_PARAMETERS: Final = (*EXCHANGE_PARAMETERS, "expect", "grant", "without-user", "retry")
PARAMETERS: Final = FLAGS + TEXT_PARAMETERS

CONTAINS_COMMA: Final = (
    "it contains a comma; write a comma in a value as %2C, include the scheme (such as https://) in an entry that"
    " follows parameters, and in code, pass each entry as a separate string"
)

# A colon is accepted instead of an equals sign unless a port follows the colon. For example, ``scope:8443`` could be a
# host and a port.
_is_parameter: Final = re.compile(
    rf"\s*(?:;|(?:{'|'.join(FLAGS)})\s*(?:;|$)|[A-Za-z_-]+\s*=|(?:{'|'.join(TEXT_PARAMETERS)})\s*:\s*[^\s\d*])",
    re.IGNORECASE,
).match


def field_of(parameter: str) -> str:
    """Return a parameter's field name in `Destination`, which is also its key in a configuration file."""
    return parameter.replace("-", "_")


def is_parameter(item: str) -> bool:
    """Return whether a list item is a parameter that belongs to the preceding entry, despite the comma between them."""
    return _is_parameter(item) is not None
