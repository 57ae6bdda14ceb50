"""Make a recording's text safe to display: mask tokens, limit the length, and escape characters that affect layout."""

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
"""The maximum number of characters of a string in a picture. Each escape counts as one."""
# Longer strings are truncated before they are searched, because a recording can contain many of them.
_MAX_SEARCHED: Final = 4096

_SCRUBBER: Final = Scrubber()
_WORD: Final = re.compile(r"[^\s'\"(),;/?&=]+")
# Marks that reorder the text around them, and line breaks that are not control characters.
_REORDERING: Final = frozenset("\u061c\u200e\u200f\u2028\u2029\ufeff" + "".join(map(chr, range(0x202A, 0x202F))))
_ISOLATING: Final = frozenset(map(chr, range(0x2066, 0x206A)))


@lru_cache(maxsize=10_000)
def clean(text: str) -> str:
    """Return *text* escaped and truncated to `MAX_LENGTH`, with everything that looks like a credential masked."""
    found = _SCRUBBER.clean_text(text[:_MAX_SEARCHED], NOTHING)
    if len(text) > _MAX_SEARCHED and len(found) <= MAX_LENGTH:
        return MASK  # nearly everything was masked, so a token at the end may have been truncated
    found = _WORD.sub(lambda word: MASK if looks_like_credential(word[0]) else word[0], found)
    return "".join(map(_escape, shorten(found, MAX_LENGTH)))


def _escape(character: str) -> str:
    if character in _REORDERING or character in _ISOLATING or unicodedata.category(character) in ("Cc", "Cs"):
        return ascii(character)[1:-1]
    return character
