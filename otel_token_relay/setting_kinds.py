"""Define the types of settings, and parse values from environment variables and configuration files.

Each parser for configuration files also accepts the text format that environment variables use, because a configuration
file can refer to an environment variable with ``${NAME}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from otel_token_relay.client_credentials import CLIENT_AUTH_METHODS, Secret
from otel_token_relay.destinations import split_entries
from otel_token_relay.entry_syntax import FLAGS, GRANTS, RETRIES, TEXT_PARAMETERS, field_of
from otel_token_relay.spelling import hint

_TRUE: Final = frozenset({"true", "1", "yes", "on"})
_FALSE: Final = frozenset({"false", "0", "no", "off"})


@dataclass(frozen=True, slots=True)
class Kind:
    """The type of a setting.

    Attributes:
        read: A function that converts a string, or raises `ValueError` with a one-sentence message if the string is
            invalid.
        read_value: A function that converts any other type of value, or raises `ValueError` with a one-sentence message
            if the value is invalid.
        schema: The JSON Schema of the value in a configuration file.
        is_secret: Whether the value is a secret. A secret is never printed and cannot be passed as a launcher flag.
    """

    read: Callable[[str], Any]
    read_value: Callable[[object], Any]
    schema: Mapping[str, object]
    is_secret: bool = False

    def read_any(self, value: object) -> Any:
        """Convert a value from a configuration file.

        Raises:
            ValueError: The value has the wrong type or format. The error message is a single sentence.
        """
        return self.read(value.strip()) if isinstance(value, str) else self.read_value(value)


def is_off(value: object) -> bool:
    """Return whether a value turns a feature off.

    The values that turn a feature off are ``None``, a blank string, ``off``, ``false``, ``no``, and ``0``.
    """
    return value is None or str(value).strip().lower() in _FALSE | {""}


def _expected(what: str) -> Callable[[object], Any]:
    def refuse(value: object) -> Any:
        raise ValueError(f"expected {what}")

    return refuse


def _split(text: str) -> tuple[str, ...]:
    return tuple(part for part in (part.strip() for part in text.split(",")) if part)


def _items(value: object) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError("expected a list")
    return tuple(value)


def _read_strings(value: object) -> tuple[str, ...]:
    items = _items(value)
    for index, item in enumerate(items):
        if not isinstance(item, str) or not item.strip():
            raise ValueError(f"expected text for item {index}")
    return tuple(str(item).strip() for item in items)


# The text parameters of an entry, keyed by their names in a configuration file.
_PARAMETERS: Final[Mapping[str, str]] = {field_of(name): name for name in TEXT_PARAMETERS}


def _entry(index: int, item: object) -> str:
    """Convert a destination from a configuration file to the environment variable's syntax."""
    if isinstance(item, str):
        return item.strip()
    if not isinstance(item, Mapping):
        raise ValueError(f"expected text or a mapping for item {index}")
    origin = item.get("origin")
    if not isinstance(origin, str) or not origin.strip() or ";" in origin or "," in origin:
        raise ValueError(f"expected one origin, such as https://profile-service, for origin in item {index}")
    parts = [origin.strip()]
    for name, given in item.items():
        if name == "origin" or given is None or (given is False and name in FLAGS):
            continue
        if name in FLAGS and given is True:
            parts.append(name)
        elif name in _PARAMETERS and isinstance(given, str):
            parts.append(f"{_PARAMETERS[name]}={quote(given, safe='')}")
        elif name in FLAGS or name in _PARAMETERS:
            raise ValueError(f"expected {'true or false' if name in FLAGS else 'text'} for {name} in item {index}")
        else:
            meant = hint(str(name), ("origin", *FLAGS, *_PARAMETERS))
            raise ValueError(f"unknown key {ascii(name)[:60]} in item {index}{meant}")
    return ";".join(parts)


