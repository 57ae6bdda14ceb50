"""Find a request's unused credentials so that redaction can mask them.

The server boundary does not use the credentials in the following headers, but they can still be valid:

* A source header that is rejected because it has multiple lines, contains a comma, is too long, or uses a different
  scheme.
* Any source header after the first one that is present.
* An ``Authorization`` header that is not a source header.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final, NoReturn

from otel_token_relay.redaction.credential_patterns import looks_like_credential
from otel_token_relay.settings import Settings
from otel_token_relay.token import BearerToken, Lease

_logger = logging.getLogger("otel_token_relay")

_USUAL_SOURCES: Final = ("authorization",)

# Limits are necessary because callers determine the number and length of the credentials.
_MAX_WORDS: Final = 4
_MAX_LINES: Final = 8
_MAX_CHARACTERS: Final = 16_384

# Matches a word of b64token characters (RFC 6750, section 2.1) and its padding. Matching takes linear time because the
# quantifiers are possessive and a word cannot start within another word.
_words_in = re.compile(r"(?<![A-Za-z0-9\-._~+/])([A-Za-z0-9\-._~+/]{8,}+)(=*+)").finditer


class UnusedCredentials:
    """The possible tokens in a request's unused credentials.

    This object never prints the tokens and cannot be pickled.

    Args:
        words: At most four possible tokens, each with at least eight characters. Their total length is at most 16,384
            characters.
        lease: The request's lease; ``None`` if the application does not report when the request ends.
    """

    __slots__ = ("lease", "words")

    def __init__(self, words: tuple[str, ...], lease: Lease | None) -> None:
        self.words: Final = words
        self.lease: Final = lease

    @property
    def is_open(self) -> bool:
        """Whether the request is still being processed."""
        return self.lease is None or self.lease.is_open

    def __repr__(self) -> str:
        return f"UnusedCredentials({len(self.words)} words)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("cannot pickle credentials")

    def __getstate__(self) -> None:
        """Return ``None``. Python's default method would disclose the words to code that serializes objects."""


def may_have_unused(settings: Settings, *, is_present: bool, token: BearerToken | None) -> bool:
    """Return whether a request might contain unused credentials. Most requests contain no unused credentials.

    Args:
        settings: The settings, including the names of the source headers.
        is_present: Whether the request contains a source header.
        token: The token that was extracted from the request; ``None`` if no token was extracted.
    """
    return (is_present and token is None) or settings.source_headers != _USUAL_SOURCES


def find_unused(
    values_of: Callable[[str], Sequence[str | bytes]], settings: Settings, token: BearerToken | None
) -> tuple[str, ...]:
    """Return the possible tokens in a request's unused credentials. This function never raises an exception.

    The result does not include authentication schemes or parameter names. If a line is long, only its beginning and end
    are searched.

    Args:
        values_of: A function that accepts a lowercase header name and returns the values of all header lines with that
            name.
        settings: The settings, including the names of the source headers.
        token: The request's token, which is excluded from the result; ``None`` if the request has no token.
    """
    try:
        names = dict.fromkeys((*settings.source_headers, *_USUAL_SOURCES))
        lines = list(islice((line for name in names for line in values_of(name)), _MAX_LINES))
        used = None if token is None else token.reveal()
        words = dict.fromkeys(word for line in lines for word in _words(line, _MAX_CHARACTERS // len(lines)))
        words.pop(used, None)  # type: ignore[arg-type]  # without a token, there is nothing to remove
        return tuple(sorted(words, key=len, reverse=True)[:_MAX_WORDS])
    except Exception:  # a server can pass invalid headers, and a carrier can be any object
        _logger.debug("the request's unused credentials cannot be read", exc_info=True)
        return ()


def _words(line: str | bytes, limit: int) -> Iterator[str]:
    parts = [line] if len(line) <= limit else [line[: limit // 2], line[-(limit // 2) :]]
    for part in parts:
        text = part if isinstance(part, str) else bytes(part).decode("latin-1")
        for credential in text.split(","):  # a proxy can combine two header lines (RFC 9110, section 5.3)
            credential = credential.strip(" \t")
            for match in _words_in(credential):
                following = credential[match.end() : match.end() + 1]
                is_scheme = match.start() == 0 and following in (" ", "\t")
                is_name = match[2] != "" and following not in ("", " ", "\t", ";")
                if not (is_scheme or is_name):
                    yield match[0]
                elif looks_like_credential(match[1]):
                    yield match[1]
