"""Find known tokens, in whole or in part, in any encoding.

`KnownTokens` contains the tokens to search for in one record. The tokens are from the record's own request or are
remembered from other requests.

Callers choose their tokens, so the search for remembered tokens is restricted. Every part of a record's own tokens is
found, even if the part is a plain word. A part of a remembered token is found only if other requests are unlikely to
contain that part by chance. The part must therefore look random as it is written in the text (see `is_random`). If a
remembered token contains a service name or consists of a mixed-case name, that name is not masked in other requests'
telemetry.

The search covers the plain token and its base64 encodings. Text in other encodings is decoded before it is searched. If
a string contains an encoded part of a token, the entire string is masked, because the exact positions of the token's
characters are unknown.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote

from otel_token_relay.redaction.credential_patterns import Interval, ascii_lower, is_random, looks_like_credential

# Shorter tokens are not searched for, because they could be ordinary words.
_MIN_TOKEN_LENGTH: Final = 8
_NGRAM_LENGTH: Final = 12
# An n-gram starts at every sixth position, so every run of 17 characters contains a complete n-gram.
_STRIDE: Final = 6
# The base64 encoding of 17 characters contains at least 21 characters that do not depend on adjacent text.
_BASE64_STRIDE: Final = 10
_CACHED: Final = 512
_CACHED_INDEXES: Final = 32

_UNRESERVED: Final = re.compile(r"[a-z0-9_.~\-]+")
ANY_BEARER: Final = "bearer"

# Matches a line break and the indentation of the next line. The line break can be escaped once or twice.
_LINE_BREAK: Final = re.compile(r"(?:\r?\n|(?:\\{1,2}r)?\\{1,2}n)[ \t]*")
_JSON_ESCAPE: Final = re.compile(r"\\u00([0-9A-Fa-f]{2})")
# The maximum number of characters that an escape can insert between two parts of a token.
_MAX_GAP: Final = 4

LONGEST_SURVIVOR: Final = 16
"""The maximum number of consecutive characters from a known token that can remain unmasked."""


class _Part(NamedTuple):
    """A part of a token that was found in text.

    Attributes:
        interval: The part's start and end positions in the text.
        is_complete: Whether the part is the entire token, either plain or encoded.
        is_plain: Whether the part matches a part of the plain token, ignoring case.
    """

    interval: Interval
    is_complete: bool
    is_plain: bool


class _Index(NamedTuple):
    """The parts of one token and of its base64 encodings, for searching lowercase text.

    Attributes:
        ngrams: A dictionary whose keys are substrings of length `size`. Each value contains an encoding and
            the part's position in it. Every run of 17 characters in the token contains such a part. A lookup at each
            position in the text therefore finds every such run.
        size: The length of each part, which is `_NGRAM_LENGTH` or, for a shorter token, the length of the token.
    """

    ngrams: dict[str, tuple[str, int]]
    size: int

    @classmethod
    def of(cls, value: str) -> _Index:
        size = min(_NGRAM_LENGTH, len(value))
        # In form data, a plus sign is decoded as a space.
        encodings = dict.fromkeys((value, value.replace("+", " ")), _STRIDE)
        encodings.update(dict.fromkeys(_base64_encodings(value), _BASE64_STRIDE))
        ngrams: dict[str, tuple[str, int]] = {}
        for encoding, stride in encodings.items():
            lowered = ascii_lower(encoding)
            last = len(lowered) - size
            for at in (*range(0, last, stride), last):
                ngrams.setdefault(lowered[at : at + size], (lowered, at))
        return cls(ngrams, size)

    def find(self, lowered: str, value: str) -> Iterator[_Part]:
        """Yield the parts of a token (*value*) that the lowercase text contains. The parts can overlap."""
        plain = ascii_lower(value)
        at, size, find = 0, self.size, self.ngrams.get
        while at + size <= len(lowered):
            hit = find(lowered[at : at + size])
            if hit is None:
                at += 1
                continue
            encoding, offset = hit
            start, end = _extend(lowered, at, size, encoding, offset)
            yield _Part((start, end), end - start == len(encoding), encoding == plain)
            at = max(at + 1, end - size + 1)


class KnownTokens:
    """The tokens to search for in a record.

    Attributes:
        values: The tokens from the record's own request or, in `RememberedTokens`, the tokens from a trace.
        remembered: The tokens that are remembered from other requests.
        needles: Lowercase strings. If lowercase text contains none of the needles, it does not contain a known token or
            ``Bearer …``.
        clean_rows: Measurement attributes that were found to be clean. Each tuple contains the scrubber, all keys, and
            all values. The tuples are stored here so that they are discarded together with the tokens.
    """

    def __init__(self, values: tuple[str, ...] = (), remembered: tuple[str, ...] = ()) -> None:
        self.values: tuple[str, ...] = values
        self.remembered: tuple[str, ...] = remembered
        self.clean_rows: set[tuple[Any, ...]] = set()

    # The needles are computed on first use, because the telemetry from many requests is never read.
    @cached_property
    def needles(self) -> tuple[str, ...]:
        found = [needle for value in (*self.values, *self.remembered) for needle in _needles_of(value)]
        return tuple(dict.fromkeys([ANY_BEARER, *found]))

    def __repr__(self) -> str:
        return f"KnownTokens({len(self.values)} own, {len(self.remembered)} remembered)"

    def may_be_in(self, text: str) -> bool:
        """Return whether a string might contain part of a token. The check can produce false positives."""
        return any(needle is not ANY_BEARER for needle in self.needles_in(ascii_lower(text)))

    def may_be_in_long(self, text: str) -> bool:
        """Return whether a string that is too long for a full search might contain a token.

        A remembered token must appear in full. A partial match is not sufficient, because the entire string is masked.
        """
        if not self.remembered:
            return self.may_be_in(text)
        return known_from(*self.values).may_be_in(text) or any(value in text for value in self.remembered)

    def needles_in(self, lowered: str) -> list[str]:
        """Return the needles that a lowercase string contains, including needles that are split by line breaks."""
        # A comprehension is faster than a loop, even though the comprehension does not stop at the first needle.
        found = [needle for needle in self.needles if needle in lowered]
        if found in ([], [ANY_BEARER]) and ("\n" in lowered or "\\n" in lowered):
            flat = _LINE_BREAK.sub("", lowered)
            found = [
                needle for needle in self.needles if needle in flat
            ]  # removing line breaks does not split "bearer", so "bearer" is still found
        return found

    def intervals_in(self, text: str) -> list[Interval]:
        """Return the start and end positions of all token parts in the text.

        The intervals are sorted and do not overlap.
        """
        if len(text) < _MIN_TOKEN_LENGTH or not (self.values or self.remembered):
            return []
        parts = self._find(text)
        found = merge([part.interval for part in parts], gap=_MAX_GAP)
        is_encoded = not all(part.is_plain for part in parts)
        if not is_encoded and (decoded := _decode(text)) != text:
            is_encoded = _count(self._find(decoded)) > _count(parts)
        return [(0, len(text))] if is_encoded else found

    def _find(self, text: str) -> list[_Part]:
        lowered = ascii_lower(text)
        found = [part for value in self.values for part in _index_of(value).find(lowered, value)]
        for value in self.remembered:
            found += _unlikely_by_chance(value, _index_of(value).find(lowered, value), text)
        return found


def _unlikely_by_chance(value: str, parts: Iterable[_Part], text: str) -> list[_Part]:
    """Return the parts of a remembered token that other requests are unlikely to contain by chance.

    Each part is checked separately, because adjacent parts might be unrelated identifiers. The check uses the part as
    it is written in the text, because a mixed-case word in the token might look random.
    """
    if not looks_like_credential(value):
        # A token that is short or consists of words is remembered only if it was verified. Such a token must appear in
        # full.
        return [part for part in parts if part.is_complete]
    spans = ((part, *part.interval) for part in parts)
    return [part for part, start, end in spans if end - start > LONGEST_SURVIVOR and is_random(text[start:end])]


def _count(parts: Iterable[_Part]) -> int:
    """Return the total number of characters in the parts, counting overlaps only once."""
    return sum(end - start for start, end in merge([part.interval for part in parts]))


def _decode(text: str) -> str:
    """Remove line breaks, and decode percent-encoding (single or double), JSON escapes, and HTML escapes."""
    text = _LINE_BREAK.sub("", unquote(unquote(text)))
    text = _JSON_ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), text)
    return html.unescape(text).replace("\\", "")


NOTHING: Final = KnownTokens()


@lru_cache(maxsize=_CACHED)
def known_from_one(value: str) -> KnownTokens:
    """Return the known tokens for a record with a single token of its own. Results are cached."""
    return KnownTokens((value,))


@lru_cache(maxsize=_CACHED)
def known_from(*values: str) -> KnownTokens:
    """Return the known tokens for a record that has only its own tokens. Results are cached."""
    return known_from_one(*values) if len(values) == 1 else KnownTokens(values)


@lru_cache(maxsize=_CACHED)
def known_with_remembered(values: tuple[str, ...], remembered: tuple[str, ...]) -> KnownTokens:
    """Combine a record's own tokens (*values*) with *remembered* tokens. Results are cached."""
    if remembered:
        return KnownTokens(values, remembered)
    return known_from(*values) if values else NOTHING


