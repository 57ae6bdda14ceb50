"""Find credentials that a request contains but that its boundary does not use, so that redaction can mask them.

These are the credentials in a rejected header (two lines, a comma, too long, or a different scheme), in each source
header after the first one, and in an ``Authorization`` header that is not a source header. For example, if a line is
duplicated, both copies contain a valid token.
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

# Callers choose how many credentials they send and how long the credentials are.
_MAX_WORDS: Final = 4
_MAX_LINES: Final = 8
_MAX_CHARACTERS: Final = 16_384

# A word of b64token characters (RFC 6750, section 2.1), and the padding after it. The quantifiers are possessive, and a
# word cannot start within another word, so matching takes linear time.
_words_in = re.compile(r"(?<![A-Za-z0-9\-._~+/])([A-Za-z0-9\-._~+/]{8,}+)(=*+)").finditer


class UnusedCredentials:
    """The words in a request's unused credentials that may be tokens. They are not printed and cannot be pickled.

    Args:
        words: At most four words of at least 8 characters each, with at most 16,384 characters in total.
        lease: The request's lease; ``None`` if the end of the request cannot be observed.
    """

    __slots__ = ("lease", "words")

    def __init__(self, words: tuple[str, ...], lease: Lease | None) -> None:
        self.words: Final = words
        self.lease: Final = lease

    @property
    def is_open(self) -> bool:
        """Whether the request has not ended."""
        return self.lease is None or self.lease.is_open

    def __repr__(self) -> str:
        return f"UnusedCredentials({len(self.words)} words)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("cannot pickle credentials")

    def __getstate__(self) -> None:
        """Return nothing. Python's default method would return the words to code that dumps objects."""


def may_have_unused(settings: Settings, *, is_present: bool, token: BearerToken | None) -> bool:
    """Return whether a request may contain unused credentials, which is rarely the case.

    Args:
        settings: The settings, which contain the names of the source headers.
        is_present: Whether the request has a source header.
        token: The token that was taken from the request, if any.
    """
    return (is_present and token is None) or settings.source_headers != _USUAL_SOURCES


def find_unused(
    values_of: Callable[[str], Sequence[str | bytes]], settings: Settings, token: BearerToken | None
) -> tuple[str, ...]:
    """Return the words in a request's unused credentials that may be tokens. Never raises.

    Schemes and parameter names are not included. In a long line, only the first and last parts are read.

    Args:
        values_of: Returns every field line of the header with a given lowercase name.
        settings: The settings, which contain the names of the source headers.
        token: The request's token, if it has one. This token is not included in the result.
    """
    try:
        names = dict.fromkeys((*settings.source_headers, *_USUAL_SOURCES))
        lines = list(islice((line for name in names for line in values_of(name)), _MAX_LINES))
        used = None if token is None else token.reveal()
        words = dict.fromkeys(word for line in lines for word in _words(line, _MAX_CHARACTERS // len(lines)))
        words.pop(used, None)  # type: ignore[arg-type]  # without a token, there is nothing to remove
        return tuple(sorted(words, key=len, reverse=True)[:_MAX_WORDS])
    except Exception:  # the server may pass invalid headers, and a carrier can be any object
        _logger.debug("cannot read the request's unused credentials", exc_info=True)
        return ()


def _words(line: str | bytes, limit: int) -> Iterator[str]:
    parts = [line] if len(line) <= limit else [line[: limit // 2], line[-(limit // 2) :]]
    for part in parts:
        text = part if isinstance(part, str) else bytes(part).decode("latin-1")
        for credential in text.split(","):  # a proxy may have joined two lines (RFC 9110, section 5.3)
            credential = credential.strip(" \t")
            for match in _words_in(credential):
                following = credential[match.end() : match.end() + 1]
                is_scheme = match.start() == 0 and following in (" ", "\t")
                is_name = match[2] != "" and following not in ("", " ", "\t", ";")
                if not (is_scheme or is_name):
                    yield match[0]
                elif looks_like_credential(match[1]):
                    yield match[1]
