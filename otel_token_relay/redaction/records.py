"""Redact the data that spans, log records, and metrics share: attributes, resources, and scopes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from otel_token_relay.copying import with_changes
from otel_token_relay.redaction.scrubber import Scrubber
from otel_token_relay.redaction.token_search import NOTHING, KnownTokens
from otel_token_relay.runtime import SettingsInForce
from otel_token_relay.settings import Settings

Gather = Callable[[Any, Scrubber, list[str], KnownTokens], bool]

_MAX_STATICS: Final = 128


def scrubber_for(settings: Settings) -> Scrubber:
    """Return the redaction rules for *settings*."""
    return Scrubber(settings.redact_keys, (*settings.source_headers, settings.header))


class ScrubberInForce:
    """The redaction rules for the settings that currently apply. This class is thread-safe.

    Args:
        settings: The settings to use. By default, the installed settings are used, or the settings from the environment
            if none are installed.
    """

    def __init__(self, settings: Settings | None) -> None:
        self._settings = SettingsInForce(settings)
        self._cached: tuple[Settings, Scrubber] | None = None

    def __call__(self) -> Scrubber:
        """Return the redaction rules that currently apply."""
        settings, cached = self._settings(), self._cached
        if cached is None or cached[0] is not settings:
            self._cached = cached = settings, scrubber_for(settings)
        return cached[1]


def plain(attributes: Any) -> Mapping[str, Any]:
    """Return an SDK container's internal dictionary, because the container acquires a lock on every access."""
    inner = getattr(attributes, "_dict", None)
    return inner if inner is not None else attributes  # type: ignore[no-any-return]


def clean_attributes(attributes: Any, scrubber: Scrubber, known: KnownTokens) -> Any:
    """Return a redacted copy of the attributes, or the same object if the attributes are clean.

    The copy keeps the original container's limits and its count of dropped attributes.
    """
    if not attributes:
        return attributes
    cleaned = scrubber.clean_mapping(plain(attributes), known)
    if cleaned is None:
        return attributes
    if not hasattr(attributes, "_dict"):
        return cleaned
    return with_changes(attributes, _dict=type(attributes._dict)(cleaned))


def are_clean(resource: Any, scope: Any, scrubber: Scrubber) -> bool:
    """Return whether the resource and the scope are both clean. Positive results are cached."""
    found = _clean_pairs.get(id(scope))
    if found is not None and found[0] is scope and found[1] is resource and found[2] is scrubber:
        return True
    if clean_resource(resource, scrubber) is not resource or clean_scope(scope, scrubber) is not scope:
        return False
    if len(_clean_pairs) >= _MAX_STATICS:
        _clean_pairs.clear()
    # The cached tuple holds references to all three objects so that Python does not reuse an ID for a different object.
    _clean_pairs[id(scope)] = (scope, resource, scrubber)
    return True


def clean_resource(resource: Any, scrubber: Scrubber) -> Any:
    """Return a redacted copy of a resource, or the same object if the resource is clean. Results are cached."""
    return _clean_static(resource, scrubber, gather_resource, ("_schema_url",))


def clean_scope(scope: Any, scrubber: Scrubber) -> Any:
    """Return a redacted copy of a scope, or the same object if the scope is clean. Results are cached."""
    return _clean_static(scope, scrubber, gather_scope, ("_name", "_version", "_schema_url"))


class _Static(NamedTuple):
    """A resource or a scope, and its redacted version."""

    original: Any
    scrubber: Scrubber
    cleaned: Any


_statics: dict[int, _Static] = {}
_clean_pairs: dict[int, tuple[Any, Any, Scrubber]] = {}


def _clean_static(original: Any, scrubber: Scrubber, gather: Gather, fields: tuple[str, ...]) -> Any:
    """Mask the tokens that match a pattern in a resource or a scope.

    Known tokens are masked when the object is created; see `statics`.
    """
    if original is None:
        return None
    static = _statics.get(id(original))
    if static is not None and static.original is original and static.scrubber is scrubber:
        return static.cleaned
    strings: list[str] = []
    cleaned = original
    if gather(original, scrubber, strings, NOTHING) or scrubber.is_suspect("\0".join(strings), NOTHING):
        cleaned = copy.copy(original)  # bypasses the constructor, which masks the current context's tokens
        cleaned._attributes = clean_attributes(original._attributes, scrubber, NOTHING)
        for name in fields:
            setattr(cleaned, name, scrubber.clean(getattr(original, name), NOTHING))
    if len(_statics) >= _MAX_STATICS:
        _statics.clear()
    _statics[id(original)] = _Static(original, scrubber, cleaned)
    return cleaned


def gather_resource(resource: Any, scrubber: Scrubber, strings: list[str], known: KnownTokens) -> bool:
    """Append a resource's strings to *strings*, and return whether its keys or structure are suspect."""
    strings.append(str(resource.schema_url or ""))
    return scrubber.gather(plain(resource.attributes), strings, known)


def gather_scope(scope: Any, scrubber: Scrubber, strings: list[str], known: KnownTokens) -> bool:
    """Append a scope's strings to *strings*, and return whether its keys or structure are suspect."""
    strings += (str(scope.name), str(scope.version or ""), str(scope.schema_url or ""))
    return bool(scope.attributes) and scrubber.gather(plain(scope.attributes), strings, known)