def _read_number(text: str) -> float:
    try:
        # Reject underscores and non-ASCII digits, which `float` accepts.
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("expected a number of seconds, such as 30 or 0.5")
    return value


def _read_count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError("expected a whole number greater than 0")
    return int(text)


def _read_flag(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError("expected true or false")
    return text.lower() in _TRUE


def _of_type(read: Callable[[str], Any], *types: type) -> Callable[[object], Any]:
    """Return a function that reads only values of the given types. A Boolean is not considered a number."""
    return lambda value: read(str(value) if type(value) in types else "")


def choice(*choices: str) -> Kind:
    """Return the kind for a setting that accepts only the given values."""

    def read_value(value: object) -> str:
        if value is False and "off" in choices:  # YAML parses an unquoted `off` as a Boolean
            return "off"
        raise ValueError(f"expected one of {', '.join(word for word in choices if word)}")

    return Kind(str, read_value, {"enum": [*choices, False] if "off" in choices else [*choices]})


_STRING: Final = {"type": "string"}

TEXT: Final = Kind(str, _expected("text"), _STRING)
SECRET: Final = Kind(Secret, _expected("text"), _STRING, is_secret=True)
WORDS: Final = Kind(
    _split,
    _read_strings,
    {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string", "minLength": 1}}]},
)
NUMBER: Final = Kind(
    _read_number, _of_type(_read_number, int, float), {"oneOf": [{"type": "number", "minimum": 0}, _STRING]}
)
COUNT: Final = Kind(_read_count, _of_type(_read_count, int), {"oneOf": [{"type": "integer", "minimum": 1}, _STRING]})
FLAG: Final = Kind(_read_flag, _of_type(_read_flag, bool), {"oneOf": [{"type": "boolean"}, _STRING]})
ENTRIES: Final = Kind(
    split_entries,
    lambda value: tuple(_entry(index, item) for index, item in enumerate(_items(value))),
    {
        "oneOf": [
            _STRING,
            {
                "type": "array",
                "items": {
                    "oneOf": [
                        {"type": "string", "minLength": 1},
                        {
                            "type": "object",
                            "properties": {"origin": {"type": "string", "minLength": 1}}
                            | {name: {"type": "boolean"} for name in FLAGS}
                            | {name: {"type": "string", "minLength": 1} for name in _PARAMETERS}
                            | {
                                "grant": {"enum": [*GRANTS]},
                                "without_user": {"enum": ["client"]},
                                "retry": {"enum": [*RETRIES]},
                            },
                            "required": ["origin"],
                            "additionalProperties": False,
                        },
                    ]
                },
            },
        ]
    },
)
_NOT_EMPTY: Final = {"type": "string", "minLength": 1}
# `read_issuers` checks each entry individually, so an error in one entry does not affect the other entries.
ISSUERS: Final = Kind(
    _split,
    _items,
    {
        "oneOf": [
            _STRING,
            {
                "type": "array",
                "items": {
                    "oneOf": [
                        _NOT_EMPTY,
                        {
                            "type": "object",
                            "properties": {
                                "issuer": _NOT_EMPTY,
                                "jwks_uri": _STRING,
                                "audience": {"oneOf": [_STRING, {"type": "array", "items": _NOT_EMPTY}]},
                                "introspection_endpoint": _STRING,
                                "token_endpoint": _STRING,
                                "client": {
                                    "type": "object",
                                    "properties": {
                                        "id": _NOT_EMPTY,
                                        "secret": _STRING,
                                        "secret_file": _STRING,
                                        "key_file": _STRING,
                                        "key_id": _STRING,
                                        "assertion_file": _STRING,
                                        "cert_file": _STRING,
                                        "auth": {"enum": [*CLIENT_AUTH_METHODS]},
                                    },
                                    "required": ["id"],
                                    "additionalProperties": False,
                                },
                            },
                            "required": ["issuer"],
                            "additionalProperties": False,
                        },
                    ]
                },
            },
        ]
    },
)
