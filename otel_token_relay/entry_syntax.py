"""The parameters of allow-list entries."""

from __future__ import annotations

import re
from typing import Final, Literal

Grant = Literal["token-exchange", "on-behalf-of"]
GRANTS: Final[tuple[Grant, ...]] = ("token-exchange", "on-behalf-of")
"""The grants for token exchange: the RFC 8693 grant and Microsoft Entra's on-behalf-of grant."""

Retry = Literal["off", "idempotent"]
RETRIES: Final[tuple[Retry, ...]] = ("off", "idempotent")
"""The policies for retrying a request once with a new token after its token is rejected."""

FLAGS: Final = ("required", "never")
EXCHANGE_PARAMETERS: Final = ("audience", "scope", "resource")
"""The parameters that enable token exchange for a destination."""
TEXT_PARAMETERS: Final = (*EXCHANGE_PARAMETERS, "expect", "grant", "without-user", "retry")
PARAMETERS: Final = FLAGS + TEXT_PARAMETERS

CONTAINS_COMMA: Final = (
    "it contains a comma; write a comma in a value as %2C, include the scheme (such as https://) in an entry that"
    " follows parameters, and in code, pass each entry as a separate string"
)

# A colon is accepted instead of an equals sign unless a number follows: ``scope:8443`` could be a host and a port.
_is_parameter: Final = re.compile(
    rf"\s*(?:;|(?:{'|'.join(FLAGS)})\s*(?:;|$)|[A-Za-z_-]+\s*=|(?:{'|'.join(TEXT_PARAMETERS)})\s*:\s*[^\s\d*])",
    re.IGNORECASE,
).match


def field_of(parameter: str) -> str:
    """Return a parameter's field name in `Destination`, which is also the parameter's key in a configuration file."""
    return parameter.replace("-", "_")


def is_parameter(item: str) -> bool:
    """Return whether a list item is a parameter of the preceding entry that follows a comma instead of a semicolon."""
    return _is_parameter(item) is not None
