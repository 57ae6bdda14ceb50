"""Known tokens, and how to find any part of them in any dress.

Pure. `Secrets` is what one record is compared with: the tokens of its own request, and those that are
remembered from elsewhere.

A caller chooses the token, so a caller chooses what is searched for. Of the tokens of a record's own request
every part is found, also where it is a word. Of a remembered token only what no other request says by
chance is found: what is random as the text has it (`is_random`). A token made of a random beginning and the
name of a service, or of a name in mixed case, therefore does not mask that name in other requests' telemetry.
"""

from __future__ import annotations

import base64
import html
import re
import string
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from otel_token_relay.redaction.credential_patterns import Interval, is_random, looks_like_credential

# Shorter ones are found as a whole or not at all: parts of them are words.
_SHORTEST_TOKEN: Final = 8
_GRAM: Final = 12
# Every run of 17 characters holds one of the grams that start at every sixth place.
_STRIDE: Final = 6
# 17 characters are at least 21 whole ones of base64.
_CODED_STRIDE: Final = 9
_REMEMBERED: Final = 512
# Whoever sends a token chooses what it is made of, and each reserved character multiplies its
# spellings. Of what is longer or odder than these only the plain spelling is searched for in
# pieces, and a text in which anything else of it may stand is masked as a whole.
_MAX_SPELLED: Final = 4096
_MAX_RESERVED: Final = 128
_INDEXED: Final = 32

_LOWER: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_UNRESERVED: Final = re.compile(r"[a-z0-9_.~\-]+")
ANY_BEARER: Final = "bearer"

# An end of a line in a text, or in the text of a text, and the indentation of the next one.
_LINE_END: Final = re.compile(r"(?:\r?\n|(?:\\{1,2}r)?\\{1,2}n)[ \t]*")
# What an escape puts between two parts of a token.
_LONGEST_GAP: Final = 4

LONGEST_SURVIVOR: Final = 16
"""Characters of a known token that may be left standing in a row."""


def ascii_lower(text: str) -> str:
    """Lower the case and keep the length, which ``str.lower`` does not do for every letter."""
    return text.lower() if text.isascii() else text.translate(_LOWER)


class _Index(NamedTuple):
    """How to find the pieces of one token in a text in lower case, whatever their spelling.

    Attributes:
        grams: Pieces of `_GRAM` characters, and where in which spelling each of them stands. Every
            run of 17 characters of the token has one, so looking up each place of a text finds all.
        short: Spellings that are no longer than a piece.
        is_whole: Whether all spellings are in there.
    """

    grams: dict[str, tuple[str, int]]
    short: tuple[str, ...]
    is_whole: bool

    @classmethod
    def of(cls, value: str) -> _Index:
        is_whole = len(value) <= _MAX_SPELLED and sum(map(value.count, "+/=")) <= _MAX_RESERVED
        spelled = [(value, _STRIDE)]
        if is_whole:
            spelled += [(text, _STRIDE) for text in _spellings(value)]
            spelled += [(text, _CODED_STRIDE) for text in _base64_spellings(value)]
        grams: dict[str, tuple[str, int]] = {}
        short: dict[str, None] = {}
        for text, stride in dict.fromkeys((ascii_lower(text), stride) for text, stride in spelled):
            last = len(text) - _GRAM
            if last <= 0:
                if len(text) >= _SHORTEST_TOKEN:
                    short[text] = None
                continue
            for at in (*range(0, last, stride), last):
                grams.setdefault(text[at : at + _GRAM], (text, at))
        return cls(grams, tuple(short), is_whole)

    def find(self, lowered: str) -> Iterator[tuple[Interval, bool]]:
        """Yield where the pieces are, and whether each is the whole of a spelling. They may overlap."""
        for text in self.short:
            at = lowered.find(text)
            while at >= 0:
                yield (at, at + len(text)), True
                at = lowered.find(text, at + 1)
        if not self.grams:
            return
        at, last, find = 0, len(lowered) - _GRAM, self.grams.get
        while at <= last:
            hit = find(lowered[at : at + _GRAM])
            if hit is None:
                at += 1
                continue
            start, end = _extend(lowered, at, *hit)
            yield (start, end), end - start == len(hit[0])
            at = max(at + 1, end - _GRAM + 1)


