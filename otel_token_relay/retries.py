"""Decide whether a rejected request may be retried once with a new token.

A request is retried only if a retry is harmless and the response identifies the token as the cause of the rejection.
Both of the following conditions must be true:

* The method is idempotent (RFC 9110, section 9.2.2). TRACE is excluded, because its response would contain the token.
* The status is 401, and a Bearer challenge has ``error="invalid_token"`` (RFC 6750, section 3.1). Microsoft Entra's
  claims challenge, which has ``error="insufficient_claims"``, is also accepted. The challenge's ``claims`` parameter is
  a base64-encoded JSON object that the client includes in its request for a new token.

Header lines with invalid syntax are ignored. This module performs no I/O and uses no third-party libraries.

Sources: RFC 9110, section 11.6.1; https://learn.microsoft.com/entra/identity-platform/claims-challenge
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import b64decode
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
UNAUTHORIZED: Final = 401
MAX_DISCARDED: Final = 65_536
"""The maximum number of bytes to read from a 401 response so that its connection can be reused."""
DISCARD_SECONDS: Final = 1.0

_MAX_CHALLENGE: Final = 16_384
_MAX_CLAIMS: Final = 4096

# Source: RFC 9110, sections 5.6.2 (token), 5.6.4 (quoted-string), and 11.2 (token68).
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_separators: Final = re.compile(r"[ \t,]*").match
_parameter: Final = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))[ \t]*(?=,|$)').match
_scheme: Final = re.compile(rf"({_TOKEN})(?: +|[ \t]*(?=,|$))").match
_token68: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|$)").match
_escapes: Final = re.compile(r"\\(.)", re.DOTALL)


class Rejection(NamedTuple):
    """A destination's rejection of a token.

    Attributes:
        claims: The JSON text of the claims that the new token must have; ``None`` if the response does not specify
            claims.
        needs_claims: Whether a new token without these claims would also be rejected.
    """

    claims: str | None = None
    needs_claims: bool = False

    def __repr__(self) -> str:
        return f"Rejection(needs_claims={self.needs_claims})"  # the claims might identify the user


def read_rejection(values: Iterable[str]) -> Rejection | None:
    """Parse a 401 response's ``WWW-Authenticate`` headers to determine whether the token was rejected.

    Args:
        values: The values of the header lines.

    Returns:
        The rejection, or ``None`` if a new token would not help.
    """
    for value in values:
        for scheme, parameters in _challenges(value):
            if scheme == "bearer" and (rejection := _read(parameters)) is not None:
                return rejection
    return None


def _read(parameters: dict[str, str]) -> Rejection | None:
    error, claims = parameters.get("error"), _decode_claims(parameters.get("claims", ""))
    if error == "invalid_token":
        return Rejection(claims)
    if error == "insufficient_claims" and claims is not None:
        return Rejection(claims, needs_claims=True)
    return None


def _challenges(value: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the challenges in one header line. If any part of the line has invalid syntax, yield nothing."""
    found: list[tuple[str, dict[str, str]]] = []
    position = _skip(value, 0)
    while position < len(value) <= _MAX_CHALLENGE:
        if found and (parameter := _parameter(value, position)) is not None:
            name, parameters = parameter[1].lower(), found[-1][1]
            if name in parameters:  # a parameter name must not occur more than once (RFC 9110, section 11.2)
                return
            parameters[name] = _escapes.sub(r"\1", parameter[2]) if parameter[3] is None else parameter[3]
            position = _skip(value, parameter.end())
            continue
        if (scheme := _scheme(value, position)) is None:
            return
        found.append((scheme[1].lower(), {}))
        position = scheme.end()
        if _parameter(value, position) is None and (token68 := _token68(value, position)) is not None:
            position = token68.end()
        position = _skip(value, position)
    if len(value) <= _MAX_CHALLENGE:
        yield from found


def _skip(value: str, position: int) -> int:
    found = _separators(value, position)
    return position if found is None else found.end()


def _decode_claims(encoded: str) -> str | None:
    """Return the claims as JSON text, or ``None`` if *encoded* is not a base64-encoded JSON object."""
    if not 0 < len(encoded) <= _MAX_CLAIMS:
        return None
    text = encoded.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        decoded = b64decode(text + "=" * (-len(text) % 4), validate=True).decode("utf-8")
        is_object = isinstance(json.loads(decoded, parse_constant=_reject), dict)
    except (binascii.Error, ValueError, RecursionError):
        return None
    return decoded if is_object and decoded.isprintable() else None


def _reject(constant: str) -> None:
    """Reject ``NaN`` and ``Infinity``, which are not valid JSON but which Python's parser accepts."""
    raise ValueError("not JSON")
