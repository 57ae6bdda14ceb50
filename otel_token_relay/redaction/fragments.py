"""Known tokens, and how to find any part of them in any dress.

Pure. `Secrets` is what one record is compared with: the tokens that its trace has seen.
"""

from __future__ import annotations

import base64
import html
import re
import string
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import quote

# Shorter ones are found as a whole or not at all: parts of them are words.
_SHORTEST_TOKEN: Final = 8
_GRAM: Final = 12
# Every run of 17 characters holds one of the grams that start at every sixth place.
_STRIDE: Final = 6
# 17 characters are at least 21 whole ones of base64.
_CODED_STRIDE: Final = 9
_REMEMBERED: Final = 512

_LOWER: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_UNRESERVED: Final = re.compile(r"[a-z0-9_.~\-]+")
ANY_BEARER: Final = "bearer"

Interval = tuple[int, int]


def ascii_lower(text: str) -> str:
    """Lower the case and keep the length, which ``str.lower`` does not do for every letter."""
    return text.lower() if text.isascii() else text.translate(_LOWER)


class _Form(NamedTuple):
    """One spelling of a token, in lower case, and the grams that give it away."""

    text: str
    grams: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, text: str, stride: int) -> _Form:
        last = len(text) - _GRAM
        starts = sorted({*range(0, last + 1, stride), last}) if last > 0 else [0]
        # The same gram twice would search the text twice.
        grams = {text[at : at + _GRAM]: at for at in reversed(starts)}
        return cls(text, tuple(grams.items()))


class Secrets:
    """The tokens that a record is compared with.

    Attributes:
        values: The tokens, for nobody but the memory.
        anchors: Texts in lower case; without one of them in a lowered text, no known token is in
            it, and no ``Bearer …``.
        clean_rows: Attributes that were found clean and will be met again, keys and then values.
        clean_origins: The pairs of scope and resource that were found clean, by the scope's id.
        cleaned: What was made of the others, by the id of the original.

    The last three are what the users of this class have found out with these tokens. It is kept
    here since it goes when the tokens go.
    """

    __slots__ = ("anchors", "clean_origins", "clean_rows", "cleaned", "values")

    anchors: tuple[str, ...]
    clean_rows: set[tuple[Any, ...]]
    clean_origins: dict[int, tuple[Any, Any, Any]]
    cleaned: dict[int, tuple[Any, Any, Any]]

    def __init__(self, values: tuple[str, ...] = ()) -> None:
        self.values = values

    def __getattr__(self, name: str) -> Any:
        # Comes here once for each of them: many requests have no telemetry that anybody reads.
        if name == "anchors":
            found = [anchor for value in self.values for anchor in _anchors(value)]
            made: Any = tuple(dict.fromkeys([ANY_BEARER, *found]))
        elif name in Secrets.__slots__:
            made = set() if name == "clean_rows" else {}
        else:
            raise AttributeError(name)
        setattr(self, name, made)
        return made

    def __repr__(self) -> str:
        return f"Secrets({len(self.values)} known)"

    def stand_in(self, text: str) -> bool:
        """Say whether a part of a token may stand in a text."""
        return self.may_stand_in(ascii_lower(text))

    def may_stand_in(self, lowered: str) -> bool:
        """Say the same of a text in lower case."""
        return bool([anchor for anchor in self.anchors if anchor in lowered and anchor is not ANY_BEARER])

    def mask_in(self, text: str, mask: str) -> str:
        """Replace every part of a token, whatever its spelling."""
        hits = self.intervals_in(text)
        if not hits:
            return text
        parts: list[str] = []
        done = 0
        for start, end in hits:
            parts += (text[done:start], mask)
            done = end
        return "".join([*parts, text[done:]])

    def intervals_in(self, text: str) -> list[Interval]:
        """Give where the parts of tokens are, in order and apart from each other."""
        found: list[Interval] = []
        if len(text) < _SHORTEST_TOKEN or not self.values:
            return found
        lowered = ascii_lower(text)
        for value in self.values:
            for form in _forms(value):
                found += _find(lowered, form)
        return _merge(found)


NOTHING: Final = Secrets()


@lru_cache(maxsize=_REMEMBERED)
def secrets_of_one(value: str) -> Secrets:
    """Give what a record with this token is compared with, made once."""
    return Secrets((value,))


@lru_cache(maxsize=_REMEMBERED)
def secrets_of(*values: str) -> Secrets:
    """Give what a record with all of these tokens is compared with, made once."""
    return secrets_of_one(*values) if len(values) == 1 else Secrets(values)


@lru_cache(maxsize=_REMEMBERED)
def _forms(value: str) -> tuple[_Form, ...]:
    """Give every spelling of a token. Most tokens are never found anywhere, and need none."""
    if len(value) < _SHORTEST_TOKEN:
        return ()
    spelled = [(text, _STRIDE) for text in _spellings(value)]
    spelled += [(text, _CODED_STRIDE) for text in _base64_spellings(value)]
    lowered = {ascii_lower(text): stride for text, stride in spelled if len(text) >= _SHORTEST_TOKEN}
    return tuple(_Form.of(text, stride) for text, stride in lowered.items())


