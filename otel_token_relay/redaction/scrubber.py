"""Take tokens out of values: text, bytes, sequences, mappings in, the same without tokens out.

Pure: knows no OpenTelemetry, no clock and no settings.

Two stages, since nearly all telemetry is clean. `Scrubber.is_suspect` looks at all texts of a
record at once, with a handful of substring tests and no regular expression. Only where it says
yes does the thorough stage run, and then over the whole record. What that stage guarantees:

* No run of 17 characters (`fragments.LONGEST_SURVIVOR` + 1) of a token of the record's own request is
  left, however the text around it is quoted: runs of unreserved characters look the same in URLs, JSON,
  HTML and ``repr``, and the other encodings of a token are searched for like the token itself.
* Of a token that is remembered from elsewhere the same is left of all that is random, and no word is masked.
* The mask is constant. It says neither what it replaced nor how long that was.
* A clean value comes back as the same object, and cleaning twice changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from otel_token_relay.redaction.credential_patterns import (
    COMPANY_KEYS,
    PARAMETER_NAMES,
    WEAK_NAMES,
    has_parameter_mark,
    intervals_by_rule,
    is_nothing,
    looks_secret,
)
from otel_token_relay.redaction.token_search import NOTHING, Secrets, ascii_lower, merge

MASK: Final = "[REDACTED]"
FAILED: Final = "[REDACTION FAILED]"

# Looking for the pieces of one token, or for what looks like one, costs some 10 ms in each
# 64 KiB. What is longer and suspect is masked as a whole.
_MAX_SEARCHED: Final = 65_536
_MAX_READ_BY_RULE: Final = 1_048_576

# Deeper or wider than any telemetry that means something; what lies beyond is masked.
_MAX_DEPTH: Final = 48
_MAX_NODES: Final = 50_000

# What one value of a suspect record may have of text that is looked at closely, and what a text
# counts in characters besides its own.
_MAX_CHARACTERS: Final = 1_048_576
_TEXT_OVERHEAD: Final = 256

# The shortest credential there is: ``Bearer x``. What is shorter holds none.
_SHORTEST: Final = 8

_MAX_KNOWN: Final = 4096
# Words with at most three digits after each: what the names of attributes are made of, and what no
# token is. Such a key is looked at once, for all tokens to come.
_is_ordinary = re.compile(r"(?:(?:[A-Z]?[a-z]{1,24}+|[A-Z]{1,24}+)\d{0,3}+(?:[._\-]|\Z)){1,16}+").fullmatch
_MAX_ORDINARY: Final = 160

_NUMBERS: Final = frozenset({int, float, bool, type(None)})
_BYTES: Final = (bytes, bytearray, memoryview)
_TEXTS: Final = (str, *_BYTES)
_SEQUENCES: Final = (list, tuple, set, frozenset)


class Scrubber:
    """The rules under one configuration. Safe to share between threads.

    Args:
        keys: Keys whose value is always masked, in any case, ``-`` and ``_`` alike. They stand
            for themselves and for the end of a longer key: ``x-api-key`` also is
            ``http.request.header.x_api_key``.
        headers: Names of headers that hold tokens. The same, but numbers under them stay.
    """

    def __init__(self, keys: Iterable[str] = (), headers: Iterable[str] = ()) -> None:
        self._keys = frozenset(map(_normalize_key, keys))
        self._headers = frozenset(map(_normalize_key, headers))
        # Ordinary keys that are not sensitive.
        self.known_keys: set[str] = set()

    def is_suspect(self, joined: str, secrets: Secrets) -> bool:
        """Say whether a token may stand in there. Cheap, and errs on the side of yes.

        Args:
            joined: Every text of a record, with ``NUL`` between them.
            secrets: The tokens known to belong to the record.
        """
        if "J" in joined and "eyJ" in joined:
            return True
        lowered = joined.lower()
        return bool(secrets.anchors_in(lowered)) or has_parameter_mark(lowered)

    def gather(self, values: Mapping[str, Any], strings: list[str], secrets: Secrets) -> bool:
        """Append every text of a mapping to *strings*; say whether it is suspect by itself."""
        suspect = not self.known_keys.issuperset(values) and self._gather_keys(values, strings, secrets)
        for value in values.values():
            kind = type(value)
            if kind is str:
                strings.append(value)
            elif kind is not int and kind not in _NUMBERS and _gather(value, strings, self, secrets, _Budget()):
                suspect = True
        return suspect

    def gather_value(self, value: object, strings: list[str], secrets: Secrets) -> bool:
        """Do the same for any value."""
        return _gather(value, strings, self, secrets, _Budget())

    def _gather_keys(self, values: Mapping[Any, Any], strings: list[str], secrets: Secrets) -> bool:
        suspect = False
        for key in values:
            if key in self.known_keys:
                continue
            if not issubclass(type(key), str):
                suspect = _gather(key, strings, self, secrets, _Budget()) or suspect
            elif self.is_sensitive(key) or _is_weak(key):
                suspect = True
            else:
                strings.append(key)
                # Exactly str: a subclass could compare as it likes.
                if (
                    type(key) is str
                    and len(key) <= _MAX_ORDINARY
                    and _is_ordinary(key)
                    and not secrets.stand_in(key)
                    and len(self.known_keys) < _MAX_KNOWN
                ):
                    self.known_keys.add(key)
        return suspect

    def is_sensitive(self, key: str) -> bool:
        """Whether text under *key* is masked whatever it is."""
        normal = _normalize_key(key)
        return (
            normal.endswith("authorization")
            or _is_named(normal, self._headers)
            or _is_named(normal, self._keys)
            or normal.rpartition(".")[2].replace("_", "") in PARAMETER_NAMES
        )

    def redact(self, value: Any, secrets: Secrets) -> Any:
        """Give *value* without tokens, the same object if there are none. Never raises `Exception`."""
        try:
            strings: list[str] = []
            if not _gather(value, strings, self, secrets, _Budget()) and not self.is_suspect(
                "\0".join(strings), secrets
            ):
                return value
            return self.clean(value, secrets)
        except Exception:  # whatever the value does when it is looked at
            return FAILED

    def clean(self, value: Any, secrets: Secrets) -> Any:
        """Do the thorough stage on a value of a record that is suspect."""
        return _Cleaning(self, secrets).value(value, 0)

    def clean_text(self, text: str, secrets: Secrets) -> str:
        """Do the thorough stage on one text."""
        if len(text) < _SHORTEST or (len(text) < 24 and text.isdecimal() and not secrets.stand_in(text)):
            return text
        if len(text) > _MAX_SEARCHED and secrets.stand_in_long(text):
            return MASK
        if len(text) > _MAX_READ_BY_RULE:
            return MASK if self.is_suspect(text, NOTHING) else text
        found = intervals_by_rule(text)
        if len(text) <= _MAX_SEARCHED:
            # Both look at the text as it was: what one of them took out would hide the rest from the other.
            found += secrets.intervals_in(text)
        return _masked(text, merge(found)) if found else text

    def clean_mapping(self, values: Mapping[str, Any], secrets: Secrets) -> dict[str, Any] | None:
        """Give a clean copy of attributes, ``None`` if they are clean as they are."""
        cleaned = self.clean(dict(values), secrets)
        return None if all(cleaned.get(key, cleaned) is value for key, value in values.items()) else cleaned


def _masked(text: str, intervals: list[tuple[int, int]]) -> str:
    parts: list[str] = []
    done = 0
    for start, end in intervals:
        parts += (text[done:start], MASK)
        done = end
    return "".join([*parts, text[done:]])


class _Budget:
    """How many values one gathering or cleaning may still look at."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = _MAX_NODES


