"""The door: from the headers of an incoming request to a token or to the reason why there is none.

Behind the door there may be a gate, which verifies the token and answers in the application's place.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Final

from otel_token_relay.reasons import Reason
from otel_token_relay.settings import Settings
from otel_token_relay.token import _SCHEME_LENGTH, DEFAULT_MAX_LENGTH, BearerToken, Lease, is_b64token

# RFC 9110, section 11.4: commas also stand between the parameters of one credential, as in Digest.
_TOKEN: Final = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"


_PARAMETER: Final = rf'{_TOKEN}=(?:{_TOKEN}|"(?:[^"\\]|\\.)*")'


_is_one_with_parameters = re.compile(
    rf"(?!(?ai:bearer) ){_TOKEN} +{_PARAMETER}(?:[ \t]*,[ \t]*{_PARAMETER})*"
).fullmatch


def parse_credentials(
    values: Sequence[str | bytes], *, max_length: int = DEFAULT_MAX_LENGTH, bare: bool = False
) -> str | Reason:
    """Read the bearer token out of the values of one header.

    Nothing reads a line of more than *max_length* and seven characters: a server may have no limit of its own.

    Args:
        values: Every field line of the header, as text or as it came in, not folded; WSGI servers
            fold them with commas.
        max_length: Characters. A longer token is refused, never cut.
        bare: Also take the token alone, without the scheme (``x-forwarded-access-token``).

    Returns:
        The token as text, or the reason why there is none: ``ABSENT`` (no such header, or
        another scheme), ``AMBIGUOUS`` (two field lines or a comma), ``MALFORMED``, ``TOO_LONG`` (the
        token or the whole line, whatever it contains).

    Source: RFC 6750, section 2.1; RFC 9110, sections 5.3, 5.5 and 11.
    """
    if len(values) != 1:
        return Reason.AMBIGUOUS if values else Reason.ABSENT
    line = values[0]
    if len(line) > max_length and len(line) > max_length + _SCHEME_LENGTH:
        return Reason.TOO_LONG
    text = line.decode("latin-1") if type(line) is bytes or not isinstance(line, str) else line
    value = text.strip(" \t")
    if "," in value and not _is_one_with_parameters(value):
        return Reason.AMBIGUOUS
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


_logger = logging.getLogger(__name__)


# What the door makes of a request.
Credentials = BearerToken | Reason


# A header's name and its field lines, as they came in.
HeaderLines = tuple[str, Sequence[str | bytes]]


def find(values_of: Callable[[str], Sequence[str | bytes]], settings: Settings) -> HeaderLines | None:
    """Find the first source header that is present.

    One that is present and bad hides the ones after it: falling back would let whoever spoils the
    first header choose the second.

    Args:
        values_of: Gives every field line of the header of that name (lower case).
        settings: Which headers to look at.
    """
    for name in settings.source_headers:
        values = values_of(name)
        if values:
            return name, values
    return None


def read(source: HeaderLines | None, settings: Settings, *, lease: Lease | None = None) -> Credentials:
    """Read what `find` has found.

    Args:
        source: ``None`` where no header is present.
        settings: How long a token may be.
        lease: The request's lease; ``None`` where nobody knows when the request ends.

    Returns:
        A reason where the request brings no token or brings it in a way that could be read in
        two ways.
    """
    if source is None:
        return Reason.ABSENT
    name, values = source
    found = parse_credentials(values, max_length=settings.max_length, bare=name != "authorization")
    return BearerToken.from_parsed(found, lease=lease) if isinstance(found, str) else found


def token_or_none(
    values_of: Callable[[str], Sequence[str | bytes]], settings: Settings, *, lease: Lease | None = None
) -> BearerToken | None:
    """Take the token, where it is enough to know that there is none; see `read`."""
    credentials = read(find(values_of, settings), settings, lease=lease)
    if isinstance(credentials, BearerToken):
        return credentials
    if credentials is not Reason.ABSENT:
        _logger.debug("no token taken from the request: %s", credentials)
    return None
