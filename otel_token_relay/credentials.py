"""Find the token in an incoming request's headers, or determine why the request has no usable token.

This module does not verify tokens; see `otel_token_relay.authentication`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Final

from otel_token_relay.reasons import Reason
from otel_token_relay.settings import Settings
from otel_token_relay.token import B64TOKEN_ALPHABET, DEFAULT_MAX_LENGTH, BearerToken, Lease, is_b64token

_logger = logging.getLogger("otel_token_relay")

# A request's token, or the reason why the request has no usable token.
Credentials = BearerToken | Reason
# A header's name and unmodified field lines.
HeaderLines = tuple[str, Sequence[str | bytes]]
# The header that contains a request's credentials; ``None`` if no such header is present, or a reason if the headers
# cannot be read.
Source = HeaderLines | Reason | None

# The scheme and the space after it add seven characters to the length of a header line.
_SCHEME_LENGTH: Final = len("Bearer ")

# Commas can also separate the parameters of a single credential, as in Digest authentication (RFC 9110, section 11.4).
_TOKEN: Final = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_PARAMETER: Final = rf'{_TOKEN}=(?:{_TOKEN}|"(?:[^"\\]|\\.)*")'
_is_one_with_parameters = re.compile(
    rf"(?!(?ai:bearer) ){_TOKEN} +{_PARAMETER}(?:[ \t]*,[ \t]*{_PARAMETER})*"
).fullmatch


def parse_credentials(
    values: Sequence[str | bytes], *, max_length: int = DEFAULT_MAX_LENGTH, bare: bool = False
) -> str | Reason:
    """Parse one header's field lines and return the bearer token.

    Lines longer than *max_length* plus seven characters are not parsed, because the server might not limit header
    lengths.

    Args:
        values: The header's unmodified field lines, as strings or bytes. (WSGI servers join field lines with commas.)
        max_length: The maximum number of characters in the token. A longer token is rejected, not truncated.
        bare: Whether to also accept a token without a scheme, as in ``x-forwarded-access-token``.

    Returns:
        The token as a string, or one of these reasons: ``ABSENT`` (the header is missing or has a different scheme),
        ``AMBIGUOUS`` (the header has multiple field lines or contains a comma), ``MALFORMED``, or ``TOO_LONG`` (the
        token or the field line is too long).

    Source: RFC 6750, section 2.1; RFC 9110, sections 5.3, 5.5, and 11.
    """
    if len(values) != 1:
        return Reason.AMBIGUOUS if values else Reason.ABSENT
    line = values[0]
    if type(line) is bytes and line[:_SCHEME_LENGTH] == b"Bearer " and len(line) <= max_length + _SCHEME_LENGTH:
        # For speed, handle the most common syntax in a single pass.
        token_bytes = line[_SCHEME_LENGTH:]
        if token_bytes and not token_bytes.translate(None, B64TOKEN_ALPHABET):
            return token_bytes.decode("ascii")
    if len(line) > max_length and len(line) > max_length + _SCHEME_LENGTH:
        return Reason.TOO_LONG
    # Leading and trailing white space (SP, HTAB) is not part of a field value (RFC 9110, section 5.5).
    text = line.decode("latin-1") if type(line) is bytes or not isinstance(line, str) else line
    value = text.strip(" \t")
    if "," in value and not _is_one_with_parameters(value):
        return Reason.AMBIGUOUS
    # The grammar is `credentials = "Bearer" 1*SP b64token` (RFC 6750, section 2.1). The scheme is case-insensitive
    # (RFC 9110, section 11.1).
    scheme, _, token = value.partition(" ")
    if scheme == "Bearer" or scheme.lower() == "bearer":
        token = token.lstrip(" ")
    elif bare and value:
        token = value
    else:
        return Reason.ABSENT
    if not is_b64token(token):
        return Reason.MALFORMED
    return token if len(token) <= max_length else Reason.TOO_LONG


def find(values_of: Callable[[str], Sequence[str | bytes]], settings: Settings) -> HeaderLines | None:
    """Return the first source header that is present.

    Later headers are not used, even if the first header is invalid. Otherwise, an attacker who can corrupt the first
    header could make the service use a later header.

    Args:
        values_of: A function that returns the field lines of the header with the given lowercase name.
        settings: The settings, which contain the names of the source headers.
    """
    for name in settings.source_headers:
        values = values_of(name)
        if values:
            return name, values
    return None


def locate(values_of: Callable[[str], Sequence[str | bytes]], settings: Settings) -> Source:
    """Call `find`, but return ``Reason.MALFORMED`` if the headers cannot be read."""
    try:
        return find(values_of, settings)
    except Exception:  # the server passed invalid headers; the request continues without a token
        _logger.debug("cannot read the request headers", exc_info=True)
        return Reason.MALFORMED


def read(source: Source, settings: Settings, *, lease: Lease | None = None) -> Credentials:
    """Read the header that `find` or `locate` returned. Errors are logged, not raised.

    Args:
        source: The header; ``None`` if no source header is present, or a reason if the headers cannot be read.
        settings: The settings, which contain the maximum token length.
        lease: The request's lease; ``None`` if the relay cannot detect when the request ends.

    Returns:
        The token, or the reason why the request has no usable token.
    """
    # Checking for `tuple` is several times faster than checking for `Reason`, because an enumeration has a metaclass.
    if not isinstance(source, tuple):
        return source or Reason.ABSENT
    name, values = source
    try:
        found = parse_credentials(values, max_length=settings.max_length, bare=name != "authorization")
    except Exception:  # the value is not a string or bytes
        _logger.debug("cannot read the request's credentials", exc_info=True)
        return Reason.MALFORMED
    return BearerToken.from_parsed(found, lease=lease) if isinstance(found, str) else found