def _gather(
    value: Any, strings: list[str], scrubber: Scrubber, secrets: Secrets, budget: _Budget, depth: int = 0
) -> bool:
    # By the type itself: what an object says of its class (a proxy's is another's) is no help here.
    kind = type(value)
    if issubclass(kind, str):
        strings.append(str.__str__(value))
        return False
    if value is None or issubclass(kind, (int, float)):
        return False
    if issubclass(kind, _BYTES):
        strings.append(_text_of(value))
        return False
    if issubclass(kind, Mapping):
        children: Iterable[object] = value.values()
        suspect = scrubber._gather_keys(value, strings, secrets)
    elif issubclass(kind, _SEQUENCES):
        children = value
        suspect = False
        if len(value) > 1:
            # A token may be cut into the elements, at no place that would be left to see.
            strings.append("".join([_text_of(item) for item in children if issubclass(type(item), _TEXTS)]))
    else:
        # Whoever exports it will want it as text.
        strings.append(str(value))
        return False
    if depth >= _MAX_DEPTH:
        return True
    for child in children:
        kind = type(child)
        if kind is str:
            strings.append(child)  # type: ignore[arg-type]
        elif kind not in _NUMBERS:
            budget.left -= 1
            if budget.left < 0:
                return True
            suspect = _gather(child, strings, scrubber, secrets, budget, depth + 1) or suspect
    return suspect


