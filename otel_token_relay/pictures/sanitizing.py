"""Sanitize a recording's strings by masking credentials, limiting the length, and escaping layout characters."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

from otel_token_relay.printable import shorten
from otel_token_relay.redaction.credential_patterns import looks_like_credential
from otel_token_relay.redaction.scrubber import MASK, Scrubber
from otel_token_relay.redaction.token_search import NOTHING

MAX_LENGTH: Final = 160
"""The maximum length of a string in a picture, in characters before escaping."""
# Truncate longer strings before searching for credentials, because a recording can contain many long strings.
_MAX_SEARCHED: Final = 4096

_SCRUBBER: Final = Scrubber()
_WORD: Final = re.compile(r"[^\s'\"(),;/?&=]+")
# These characters reorder the surrounding text or break the line but are not control characters.
_REORDERING: Final = frozenset("\u061c\u200e\u200f\u2028\u2029\ufeff" + "".join(map(chr, range(0x202A, 0x202F))))
_ISOLATING: Final = frozenset(map(chr, range(0x2066, 0x206A)))


@lru_cache(maxsize=10_000)
def clean(text: str) -> str:
    """Mask possible credentials in *text*, truncate the result to `MAX_LENGTH`, and escape layout characters."""
    found = _SCRUBBER.clean_text(text[:_MAX_SEARCHED], NOTHING)
    # If the result is short, its end might contain part of a token that was truncated before the search.
    if len(text) > _MAX_SEARCHED and len(found) <= MAX_LENGTH:
        return MASK
    found = _WORD.sub(lambda word: MASK if looks_like_credential(word[0]) else word[0], found)
    return "".join(map(_escape, shorten(found, MAX_LENGTH)))


def _escape(character: str) -> str:
    if character in _REORDERING or character in _ISOLATING or unicodedata.category(character) in ("Cc", "Cs"):
        return ascii(character)[1:-1]
    return character