class Secrets:
    """The tokens that a record is compared with.

    Attributes:
        values: The tokens of the record's own request, for the memory alone.
        remembered: The other tokens.
        anchors: Texts in lower case; without one of them in a lowered text, no known token is in
            it, and no ``Bearer …``.
        clean_rows: Attributes that were found clean and will be met again, keys and then values. It is
            kept here since it goes when the tokens go.
    """

    __slots__ = ("anchors", "clean_rows", "remembered", "values")

    anchors: tuple[str, ...]
    clean_rows: set[tuple[Any, ...]]

    def __init__(self, values: tuple[str, ...] = (), remembered: tuple[str, ...] = ()) -> None:
        self.values = values
        self.remembered = remembered

    def __getattr__(self, name: str) -> Any:
        # Comes here once for each of them: many requests have no telemetry that anybody reads.
        made: Any
        if name == "anchors":
            found = [anchor for value in (*self.values, *self.remembered) for anchor in _anchors(value)]
            made = tuple(dict.fromkeys([ANY_BEARER, *found]))
        elif name == "clean_rows":
            made = set()
        else:
            raise AttributeError(name)
        setattr(self, name, made)
        return made

    def __repr__(self) -> str:
        return f"Secrets({len(self.values)} known, {len(self.remembered)} remembered)"

    def stand_in(self, text: str) -> bool:
        """Return whether a part of a token may be in a text. Errs on the side of yes."""
        return any(anchor is not ANY_BEARER for anchor in self.anchors_in(ascii_lower(text)))

    def stand_in_long(self, text: str) -> bool:
        """Return the same for a text that is too long to be searched for parts.

        Of remembered tokens only the whole counts: it is masked as a whole, so a word must not be enough.
        """
        if not self.remembered:
            return self.stand_in(text)
        return secrets_of(*self.values).stand_in(text) or any(value in text for value in self.remembered)

    def anchors_in(self, lowered: str) -> list[str]:
        """Give the anchors that stand in a text in lower case, also over the ends of its lines."""
        # No loop is quicker than a comprehension, though this one does not stop at the first.
        found = [anchor for anchor in self.anchors if anchor in lowered]
        if found in ([], [ANY_BEARER]) and ("\n" in lowered or "\\n" in lowered):
            flat = _LINE_END.sub("", lowered)
            found = [anchor for anchor in self.anchors if anchor in flat]  # the words of a text stay whole
        return found

    def intervals_in(self, text: str) -> list[Interval]:
        """Give where the parts of tokens are, in order and apart from each other."""
        if len(text) < _SHORTEST_TOKEN or not (self.values or self.remembered):
            return []
        lowered = ascii_lower(text)
        found = self._find(text, lowered)
        if "\n" in lowered or "\\n" in lowered:
            # What is wrapped is found where it is not, and taken out with the ends of lines in it.
            flat, places = _unwrap(lowered)
            in_flat = self._find("".join([text[at] for at in places]), flat)
            found += [(places[start], places[end - 1] + 1) for start, end in in_flat]
        return merge(found, gap=_LONGEST_GAP)

    def _find(self, text: str, lowered: str) -> list[Interval]:
        found: list[Interval] = []
        for value in self.values:
            index = _index_of(value)
            if not index.is_whole and any(anchor in lowered for anchor in _anchors(value)):
                return [(0, len(text))]
            found += [interval for interval, _ in index.find(lowered)]
        for value in self.remembered:
            index = _index_of(value)
            unlikely = _unlikely_by_chance(value, index.find(lowered), text)
            if unlikely and not index.is_whole:
                return [(0, len(text))]
            found += unlikely
        return found


def _unlikely_by_chance(value: str, pieces: Iterable[tuple[Interval, bool]], text: str) -> list[Interval]:
    """Return those of the pieces of a remembered token that no other request says by chance.

    Each is judged by itself, and as the text has it: several pieces side by side may be other identifiers,
    and the token may spell a word so that it looks random.
    """
    if not looks_like_credential(value):
        # It is remembered because it was verified: a short one, or words, of which the whole counts.
        return [interval for interval, is_whole in pieces if is_whole]
    return [(start, end) for (start, end), _ in pieces if end - start > LONGEST_SURVIVOR and is_random(text[start:end])]


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
def secrets_with(values: tuple[str, ...], remembered: tuple[str, ...]) -> Secrets:
    """Return what a record with these tokens of its own request, and these other ones, is compared with, made once."""
    if remembered:
        return Secrets(values, remembered)
    return secrets_of(*values) if values else NOTHING


def forget_secrets() -> None:
    """Drop every token that is kept here."""
    for function in (secrets_of_one, secrets_of, secrets_with, _index_of, _coded_anchors, looks_like_credential):
        function.cache_clear()


@lru_cache(maxsize=_INDEXED)
def _index_of(value: str) -> _Index:
    """Make a token's index on first use: most tokens are never found anywhere, and need none."""
    return _Index.of(value) if len(value) >= _SHORTEST_TOKEN else _Index({}, (), True)


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


def _extend(text: str, at: int, form: str, offset: int) -> Interval:
    """Widen a hit as far as the text and the form agree."""
    start, end, left, right = at, at + _GRAM, offset, offset + _GRAM
    while start and left and text[start - 1] == form[left - 1]:
        start, left = start - 1, left - 1
    while end < len(text) and right < len(form) and text[end] == form[right]:
        end, right = end + 1, right + 1
    return start, end


def _unwrap(text: str) -> tuple[str, list[int]]:
    """Take out the ends of lines; give what is left and where each character of it stood."""
    pieces: list[str] = []
    places: list[int] = []
    done = 0
    for end in _LINE_END.finditer(text):
        pieces.append(text[done : end.start()])
        places += range(done, end.start())
        done = end.end()
    pieces.append(text[done:])
    places += range(done, len(text))
    return "".join(pieces), places


def merge(found: list[Interval], *, gap: int = 0) -> list[Interval]:
    """Put in order, and together what overlaps or has no more than *gap* characters between."""
    merged: list[Interval] = []
    for start, end in sorted(found):
        if merged and start - merged[-1][1] <= gap:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
