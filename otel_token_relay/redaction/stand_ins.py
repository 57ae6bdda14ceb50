"""Recognize text that appears in place of a secret: placeholders, other tools' masks, messages, schemas, and code.

A value remains unmasked only if it consists entirely of such text. The functions in this module are pure, and their
running time is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from otel_token_relay.redaction.credential_patterns import is_nothing, is_random, is_unpronounceable, looks_secret

_MAX_LENGTH: Final = 160

# Matches words without digits between the delimiters that templates, shells, documentation, and other scrubbers use.
_NAME: Final = r"[A-Za-z]{1,24}(?:[ _.\-][A-Za-z]{1,24}){0,6}"
_is_placeholder = re.compile(
    rf"\$?\{{ ?{_NAME} ?\}}|\$?\{{\{{ ?\.?{_NAME} ?\}}\}}|<{_NAME}>|%\({_NAME}\)s|%{_NAME}%"
    r"|\$\{\w{1,40}\}|\$\([A-Za-z_]{1,40}\)"
    r"|\[(?i:redacted|filtered|hidden|masked|scrubbed|removed|secure)\]"
).fullmatch
# Matches relative paths and the URNs that are registered for IETF protocol parameters (RFC 3553).
_is_locator = re.compile(
    r"urn:ietf:params:[a-z0-9:._\-]{1,100}"
    r"|(?:\.{1,2}|~)(?:/\.?[A-Za-z_\-]{2,40}){1,12}(?:\.[a-z]{1,8})?"
).fullmatch

# Matches text that has the syntax of a message about a missing or invalid value.
_is_message = re.compile(r"\(?[A-Za-z0-9'\u2019]+(?:[.,:]? \(?[A-Za-z0-9'\u2019]+\)?)+[.:]?\)?[.:]?").fullmatch
_WORDS: Final = re.compile(r"[A-Za-z'\u2019]+|\d+")
# A message about a value contains at least one of these words.
_VERBS: Final = frozenset(
    [
        "must",
        "required",
        "missing",
        "invalid",
        "cannot",
        "can't",
        "may",
        "should",
        "is",
        "are",
        "not",
        "does",
        "doesn't",
        "too",
        "expected",
        "expired",
    ]
)
# A message about a value can contain only these words and short numbers.
_MESSAGE: Final = _VERBS | frozenset(
    [
        "a",
        "an",
        "the",
        "this",
        "that",
        "it",
        "its",
        "be",
        "been",
        "was",
        "has",
        "have",
        "have",
        "to",
        "of",
        "in",
        "or",
        "and",
        "by",
        "at",
        "for",
        "with",
        "from",
        "than",
        "least",
        "most",
        "minimum",
        "maximum",
        "min",
        "max",
        "more",
        "less",
        "fewer",
        "short",
        "long",
        "large",
        "common",
        "numeric",
        "blank",
        "empty",
        "null",
        "none",
        "undefined",
        "value",
        "valid",
        "string",
        "number",
        "text",
        "field",
        "input",
        "password",
        "passphrase",
        "token",
        "secret",
        "key",
        "code",
        "credentials",
        "character",
        "characters",
        "char",
        "chars",
        "letter",
        "letters",
        "digit",
        "digits",
        "symbol",
        "symbols",
        "bytes",
        "length",
        "one",
        "two",
        "upper",
        "lower",
        "case",
        "uppercase",
        "lowercase",
        "special",
        "contain",
        "contains",
        "include",
        "ensure",
        "provided",
        "given",
        "entered",
        "allowed",
        "supported",
        "match",
        "exist",
        "found",
        "specified",
        "set",
        "only",
        "numbers",
        "entirely",
        "similar",
        "please",
        "enter",
        "provide",
        "do",
        "don't",
        "no",
        "wrong",
        "incorrect",
        "unknown",
        "api",
        "access",
        "refresh",
        "client",
        "same",
        "as",
        "other",
    ]
)

# Keywords from JSON Schema (sections 6 and 9) and OpenAPI (section 4.8.24). Only the ``default`` keyword can contain a
# value.
_IN_SCHEMAS: Final = frozenset(
    [
        "type",
        "format",
        "title",
        "description",
        "minlength",
        "maxlength",
        "minimum",
        "maximum",
        "nullable",
        "readonly",
        "writeonly",
        "deprecated",
        "default",
        "$ref",
        "anyof",
        "oneof",
        "allof",
        "items",
        "required",
        "in",
        "name",
        "scheme",
        "bearerformat",
    ]
)
_TYPES: Final = frozenset(
    [
        "string",
        "integer",
        "number",
        "boolean",
        "array",
        "object",
        "null",
        "apikey",
        "http",
        "oauth2",
        "openidconnect",
        "mutualtls",
    ]
)
_IN_ERRORS: Final = frozenset(
    ["code", "message", "msg", "error", "reason", "rule", "type", "minimum", "maximum", "limit", "min", "max"]
)
_MAX_DEPTH: Final = 8

# Matches a string literal without line breaks.
_LITERAL: Final = r"""(?:"[^"\r\n]{0,80}"|'[^'\r\n]{0,80}')"""
_CALL: Final = re.compile(
    rf"""(?:
        \((?:[\w .,:%=$?\[\]]|\((?:[\w .,:%=$?]|{_LITERAL}){{0,40}}+\)|{_LITERAL}){{0,80}}+\)
      | \[{_LITERAL}\]
    )(?=[\s,;:)}}\]`]|\Z)""",
    re.VERBOSE,
)
_LITERALS: Final = re.compile(r"\"([^\"]*)\"|'([^']*)'")
_is_function = re.compile(r"[A-Za-z_]{2,40}(?:\.[A-Za-z_]{1,40}){1,6}|[A-Za-z_]{3,40}").fullmatch
# Matches the name of an environment variable, the name of a header, or an empty string.
_is_literal_name = re.compile(
    r"[A-Z]{1,24}(?:_[A-Z]{1,24}){1,6}|[A-Z][a-z]{1,24}(?:-[A-Z][a-z]{1,24})*|X(?:-[A-Z][A-Za-z]{1,24}){1,6}|"
).fullmatch


