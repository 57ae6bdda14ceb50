"""The parameters of entries in the list of destinations."""

from __future__ import annotations

import re
from typing import Final

FLAGS: Final = ("required", "never")
TEXT_PARAMETERS: Final = ("audience", "scope", "resource")
PARAMETERS: Final = FLAGS + TEXT_PARAMETERS

CONTAINS_COMMA: Final = (
    "it contains a comma; write a comma in a value as %2C, start an entry after parameters with its scheme, such as"
    " https://, and in code pass each entry as a separate string"
)

_is_parameter: Final = re.compile(rf"\s*(?:;|(?:{'|'.join(FLAGS)})\s*(?:;|$)|[A-Za-z_-]+\s*=)", re.IGNORECASE).match


def is_parameter(item: str) -> bool:
    """Return whether an item of the list is a parameter of the entry before it, written after a comma."""
    return _is_parameter(item) is not None
