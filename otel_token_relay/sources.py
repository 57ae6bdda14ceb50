"""Read settings from multiple sources, and merge them in order of precedence.

Settings in code take precedence over OpenTelemetry's configuration file, and the configuration file takes precedence
over environment variables. For a protective setting, the strictest value from any source applies. An invalid value is
replaced with the setting's strict value. No function in this module raises an exception for invalid settings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from otel_token_relay.configuration_file import FILE_VARIABLE, ConfigurationFile, Section
from otel_token_relay.destinations import read_destinations
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.issuers import read_issuers
from otel_token_relay.origin import OriginPattern
from otel_token_relay.setting_kinds import Kind, is_off
from otel_token_relay.spelling import nearest

PREFIX: Final = "OTEL_PYTHON_TOKEN_RELAY_"

STRICTNESS: Final[Mapping[str, Sequence[Any]]] = {
    "verify": ("off", "report", "optional", "enforce"),
    "require_verified": (False, True),
    "redaction": (False, True),
    "protect_caches": (False, True),
}
"""The protective settings, with their values in order of increasing strictness."""

# OpenTelemetry variables that enable this package or specify the configuration file.
_SWITCHES: Final = ("OTEL_PROPAGATORS", FILE_VARIABLE)

# If one of these settings is misspelled, its strict value applies unless the specified value turns the setting off.
_GUARDED: Final = ("verify", "require_verified")

# Matches a variable name that has the wrong prefix but is probably intended for this package. The rest of the name must
# resemble a setting's name, because Kubernetes sets TOKEN_RELAY_SERVICE_HOST and similar variables for a service named
# token-relay.
_similar_prefix: Final = re.compile(r"(?:OTEL[_-]?)?(?:PYTHON[_-]?)?TOKEN[_-]?RELAY[_-]+(.+)", re.IGNORECASE).fullmatch


# The effects of the strict values that are not self-explanatory.
_EFFECTS: Final = {
    "header": "no tokens are relayed",
    "source_headers": "no token is read from any request",
}


@dataclass(frozen=True, slots=True)
class Variable:
    """The definition of a setting, including its description for the reference page.

    Attributes:
        name: The environment variable's name.
        kind: The setting's type.
        strict: The value that replaces an invalid value. A strict value never causes a token to be relayed
            unintentionally.
        meaning: The description on the reference page, in Markdown.
        default: The default value, in the syntax of the environment variable; empty if the setting has no default.
    """

    name: str
    kind: Kind
    strict: Any
    meaning: str
    default: str


@dataclass(slots=True)
class Source:
    """The settings from one source.

    Attributes:
        name: The source's name, which appears in messages.
        values: The values, keyed by setting. For an invalid setting, the mapping contains the strict value.
        invalid: The settings whose values were replaced with strict values.
        problems: A message for each problem (for example, an invalid value or an unknown name).
        refused: The origins of the destination entries that were skipped.
    """

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    invalid: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    refused: set[OriginPattern] = field(default_factory=set)


class SourceReader:
    """A reader for configuration files and environment variables.

    Args:
        variables: All settings.
        check: A function that validates a setting's value and returns the value to store. The function raises
            `ConfigurationError` if the value is invalid.
    """

    def __init__(self, variables: Mapping[str, Variable], check: Callable[[str, Any], Any]) -> None:
        self._variables = variables
        self._check = check
        self._by_name = {variable.name: setting for setting, variable in variables.items()}

    def read(self, file: ConfigurationFile, passed: Section | None, environ: Mapping[str, str]) -> list[Source]:
        """Read all sources except code, and return them in order of precedence. This method never raises an exception.

        Args:
            file: The configuration file.
            passed: The section from a configuration file that the application loaded itself; ``None`` if there is no
                such section.
            environ: The environment variables.
        """
        sources = self._safely(FILE_VARIABLE, lambda: self.read_file(file))
        if passed is not None:
            sources += self._safely(passed.path, lambda: [self.read_section(passed)])
        return sources + self._safely("environment", lambda: [self.read_environment(environ)])

    def _safely(self, name: str, read: Callable[[], list[Source]]) -> list[Source]:
        """Call *read* and return its result. If *read* raises an exception, return a source with strict values."""
        try:
            return read()
        except Exception as error:
            source = Source(name, problems=[f"{name}: cannot be read: {type(error).__name__}"])
            self._be_strict(source)
            return [source]

    def read_environment(self, environ: Mapping[str, str]) -> Source:
        """Read the environment variables, and report any misspelled names."""
        source = Source("environment")
        for setting, variable in self._variables.items():
            text = environ.get(variable.name, "").strip()
            if text:
                self._read(source, setting, variable.name, variable.kind.read, text)
        for found, meant in self._misspelled(environ):
            self._report_misspelled(source, found, meant, environ[found])
        return source

    def read_file(self, file: ConfigurationFile) -> list[Source]:
        """Read the sections of the configuration file."""
        if file.problem is not None:
            return [self._read_nothing(file)]
        # A YAML parser keeps only the last occurrence of a duplicate key, and an earlier occurrence might be stricter.
        # Therefore, for each duplicate key, a source with strict values takes precedence over the sections.
        sources = [Source(path, problems=[f"{path}: duplicate key"]) for path in file.duplicates]
        for source in sources:
            self._be_strict(source)
        sources += [self.read_section(section) for section in file.sections]
        return sources + [self._read_misspelled(section, meant) for section, meant in file.misspelled]

    def read_section(self, section: Section) -> Source:
        """Read one section of the configuration file."""
        source = Source(section.path)
        if section.content is None:
            return source
        if not isinstance(section.content, Mapping):
            source.problems.append(f"{section.path}: expected a mapping")
            self._be_strict(source)
            return source
        for key, value in section.content.items():
            setting = key if isinstance(key, str) and key in self._variables else None
            if setting is None:
                self._report_unknown_key(source, key, value)
            elif isinstance(value, str) and not value.strip():
                # An empty value leaves the setting unset. For a guarded setting, report the empty value, because it
                # probably results from a reference to an unset variable.
                if setting in _GUARDED:
                    source.problems.append(
                        f"{source.name}.{setting}: expected a value; an environment variable might be unset"
                    )
                    self._replace(source, setting)
            elif value is not None:
                self._read(source, setting, f"{section.path}.{setting}", self._variables[setting].kind.read_any, value)
        for path in section.duplicates:
            source.problems.append(f"{section.path}.{_shown(path)}: duplicate key")
            setting = re.split(r"[.\[]", path, maxsplit=1)[0]
            if setting in self._variables:
                self._replace(source, setting)
        return source

    def _read(self, source: Source, setting: str, label: str, read: Callable[[Any], Any], value: object) -> None:
        try:
            found = read(value)
            if setting == "destinations":
                found = read_destinations(found, lambda _, problem: _report(source, label, problem), source.refused)
            elif setting == "issuers":
                before = len(source.problems)
                found = read_issuers(found, lambda _, problem: _report(source, label, problem))
                if len(source.problems) > before:
                    source.invalid.add(setting)
            source.values[setting] = self._check(setting, found)
        except ValueError as error:
            problem = error.problem if isinstance(error, ConfigurationError) else str(error)
            effect = f"; until this is corrected, {_EFFECTS[setting]}" if setting in _EFFECTS else ""
            _report(source, label, f"{problem}{effect}")
            self._replace(source, setting)

    def _read_nothing(self, file: ConfigurationFile) -> Source:
        source = Source(FILE_VARIABLE)
        effect = "OpenTelemetry does not start"
        if file.is_unknown:
            self._be_strict(source)
            effect = (
                "the file might contain settings, so no tokens are relayed and every request must have a valid token"
                " until the file can be read or the variable is unset"
            )
        source.problems.append(f"{FILE_VARIABLE}: the file cannot be read: {file.problem}; {effect}")
        return source

    def _read_misspelled(self, section: Section, meant: str) -> Source:
        """Report a section whose name is misspelled, and apply the strict value of each setting in that section."""
        source = Source(section.path, problems=[f"{section.path}: unknown key; did you mean {meant}?"])
        for setting, value in section.content.items() if isinstance(section.content, Mapping) else ():
            if setting in self._variables:
                self._be_strict_if_unset(source, setting, value)
        return source

    def _be_strict_if_unset(self, source: Source, setting: str, value: object) -> None:
        """Apply a misspelled setting's strict value, unless the setting is guarded and its value turns it off.

        The strict value is not applied if the source has already provided a value for the correctly spelled setting.
        """
        if setting not in source.values and not (setting in _GUARDED and is_off(value)):
            self._replace(source, setting)

    def _replace(self, source: Source, setting: str) -> None:
        source.values[setting] = self._variables[setting].strict
        source.invalid.add(setting)

    def _be_strict(self, source: Source) -> None:
        for setting in (*STRICTNESS, "destinations"):
            self._replace(source, setting)

    def _report_unknown_key(self, source: Source, key: object, value: object) -> None:
        name = key if isinstance(key, str) else ascii(key)
        meant = nearest(name.replace("-", "_"), self._variables)
        hint = "" if meant is None else f"; did you mean {meant}?"
        source.problems.append(f"{source.name}.{_shown(name)}: unknown key{hint}")
        if meant is not None:
            self._be_strict_if_unset(source, meant, value)

    def _misspelled(self, environ: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
        """Yield the name of each misspelled variable, along with the name that was probably intended."""
        for found in environ:
            upper = found.upper()
            if found in self._by_name or found in _SWITCHES or not environ[found].strip():
                continue
            if upper.startswith("OTEL") and (meant := nearest(found.replace("-", "_"), _SWITCHES)):
                yield found, meant
                continue
            if not ("RELAY" in upper or "TOKEN" in upper):
                continue
            meant = nearest(found, self._by_name)
            if meant is None and (match := _similar_prefix(found.strip())):
                rest = {name.removeprefix(PREFIX): name for name in self._by_name}
                meant = rest.get(nearest(match[1].replace("-", "_"), rest) or "")
            if meant is not None or found.startswith(PREFIX):
                yield found, meant

    def _report_misspelled(self, source: Source, found: str, meant: str | None, text: str) -> None:
        if meant is None:
            source.problems.append(f"{_shown(found)}: unknown variable; the configuration page lists all variables")
            return
        effect = ""
        setting = self._by_name.get(meant)
        if setting is not None:
            self._be_strict_if_unset(source, setting, text)
        if setting in source.invalid:
            effect = f" Until the name is corrected or that variable is set, {_effect(setting, source)}."
        source.problems.append(f"{_shown(found)}: unknown variable; did you mean {meant}?{effect}")


def merge(sources: Iterable[Source]) -> Source:
    """Merge the settings from all sources. The *sources* must be in order of decreasing precedence."""
    sources = list(sources)
    merged = Source("all")
    for source in reversed(sources):
        merged.values.update(source.values)
        merged.problems[:0] = source.problems
        if "destinations" in source.values:
            merged.refused = source.refused
        merged.invalid = (merged.invalid - source.values.keys()) | source.invalid
    for setting, order in STRICTNESS.items():
        values = [source.values[setting] for source in sources if setting in source.values]
        if values:
            merged.values[setting] = max(values, key=order.index)
    if "header" in merged.invalid:
        # Do not relay any tokens, because the configured header is invalid and the token must not be sent in a
        # different header.
        merged.values["destinations"] = ()
    return merged


def are_given(setting: str, sources: Iterable[Source]) -> bool:
    """Return whether any source specifies a value for the setting, even if the value is invalid."""
    return any(setting in source.values for source in sources)


def describe_overridden(sources: Sequence[Source], variables: Mapping[str, Variable]) -> Iterator[str]:
    """Yield a message for each environment variable that a configuration file overrides.

    Args:
        sources: All sources except code, in order of precedence.
        variables: All settings.
    """
    *files, environment = sources
    for setting, value in environment.values.items():
        file = next((source for source in files if setting in source.values), None)
        if file is None or file.name == FILE_VARIABLE:  # an unreadable file has already been reported as a problem
            continue
        if setting not in STRICTNESS and file.values[setting] != value:
            yield f"{variables[setting].name} has no effect, because {file.name}.{setting} takes precedence"


def _report(source: Source, label: str, problem: str) -> None:
    source.problems.append(f"{label}: {problem}")


def _shown(name: str) -> str:
    return ascii(name)[1:-1][:100]


def _effect(setting: str, source: Source) -> str:
    """Return a clause that describes the effect of a setting's strict value."""
    if setting in _EFFECTS:
        return _EFFECTS[setting]
    value = source.values[setting]
    return f"{str(value).lower() if value != () else 'an empty list'} applies"