def _anchors(value: str) -> tuple[str, ...]:
    """Give pieces in lower case of which any spelling of the token, and any cut that leaves 17 characters, has one.

    Only of characters that no encoding changes. This runs for every token that comes in, so
    hardly anything here looks at the whole of it.
    """
    if len(value) < _SHORTEST_TOKEN:
        return ()
    coded = _coded_anchors(value[:18])
    if len(value) < _GRAM + 4:
        # Too short for parts.
        lowered = ascii_lower(value)
        return (max(_UNRESERVED.findall(lowered), key=len, default=lowered), *coded)
    middle = len(value) // 2
    if not _has_reserved(value):
        ends = (value[:_GRAM].lower(), value[-_GRAM:].lower(), *coded)
        return ends if len(value) < 48 else (value[middle : middle + _GRAM].lower(), *ends)
    ends = (_unreserved(value[:17], first=True), _unreserved(value[-17:], first=False), *coded)
    return ends if len(value) < 48 else (_unreserved(value[middle - 8 : middle + 9], first=True), *ends)


def _unreserved(window: str, *, first: bool) -> str:
    window = ascii_lower(window)
    runs = _UNRESERVED.findall(window)
    longest = max(runs, key=len, default="")
    if len(longest) < 4:
        # A token like ++//++ has no such piece: then its own spelling has to do.
        longest = window
    return longest[:_GRAM] if first else longest[-_GRAM:]


def _has_reserved(value: str) -> bool:
    return "+" in value or "/" in value or "=" in value


@lru_cache(maxsize=_REMEMBERED)
def _coded_anchors(head: str) -> tuple[str, ...]:
    """Give the same for base64, from the first characters of the token.

    Those of all JWT with one header are the same, so this is rarely computed.
    """
    found = (ascii_lower(text[:_GRAM]) for text in _base64_spellings(head))
    return tuple(anchor for anchor in found if len(anchor) >= _SHORTEST_TOKEN)


def _spellings(value: str) -> Iterator[str]:
    """Give the token as it is and as encoders write the three characters that they do not leave alone."""
    yield value
    if not _has_reserved(value):
        return
    percent = quote(value, safe="")
    yield percent
    yield quote(value, safe="/")
    yield quote(percent, safe="")
    yield value.replace("/", "\\/")
    yield value.replace("/", "\\\\/")
    for plus, slash, equals in (
        ("\\u002b", "/", "\\u003d"),
        ("\\u002b", "\\u002f", "\\u003d"),
        ("\\u002b", "\\/", "\\u003d"),
        ("\\u002b", "/", "="),
        ("&#43;", "&#47;", "&#61;"),
        ("&#x2b;", "&#x2f;", "&#x3d;"),
        ("+", "&#x2f;", "&#x3d;"),
        ("+", "&#x2f;", "="),
        ("+", "/", "&#x3d;"),
        ("&plus;", "&sol;", "&equals;"),
        (" ", "/", "="),  # a plus sign that was decoded as if it stood in a form
    ):
        yield value.replace("=", equals).replace("/", slash).replace("+", plus)
    yield html.escape(value)


def _base64_spellings(value: str) -> Iterator[str]:
    """Give the base64 of the token behind none, one and two other bytes, as far as only the token counts."""
    raw = value.encode("utf-8", "replace")
    for before in range(3):
        coded = base64.b64encode(b"\0" * before + raw).decode("ascii")
        coded = coded[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]
        yield coded
        if "+" in coded or "/" in coded:
            yield coded.replace("+", "-").replace("/", "_")
            yield quote(coded, safe="")


def _find(lowered: str, form: _Form) -> Iterator[Interval]:
    length = len(form.text)
    at = lowered.find(form.text)
    if at >= 0:
        blank = "\0" * length
        while at >= 0:
            yield at, at + length
            at = lowered.find(form.text, at + length)
        lowered = lowered.replace(form.text, blank)
    for gram, offset in form.grams:
        at = lowered.find(gram)
        while at >= 0:
            start, end = _extend(lowered, at, form.text, offset, len(gram))
            yield start, end
            at = lowered.find(gram, max(end - len(gram) + 1, at + 1))


def _extend(text: str, at: int, form: str, offset: int, length: int) -> Interval:
    """Widen a hit as far as the text and the form agree."""
    start, end, left, right = at, at + length, offset, offset + length
    while start and left and text[start - 1] == form[left - 1]:
        start, left = start - 1, left - 1
    while end < len(text) and right < len(form) and text[end] == form[right]:
        end, right = end + 1, right + 1
    return start, end


def _merge(found: list[Interval]) -> list[Interval]:
    """Put together what overlaps, and what only an escape or a line break keeps apart."""
    merged: list[Interval] = []
    for start, end in sorted(found):
        if merged and start - merged[-1][1] <= 4:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
