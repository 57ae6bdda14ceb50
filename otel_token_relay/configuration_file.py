"""Read this package's settings from the OpenTelemetry configuration file that OTEL_CONFIG_FILE specifies.

OpenTelemetry passes part of the file to the propagator, but only if OpenTelemetry starts. This module reads the file
directly so that the settings apply even if OpenTelemetry fails to start, if the file contains ``disabled: true``, or
if the propagator is listed in ``composite_list``.

The settings are in ``instrumentation/development.python.token_relay`` or, with lower precedence, in an item of
``propagator.composite``. References of the form ``${NAME}`` or ``${NAME:-default}`` are replaced with the values of
environment variables.

Source: OpenTelemetry specification, "Declarative configuration: environment variable substitution".
"""

from __future__ import annotations

import importlib
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from otel_token_relay.spelling import resembles

FILE_VARIABLE: Final = "OTEL_CONFIG_FILE"
KEY: Final = "token_relay"

_INSTRUMENTATION: Final = ("instrumentation/development", "python", KEY)
# The sections for other languages belong to other packages.
_OTHER_LANGUAGES: Final = frozenset({"cpp", "dotnet", "erlang", "go", "java", "js", "php", "ruby", "rust", "swift"})
# The maximum file size, which is far larger than any real configuration file.
_MAX_BYTES: Final = 4 * 1024 * 1024

_substitutions: Final = re.compile(r"\$\$|\$\{(?:env:)?([A-Za-z_][A-Za-z0-9_]*)(?::-([^}\n]*))?\}").sub


class Section(NamedTuple):
    """A section of the configuration file that contains settings.

    Attributes:
        path: The section's path, as displayed in messages, such as ``propagator.composite[2].token_relay``.
        content: The section's content, which can have any type.
        duplicates: Keys that occur more than once in the section, such as ``destinations[0].audience``.
    """

    path: str
    content: object
    duplicates: tuple[str, ...] = ()


class ConfigurationFile(NamedTuple):
    """The parts of the configuration file that this package uses.

    Attributes:
        sections: The sections that contain settings, in order of precedence.
        misspelled: Sections whose names are probably misspelled, each with the correct path. Such sections have no
            effect.
        duplicates: The paths of duplicate keys that contain sections with settings.
        names_propagator: Whether the file enables the relay.
        problem: The reason why the file cannot be read; ``None`` if the file was read.
        is_unknown: Whether the file cannot be read but might contain settings.
    """

    sections: tuple[Section, ...] = ()
    misspelled: tuple[tuple[Section, str], ...] = ()
    duplicates: tuple[str, ...] = ()
    names_propagator: bool = False
    problem: str | None = None
    is_unknown: bool = False


class _Mapping(dict[Any, Any]):
    """A mapping that records duplicate keys. Parsers keep only the last value of a duplicate key."""

    duplicates: tuple[str, ...] = ()

    @classmethod
    def of(cls, pairs: Iterable[tuple[Any, Any]]) -> _Mapping:
        pairs = list(pairs)
        found = cls(pairs)
        if len(found) < len(pairs):
            found.duplicates = _repeated(key for key, _ in pairs)
        return found


def _repeated(keys: Iterable[Any]) -> tuple[str, ...]:
    return tuple(sorted(str(key) for key, count in Counter(keys).items() if count > 1))


