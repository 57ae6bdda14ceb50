"""Mask tokens in strings, bytes, sequences, and mappings.

This module does not depend on OpenTelemetry, a clock, or settings.

Nearly all telemetry is clean, so redaction has two stages. `Scrubber.is_suspect` checks all of a record's strings in
one pass. The check runs a few substring tests before any regular expression. The thorough stage runs only on suspect
records and processes the entire record. The thorough stage guarantees the following:

* No run of 17 characters (`token_search.LONGEST_SURVIVOR` + 1) from a record's own token remains unmasked, regardless
  of quoting. Runs of unreserved characters are the same in URLs, JSON, HTML, and ``repr``. A token's other encodings
  are searched for in the same way as the token itself.
* Only the random parts of a remembered token are masked in the same way. Words in the token can remain unmasked.
* The mask is constant and reveals neither the replaced text nor its length.
* A clean value is returned as the same object, and redaction is idempotent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from otel_token_relay.redaction.credential_patterns import ascii_lower, is_words, looks_secret, may_have_jwt
from otel_token_relay.redaction.secret_names import Kind, SecretNames
from otel_token_relay.redaction.stand_ins import is_description, is_stand_in
from otel_token_relay.redaction.token_search import NOTHING, KnownTokens, merge
from otel_token_relay.redaction.unknown_tokens import MASK as MASK
from otel_token_relay.redaction.unknown_tokens import OAUTH_CONTEXT_KEYS, OAUTH_NAMES, UnknownTokens

FAILED: Final = "[REDACTION FAILED]"

# A string longer than 64 KiB is masked entirely if it might contain a known token. Searching 64 KiB for the parts of
# one token takes about 10 ms.
_MAX_SEARCHED: Final = 65_536
# A suspect string longer than 8 MiB is masked entirely. Searching 1 MiB by pattern takes about 100 ms.
_MAX_READ_BY_RULE: Final = 8_388_608

# The maximum nesting depth and the maximum number of nested values. Meaningful telemetry does not exceed these limits.
# Values beyond these limits are masked.
_MAX_DEPTH: Final = 48
_MAX_NODES: Final = 50_000

# The maximum number of characters to search in one value of a suspect record. If a string is searched only by pattern,
# only one-eighth of its length is counted.
_MAX_CHARACTERS: Final = 1_048_576
# The number of characters to add to the count for each string, in addition to the string's length.
_TEXT_OVERHEAD: Final = 256

# The length of ``Bearer x``, the shortest string that can contain a credential.
_MIN_LENGTH: Final = 8

_MAX_KNOWN: Final = 4096
# Matches words that are each followed by at most three digits. Attribute names consist of such words, but tokens do
# not. A matching key is therefore checked only once, not for each token.
_is_ordinary = re.compile(r"(?:(?:[A-Z]?[a-z]{1,24}+|[A-Z]{1,24}+)\d{0,3}+(?:[._\-]|\Z)){1,16}+").fullmatch
_MAX_ORDINARY: Final = 160

_NUMBERS: Final = frozenset({int, float, bool, type(None)})
_BYTES: Final = (bytes, bytearray, memoryview)
_TEXTS: Final = (str, *_BYTES)
_SEQUENCES: Final = (list, tuple, set, frozenset)


class Scrubber:
    """The redaction rules for one configuration. This class is thread-safe.

    Args:
        keys: The keys whose values are always masked. Matching ignores case, and ``-`` is equivalent to ``_``. A key
            also matches the end of a dotted key. For example, ``x-api-key`` matches ``http.request.header.x_api_key``.
        headers: The names of headers that contain tokens. Header names are matched in the same way as *keys*, but
            numeric values are not masked.
    """

    def __init__(self, keys: Iterable[str] = (), headers: Iterable[str] = ()) -> None:
        self.names: SecretNames = SecretNames(keys, headers)
        self._unknown = UnknownTokens(self.names)
        # Ordinary keys that are not sensitive and have been found to be clean.
        self.known_keys: set[str] = set()

    def is_suspect(self, joined: str, known: KnownTokens) -> bool:
        """Return whether a record might contain a token. The check is fast but can produce false positives.

        Args:
            joined: All of the record's strings, separated by NUL characters.
            known: The record's known tokens.
        """
        if may_have_jwt(joined):
            return True
        lowered = joined.lower()
        return bool(known.needles_in(lowered)) or self._unknown.may_be_labeled_in(lowered)

    def gather(self, values: Mapping[str, Any], strings: list[str], known: KnownTokens) -> bool:
        """Append a mapping's strings to *strings*, and return whether its keys or structure are suspect."""
        suspect = not self.known_keys.issuperset(values) and self._gather_keys(values, strings, known)
        for value in values.values():
            kind = type(value)
            if kind is str:
                strings.append(value)
            elif kind is not int and kind not in _NUMBERS and self.gather_value(value, strings, known):
                suspect = True
        return suspect

    def gather_value(
        self, value: Any, strings: list[str], known: KnownTokens, nodes: Iterator[int] | None = None, depth: int = 0
    ) -> bool:
        """Append a value's strings to *strings*, and return whether its keys or structure are suspect.

        *nodes* is an iterator that yields one item for each value that can still be visited.
        """
        # The code checks ``type(value)`` instead of ``value.__class__``, because a proxy object can return a different
        # class as its ``__class__``.
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
            suspect = self._gather_keys(value, strings, known)
            if "value" in value:
                suspect = self.names.kind_of(_name_in(value)) > Kind.HARMLESS or suspect
        elif issubclass(kind, _SEQUENCES):
            children = value
            suspect = _is_pair(value) and self.names.kind_of(_text_of(value[0])) > Kind.HARMLESS
            if len(value) > 1:
                # A token can be split across elements at any position.
                strings.append("".join([_text_of(item) for item in children if issubclass(type(item), _TEXTS)]))
        else:
            # Exporters convert all other objects to strings.
            strings.append(str(value))
            return False
        if depth >= _MAX_DEPTH:
            return True
        nodes = iter(range(_MAX_NODES)) if nodes is None else nodes
        for child in children:
            kind = type(child)
            if kind is str:
                strings.append(child)  # type: ignore[arg-type]
            elif kind not in _NUMBERS:
                if next(nodes, None) is None:
                    return True
                suspect = self.gather_value(child, strings, known, nodes, depth + 1) or suspect
        return suspect

    def _gather_keys(self, values: Mapping[Any, Any], strings: list[str], known: KnownTokens) -> bool:
        suspect = False
        for key in values:
            if key in self.known_keys:
                continue
            if not issubclass(type(key), str):
                suspect = self.gather_value(key, strings, known) or suspect
            elif self.names.kind_of(key) > Kind.HARMLESS:
                suspect = True
            else:
                strings.append(key)
                # Subclasses of `str` are excluded, because they can override comparison methods.
                if (
                    type(key) is str
                    and len(key) <= _MAX_ORDINARY
                    and _is_ordinary(key)
                    and not known.may_be_in(key)
                    and len(self.known_keys) < _MAX_KNOWN
                ):
                    self.known_keys.add(key)
        return suspect

    def redact(self, value: Any, known: KnownTokens) -> Any:
        """Return a copy of *value* with its tokens masked, or *value* itself if it contains no tokens.

        If *value* cannot be redacted, the result is ``[REDACTION FAILED]``. The method never raises an `Exception`.
        """
        try:
            strings: list[str] = []
            if not self.gather_value(value, strings, known) and not self.is_suspect("\0".join(strings), known):
                return value
            return self.clean(value, known)
        except Exception:  # the value's class can raise any exception
            return FAILED

    def clean(self, value: Any, known: KnownTokens) -> Any:
        """Run the thorough stage on a value from a suspect record."""
        return _Cleaning(self, known).value(value, 0)

    def clean_text(self, text: str, known: KnownTokens) -> str:
        """Run the thorough stage on one string."""
        if len(text) < _MIN_LENGTH or (len(text) < 24 and text.isdecimal() and not known.may_be_in(text)):
            return text
        if len(text) > _MAX_SEARCHED and known.may_be_in_long(text):
            return MASK
        if len(text) > _MAX_READ_BY_RULE:
            return MASK if self.is_suspect(text, NOTHING) else text
        found = self._unknown.intervals_in(text)
        if len(text) <= _MAX_SEARCHED:
            # Both searches use the original text, because a mask from the first search could hide part of a token from
            # the second search.
            found += known.intervals_in(text)
        return _masked(text, merge(found)) if found else text

    def clean_mapping(self, values: Mapping[str, Any], known: KnownTokens) -> dict[str, Any] | None:
        """Return a redacted copy of the attributes, or ``None`` if the attributes are already clean."""
        cleaned = self.clean(dict(values), known)
        return None if all(cleaned.get(key, cleaned) is value for key, value in values.items()) else cleaned