def clear_caches() -> None:
    """Remove all tokens from the caches."""
    for function in (
        known_from_one,
        known_from,
        known_with_remembered,
        _index_of,
        _needles_of,
        _base64_needles,
        looks_like_credential,
    ):
        function.cache_clear()


@lru_cache(maxsize=_CACHED_INDEXES)
def _index_of(value: str) -> _Index:
    """Return a token's index. The index is built on first use, because most tokens never need an index."""
    return _Index.of(value) if len(value) >= _MIN_TOKEN_LENGTH else _Index({}, _NGRAM_LENGTH)


@lru_cache(maxsize=_CACHED)
def _needles_of(value: str) -> tuple[str, ...]:
    """Return lowercase needles for a token.

    At least one needle occurs in every encoding of the token and in every truncated copy of at least 17 characters.

    Where possible, the needles consist of characters that escaping does not change. This function runs for every
    incoming token, so it reads as few of the token's characters as possible.
    """
    if len(value) < _MIN_TOKEN_LENGTH:
        return ()
    coded = _base64_needles(value[:18])
    if len(value) < _NGRAM_LENGTH + 4:
        # The token is too short to be searched for in parts.
        lowered = ascii_lower(value)
        return (max(_UNRESERVED.findall(lowered), key=len, default=lowered), *coded)
    ends = (_unreserved(value[:17]), _unreserved(value[-17:]), *coded)
    middle = len(value) // 2
    return ends if len(value) < 48 else (_unreserved(value[middle - 8 : middle + 9]), *ends)