def read_configuration_file(environ: Mapping[str, str]) -> ConfigurationFile:
    """Return the parts of the file that this package uses, or an empty result if OTEL_CONFIG_FILE is not set.

    Errors are reported in the result, not raised.

    Args:
        environ: The environment variables, which are also used to replace references such as ``${NAME}``.
    """
    name = environ.get(FILE_VARIABLE, "").strip()
    if not name:
        return ConfigurationFile()
    try:
        if not stat.S_ISREG(os.stat(name).st_mode):
            return _unreadable("it is not a regular file")  # opening a pipe could block
        with open(name, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            return _unreadable(f"it is larger than {_MAX_BYTES // 1024 // 1024} MiB")
    except (OSError, ValueError) as error:
        return _unreadable(getattr(error, "strerror", None) or "its name is invalid")
    try:
        document = _parse(content, Path(name).suffix.lower())
        return ConfigurationFile(
            tuple(_sections(document, environ)),
            tuple(_misspelled(document, environ)),
            tuple(_repeated_on_the_way(document)),
            _names_propagator(document, environ),
        )
    except ModuleNotFoundError:
        reason = "reading YAML requires opentelemetry-configuration: pip install opentelemetry-configuration"
    except RecursionError:
        reason = "it is nested too deeply"
    except UnicodeDecodeError:
        return _unreadable("it is not valid UTF-8")
    except Exception as error:  # the error can have any type, and its message might quote a secret
        reason = f"it cannot be parsed ({_position(error)})"
    return _unreadable(reason, is_unknown=KEY.encode() in content)


def _unreadable(reason: str, *, is_unknown: bool = True) -> ConfigurationFile:
    return ConfigurationFile(problem=reason, is_unknown=is_unknown)


def _position(error: Exception) -> str:
    """Return the error's type and, if known, the line on which the parser stopped."""
    mark = getattr(error, "problem_mark", None)
    line = getattr(error, "lineno", None) or (None if mark is None else mark.line + 1)
    return type(error).__name__ if line is None else f"{type(error).__name__} on line {line}"


def _parse(content: bytes, suffix: str) -> object:
    text = content.decode("utf-8-sig")
    if suffix == ".json":
        return json.loads(text, object_pairs_hook=_Mapping.of)
    # The package that OpenTelemetry uses to read the file requires PyYAML, so this package does not need to require it.
    yaml: Any = importlib.import_module("yaml")
    loader: Any = type("Loader", (yaml.SafeLoader,), {})

    def construct(parser: Any, node: Any) -> Iterator[_Mapping]:
        found = _Mapping()
        yield found  # values that are constructed later can refer to this mapping
        names = [parser.construct_object(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        found.update(parser.construct_mapping(node))
        found.duplicates = _repeated(names)

    loader.add_constructor("tag:yaml.org,2002:map", construct)
    return yaml.load(text, loader)  # the loader is a subclass of SafeLoader


def _sections(document: object, environ: Mapping[str, str]) -> Iterator[Section]:
    found, path = document, ""
    for key in _INSTRUMENTATION:
        if not isinstance(found, Mapping) or key not in found:
            break
        found, path = found[key], f"{path}.{key}".lstrip(".")
    else:
        yield _section(path, found, environ)
    for index, item in enumerate(_composite(document)):
        if isinstance(item, Mapping) and KEY in item:
            yield _section(f"propagator.composite[{index}].{KEY}", item[KEY], environ)


def _misspelled(document: object, environ: Mapping[str, str]) -> Iterator[tuple[Section, str]]:
    for top, content in _items(document):
        if _resembles(top, KEY) or _resembles(str(top).partition("/")[0], "instrumentation"):
            for keys, found in _similar({top: content}):
                if keys != _INSTRUMENTATION and not _OTHER_LANGUAGES & {*keys[:2]}:
                    yield _section(".".join(keys), found, environ), ".".join(_INSTRUMENTATION)
    for index, item in enumerate(_composite(document)):
        for key, content in _items(item):
            if key != KEY and _resembles(key, KEY):
                path = f"propagator.composite[{index}]"
                yield _section(f"{path}.{key}", content, environ), f"{path}.{KEY}"


def _similar(value: object, path: tuple[str, ...] = (), depth: int = 5) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield the path and content of each nested key in *value* that resembles this package's key."""
    items = enumerate(value) if isinstance(value, list) else _items(value)
    for key, content in items if depth else ():
        here = (*path, str(key))
        if _resembles(key, KEY):
            yield here, content
        else:
            yield from _similar(content, here, depth - 1)


def _items(value: object) -> Iterable[tuple[Any, Any]]:
    return value.items() if isinstance(value, Mapping) else ()


def _resembles(key: object, name: str) -> bool:
    return isinstance(key, str) and resembles(key.replace("-", "_"), name)


def _repeated_on_the_way(document: object) -> Iterator[str]:
    """Yield the path of each duplicate key that contains a section with settings."""
    for path in (_INSTRUMENTATION, ("propagator", "composite")):
        found: object = document
        names: list[str] = []
        for key in path:
            if key in getattr(found, "duplicates", ()):
                yield ".".join([*names, key])
            found, names = _member(found, key), [*names, key]
    for index, item in enumerate(_composite(document)):
        if KEY in getattr(item, "duplicates", ()):
            yield f"propagator.composite[{index}].{KEY}"


def _section(path: str, content: object, environ: Mapping[str, str]) -> Section:
    return Section(path, _substitute(content, environ), tuple(_duplicates(content)))


def _duplicates(content: object, prefix: str = "", depth: int = 4) -> Iterator[str]:
    if isinstance(content, _Mapping):
        yield from (f"{prefix}{name}" for name in content.duplicates)
    if depth and isinstance(content, Mapping):
        for key, value in content.items():
            yield from _duplicates(value, f"{prefix}{key}.", depth - 1)
    elif depth and isinstance(content, list):
        for index, value in enumerate(content):
            yield from _duplicates(value, f"{prefix.rstrip('.')}[{index}].", depth - 1)


def _composite(document: object) -> list[object]:
    composite = _member(_member(document, "propagator"), "composite")
    return composite if isinstance(composite, list) else []


def _member(value: object, key: str) -> object:
    return value.get(key) if isinstance(value, Mapping) else None


def _names_propagator(document: object, environ: Mapping[str, str]) -> bool:
    if any(isinstance(item, Mapping) and KEY in item for item in _composite(document)):
        return True
    text = _substitute(_member(_member(document, "propagator"), "composite_list"), environ)
    return isinstance(text, str) and KEY in (name.strip() for name in text.split(","))


def _substitute(value: object, environ: Mapping[str, str], depth: int = 4) -> object:
    """Replace references to environment variables in values, but not in keys."""
    if isinstance(value, str):
        return _substitutions(lambda found: _value_of(found, environ), value)
    if depth == 0:  # no setting is nested this deeply, and a YAML alias can be recursive
        return value
    if isinstance(value, Mapping):
        return {key: _substitute(item, environ, depth - 1) for key, item in value.items()}
    return [_substitute(item, environ, depth - 1) for item in value] if isinstance(value, list) else value


def _value_of(found: re.Match[str], environ: Mapping[str, str]) -> str:
    if found[1] is None:
        return "$"
    # The default also applies if the variable is empty.
    return environ.get(found[1]) or found[2] or ""