def _masked(text: str, intervals: list[tuple[int, int]]) -> str:
    parts: list[str] = []
    done = 0
    for start, end in intervals:
        parts += (text[done:start], MASK)
        done = end
    return "".join([*parts, text[done:]])


class _Cleaning:
    """A single run of the thorough redaction stage."""

    def __init__(self, scrubber: Scrubber, known: KnownTokens) -> None:
        self._scrubber = scrubber
        self._known = known
        self._nodes = _MAX_NODES
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
        self._nodes -= 1
        if self._nodes < 0 or depth > _MAX_DEPTH:
            return MASK
        if issubclass(kind, Mapping):
            return self._mapping(value, depth)
        if issubclass(kind, _SEQUENCES):
            return self._sequence(value, depth)
        return self._object(value)

    def _text(self, text: str) -> str:
        # Text beyond the limit is masked, because searching it would take seconds.
        if self._characters < 0:
            return MASK
        self._characters -= _TEXT_OVERHEAD + (len(text) if len(text) <= _MAX_SEARCHED else len(text) // 8)
        return self._scrubber.clean_text(text, self._known)

    def _object(self, value: object) -> object:
        try:
            text = str(value)
            cleaned = self._text(text)
        except Exception:  # the value's class can raise any exception
            return FAILED
        return value if cleaned == text else cleaned

    def _mapping(self, values: Mapping[Any, Any], depth: int) -> Any:
        changed = False
        cleaned = {}
        name = _name_in(values) if "value" in values else ""
        for key, value in values.items():
            # Known keys are not searched again, because they consist of ordinary words and have been found to be clean.
            is_name = _is_plain_number(key) or key in self._scrubber.known_keys
            new_key = key if is_name else self.value(key, depth + 1)
            kind = self._scrubber.names.kind_of(key) if issubclass(type(key), str) else Kind.ORDINARY
            if kind >= Kind.STRONG and (kind is Kind.CONFIGURED or not _stands_in(value, kind)):
                new = _mask_all(value, numbers_too=self._scrubber.names.masks_numbers(key), depth=depth)
            elif Kind.HARMLESS < kind < Kind.STRONG and _is_credential(key, value, values):
                new = _mask_all(value, numbers_too=False, depth=depth)
            elif name and key == "value" and self._is_labeled(name, value):
                new = _mask_all(value, numbers_too=self._scrubber.names.masks_numbers(name), depth=depth)
            else:
                new = self.value(value, depth + 1)
            changed = changed or new is not value or new_key is not key
            cleaned[new_key] = new
        return cleaned if changed else values

    def _is_labeled(self, name: str, value: object) -> bool:
        """Return whether a value next to a name is a credential, as in a list of headers."""
        kind = self._scrubber.names.kind_of(name)
        if kind is Kind.CONFIGURED:
            return True
        if kind <= Kind.HARMLESS or not issubclass(type(value), _TEXTS):
            return False
        text = _text_of(value)
        if kind < Kind.STRONG:
            return looks_secret(text)
        return not is_stand_in(text) and not is_words(text)

    def _sequence(self, values: Any, depth: int) -> Any:
        before = list(values)
        if _is_pair(values) and self._is_labeled(_text_of(before[0]), before[1]):
            name = self.value(before[0], depth + 1)  # the text that contains the name might also contain a credential
            return type(values)((name, MASK)) if type(values) in (list, tuple) else (name, MASK)
        split = self._split_over(before)
        cleaned = [MASK if at in split else self.value(item, depth + 1) for at, item in enumerate(before)]
        if all(new is old for new, old in zip(cleaned, before, strict=True)):
            return values
        if issubclass(type(values), list):
            return cleaned
        return tuple(cleaned) if issubclass(type(values), tuple) else type(values)(cleaned)

    def _split_over(self, items: list[Any]) -> set[int]:
        """Return the indexes of the elements across which a token is split."""
        strings = [(at, _text_of(item)) for at, item in enumerate(items) if issubclass(type(item), _TEXTS)]
        if len(strings) < 2:
            return set()
        joined = "".join([text for _, text in strings])
        if len(joined) > _MAX_SEARCHED:
            return {at for at, _ in strings} if self._known.may_be_in_long(joined) else set()
        split: set[int] = set()
        for begin, stop in self._known.intervals_in(joined):
            touched = set()
            start = 0
            for at, text in strings:
                if start < stop and begin < start + len(text):
                    touched.add(at)
                start += len(text)
            if len(touched) > 1:
                split |= touched
        return split


def _mask_all(value: Any, *, numbers_too: bool, depth: int) -> Any:
    """Mask a sensitive key's value. In a list or a tuple, mask each item separately."""
    kind = type(value)
    if value is None or (issubclass(kind, (int, float)) and not numbers_too):
        return value
    if issubclass(kind, (list, tuple)) and depth < _MAX_DEPTH and len(value) <= 1000:
        cleaned = [_mask_all(item, numbers_too=numbers_too, depth=depth + 1) for item in value]
        if all(new is old for new, old in zip(cleaned, value, strict=True)):
            return value
        return cleaned if issubclass(kind, list) else tuple(cleaned)
    return value if kind is str and value == MASK else MASK


def _stands_in(value: Any, kind: Kind) -> bool:
    """Return whether a sensitive key's value is only a placeholder or a description."""
    if type(value) is str:
        return is_stand_in(value)
    if type(value) in (list, tuple):
        return len(value) <= 1000 and all(type(item) is str and is_stand_in(item) for item in value)
    return kind is Kind.STRONG and is_description(value)


def _is_credential(key: str, value: object, values: Mapping[Any, Any]) -> bool:
    """Return whether an ambiguous key's value is a credential, based on the value and the mapping's other keys."""
    strings = [item for item in (value if type(value) in (list, tuple) else (value,)) if type(item) is str]  # type: ignore[attr-defined]
    if any(looks_secret(text) for text in strings):
        return True
    if ascii_lower(key).rpartition(".")[2] not in OAUTH_NAMES:
        return False
    in_oauth_context = not OAUTH_CONTEXT_KEYS.isdisjoint(name for name in values if type(name) is str)
    return in_oauth_context and not all(is_stand_in(text) for text in strings)


def _is_pair(values: Any) -> bool:
    """Return whether a sequence could be a name-value pair, such as a header."""
    return len(values) == 2 and issubclass(type(values), (list, tuple)) and issubclass(type(values[0]), _TEXTS)


def _name_in(values: Mapping[Any, Any]) -> str:
    """Return the name in a mapping such as ``{"name": …, "value": …}`` (HAR), or an empty string if there is none."""
    name = values.get("name", values.get("key"))
    return _text_of(name) if issubclass(type(name), _TEXTS) else ""


def _text_of(value: Any) -> str:
    return str.__str__(value) if issubclass(type(value), str) else bytes(value).decode("latin-1")


def _is_plain_number(key: object) -> bool:
    return key is None or issubclass(type(key), (int, float))