def is_stand_in(value: str) -> bool:
    """Return whether a string is empty, a placeholder, a mask, a relative path, or a message about a value."""
    if is_nothing(value):
        return True
    if len(value) > _MAX_LENGTH:
        return False
    value = value.strip()
    if _is_placeholder(value) is not None:
        return True
    return _is_about_a_value(value) or (_is_locator(value) is not None and not is_random(value))


def _is_about_a_value(text: str) -> bool:
    """Return whether the text is a message such as ``must be 8 characters``.

    Every word must be in a fixed list of words. Only one in 100 million random four-word passphrases from a 7,776-word
    list meets this condition.
    """
    if _is_message(text) is None:
        return False
    words = [word.lower().replace("\u2019", "'") for word in _WORDS.findall(text)]
    return (
        len(words) > 1
        and not _VERBS.isdisjoint(words)
        and all(word in _MESSAGE or (word.isdigit() and len(word) <= 3) for word in words)
        and re.search(r"[A-Za-z]\d|\d[A-Za-z]", text) is None
    )


def is_description(value: Any, depth: int = 0) -> bool:
    """Return whether a mapping contains only a value's schema or a message about a value."""
    if not issubclass(type(value), Mapping) or len(value) > len(_IN_SCHEMAS) or depth > _MAX_DEPTH:
        return False
    if not value or not all(type(key) is str for key in value):
        return False
    items = {key.lower(): item for key, item in value.items()}
    if items.keys() <= _IN_ERRORS:
        strings = [item for item in items.values() if not isinstance(item, (int, float, type(None)))]
        return all(type(text) is str and is_stand_in(text.replace("_", " ")) for text in strings)
    return items.keys() <= _IN_SCHEMAS and _is_schema(items, depth)


def _is_schema(items: Mapping[str, Any], depth: int) -> bool:
    types = items.get("type", ())
    reference = items.get("$ref", "#/")
    alternatives = [items[key] for key in ("anyof", "oneof", "allof") if key in items]
    children = [item for listed in alternatives if type(listed) is list for item in listed]
    children += [items["items"]] if "items" in items else []
    values = [item for key, item in items.items() if key not in ("type", "$ref", "anyof", "oneof", "allof", "items")]
    return (
        bool(types or "$ref" in items or children)
        and all(type(name) is str and name.lower() in _TYPES for name in ([types] if type(types) is str else types))
        and type(reference) is str
        and reference.startswith("#/")
        and not is_random(reference)
        and all(is_description(child, depth + 1) for child in children)
        and (items.get("default") is None or is_stand_in(str(items["default"])))
        and all(
            type(text) in (bool, int, type(None)) or (type(text) is str and not looks_secret(text)) for text in values
        )
    )


def end_of_call(text: str, start: int, end: int) -> int | None:
    """Return the end position of the call or subscript that follows the name ``text[start:end]``.

    If the name is not followed by a call or a subscript, the result is ``None``.
    """
    if text[end : end + 1] not in ("(", "[") or _is_function(text, start, end) is None:
        return None
    if any(is_unpronounceable(word) for word in re.split(r"[._]", text[start:end])):
        return None
    call = _CALL.match(text, end)
    return None if call is None else call.end()


def is_call_without_secret(call: str) -> bool:
    """Return whether every string literal in a call is a name or a placeholder, as in ``os.getenv("API_KEY")``."""
    strings = [first or second for first, second in _LITERALS.findall(call)]
    return all(_is_literal_name(text) is not None or is_stand_in(text) for text in strings)