class _Cleaning:
    """One run of the thorough stage."""

    def __init__(self, scrubber: Scrubber, secrets: Secrets) -> None:
        self._scrubber = scrubber
        self._secrets = secrets
        self._budget = _Budget()
        self._characters = _MAX_CHARACTERS

    def value(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if issubclass(kind, str):
            plain = str.__str__(value)
            cleaned = self._text(plain)
            return value if cleaned is plain or cleaned == plain else cleaned
        if value is None or issubclass(kind, (int, float)):
            return value
        if issubclass(kind, _BYTES):
            text = _text_of(value)
            cleaned = self._text(text)
            return value if cleaned == text else cleaned.encode("latin-1")
        self._budget.left -= 1
        if self._budget.left < 0 or depth > _MAX_DEPTH:
            return MASK
        if issubclass(kind, Mapping):
            return self._mapping(value, depth)
        if issubclass(kind, _SEQUENCES):
            return self._sequence(value, depth)
        return self._object(value)

    def _text(self, text: str) -> str:
        # What is beyond all measure is masked: looking at it would cost seconds.
        self._characters -= len(text) + _TEXT_OVERHEAD
        return self._scrubber.clean_text(text, self._secrets) if self._characters >= 0 else MASK

    def _object(self, value: object) -> object:
        try:
            text = str(value)
            cleaned = self._text(text)
        except Exception:  # its own code, of which nothing is known
            return FAILED
        return value if cleaned == text else cleaned

    def _mapping(self, values: Mapping[Any, Any], depth: int) -> Any:
        changed = False
        cleaned = {}
        for key, value in values.items():
            # A name that was there before the token is no part of it.
            is_name = _is_plain_number(key) or key in self._scrubber.known_keys
            new_key = key if is_name else self.value(key, depth + 1)
            if issubclass(type(key), str) and self._scrubber.is_sensitive(key):
                is_ours = _is_named(_normalize_key(key), self._scrubber._keys)
                new = _mask_all(value, numbers_too=is_ours, depth=depth)
            elif issubclass(type(key), str) and _is_weak(key) and _is_credential(key, value, values):
                new = _mask_all(value, numbers_too=False, depth=depth)
            else:
                new = self.value(value, depth + 1)
            changed = changed or new is not value or new_key is not key
            cleaned[new_key] = new
        return cleaned if changed else values

    def _sequence(self, values: Any, depth: int) -> Any:
        before = list(values)
        split = self._split_over(before)
        cleaned = [MASK if at in split else self.value(item, depth + 1) for at, item in enumerate(before)]
        if all(new is old for new, old in zip(cleaned, before, strict=True)):
            return values
        if issubclass(type(values), list):
            return cleaned
        return tuple(cleaned) if issubclass(type(values), tuple) else type(values)(cleaned)

    def _split_over(self, items: list[Any]) -> set[int]:
        """Give the elements over which a token is cut up."""
        texts = [(at, _text_of(item)) for at, item in enumerate(items) if issubclass(type(item), _TEXTS)]
        if len(texts) < 2:
            return set()
        joined = "".join([text for _, text in texts])
        if len(joined) > _MAX_SEARCHED:
            return {at for at, _ in texts} if self._secrets.stand_in_long(joined) else set()
        split: set[int] = set()
        for begin, stop in self._secrets.intervals_in(joined):
            touched = set()
            start = 0
            for at, text in texts:
                if start < stop and begin < start + len(text):
                    touched.add(at)
                start += len(text)
            if len(touched) > 1:
                split |= touched
        return split


def _mask_all(value: Any, *, numbers_too: bool, depth: int) -> Any:
    """Mask a value of a sensitive key, keeping the shape of a sequence."""
    kind = type(value)
    if value is None or (issubclass(kind, (int, float)) and not numbers_too):
        return value
    if issubclass(kind, (list, tuple)) and depth < _MAX_DEPTH and len(value) <= 1000:
        cleaned = [_mask_all(item, numbers_too=numbers_too, depth=depth + 1) for item in value]
        if all(new is old for new, old in zip(cleaned, value, strict=True)):
            return value
        return cleaned if issubclass(kind, list) else tuple(cleaned)
    return value if kind is str and value == MASK else MASK


def _is_weak(key: str) -> bool:
    return ascii_lower(key).rpartition(".")[2] in WEAK_NAMES


def _is_credential(key: str, value: object, values: Mapping[Any, Any]) -> bool:
    """Tell a code of OAuth, under a key that often holds something else, by its looks or its neighbours."""
    texts = [item for item in (value if type(value) in (list, tuple) else (value,)) if type(item) is str]  # type: ignore[attr-defined]
    if any(looks_secret(text) for text in texts):
        return True
    is_token = ascii_lower(key).endswith("token")
    in_company = not COMPANY_KEYS.isdisjoint(name for name in values if type(name) is str)
    return in_company and not is_token and not all(is_nothing(text) for text in texts)


def _text_of(value: Any) -> str:
    return str.__str__(value) if issubclass(type(value), str) else bytes(value).decode("latin-1")


def _is_plain_number(key: object) -> bool:
    return key is None or issubclass(type(key), (int, float))


def _normalize_key(key: str) -> str:
    return ascii_lower(key.strip()).replace("-", "_")


def _is_named(normal: str, names: frozenset[str]) -> bool:
    if not names:
        return False
    return normal in names or any(normal.endswith("." + name) for name in names)