def _unreserved(window: str) -> str:
    window = ascii_lower(window)
    if "+" in window or "/" in window or "=" in window:
        longest = max(_UNRESERVED.findall(window), key=len, default="")
        # A token such as ++//++ has no run of unreserved characters, so the reserved characters are used instead.
        window = longest if len(longest) >= 4 else window
    return window[:_NGRAM_LENGTH]


@lru_cache(maxsize=_CACHED)
def _base64_needles(head: str) -> tuple[str, ...]:
    """Return the base64 needles for the first characters of a token.

    These needles are the same for all JWTs with the same header, so the cached result is nearly always used.
    """
    forms = [form for text in _base64_encodings(head) for form in (text, quote(text, safe=""))]
    found = dict.fromkeys(ascii_lower(form[:_NGRAM_LENGTH]) for form in forms)
    return tuple(needle for needle in found if len(needle) >= _MIN_TOKEN_LENGTH)


def _base64_encodings(value: str) -> Iterator[str]:
    """Yield a token's base64 encodings at all three alignments, without the characters that depend on adjacent text."""
    raw = value.encode("utf-8", "replace")
    for before in range(3):
        coded = base64.b64encode(b"\0" * before + raw).decode("ascii")
        coded = coded[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]
        yield coded
        yield coded.replace("+", "-").replace("/", "_")


def _extend(text: str, at: int, size: int, encoding: str, offset: int) -> Interval:
    """Extend a match in both directions while the text matches the encoding, and return the start and end positions."""
    if at >= offset and text.startswith(encoding, at - offset):  # the entire token, which is the most common case
        return at - offset, at - offset + len(encoding)
    start, end, left, right = at, at + size, offset, offset + size
    while start and left and text[start - 1] == encoding[left - 1]:
        start, left = start - 1, left - 1
    while end < len(text) and right < len(encoding) and text[end] == encoding[right]:
        end, right = end + 1, right + 1
    return start, end


def merge(found: list[Interval], *, gap: int = 0) -> list[Interval]:
    """Sort the intervals, and merge intervals that overlap or are at most *gap* characters apart."""
    merged: list[Interval] = []
    for start, end in sorted(found):
        if merged and start - merged[-1][1] <= gap:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
