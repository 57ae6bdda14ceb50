"""What spans, log records and metrics have in common: attributes, resource, scope."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from otel_token_relay.in_force import SettingsInForce
from otel_token_relay.redaction.scrubber import Scrubber
from otel_token_relay.redaction.token_search import NOTHING, KnownTokens
from otel_token_relay.settings import Settings

Gather = Callable[[Any, Scrubber, list[str], KnownTokens], bool]

_MAX_STATICS: Final = 128


def scrubber_for(settings: Settings) -> Scrubber:
    """Give the rules under these settings."""
    return Scrubber(settings.redact_keys, (*settings.source_headers, settings.header))


class ScrubberInForce:
    """The rules under settings that may be installed later. Safe to share between threads.

    Args:
        settings: ``None`` for the installed settings, else those of the environment.
    """

    def __init__(self, settings: Settings | None) -> None:
        self._settings = SettingsInForce(settings)
        self._known: tuple[Settings, Scrubber] | None = None

    def __call__(self) -> Scrubber:
        """Return the rules that apply now."""
        settings, known = self._settings(), self._known
        if known is None or known[0] is not settings:
            self._known = known = settings, scrubber_for(settings)
        return known[1]


def plain(attributes: Any) -> Mapping[str, Any]:
    """Give the dictionary within the SDK's container, which takes a lock for each look."""
    inner = getattr(attributes, "_dict", None)
    return inner if inner is not None else attributes  # type: ignore[no-any-return]


def shallow_copy(original: Any) -> Any:
    """Give a second object of the same state, without running a constructor that might change it."""
    new = object.__new__(type(original))
    new.__dict__.update(original.__dict__)
    return new


def clean_attributes(attributes: Any, scrubber: Scrubber, known: KnownTokens) -> Any:
    """Give clean attributes in the same container, its counts and limits kept; itself if clean."""
    if not attributes:
        return attributes
    cleaned = scrubber.clean_mapping(plain(attributes), known)
    if cleaned is None:
        return attributes
    if not hasattr(attributes, "_dict"):
        return cleaned
    new = shallow_copy(attributes)
    new._dict = type(attributes._dict)(cleaned)
    return new


def are_clean(resource: Any, scope: Any, scrubber: Scrubber) -> bool:
    """Return whether resource and scope can stay. The answer is kept."""
    found = _clean_pairs.get(id(scope))
    if found is not None and found[0] is scope and found[1] is resource and found[2] is scrubber:
        return True
    if clean_resource(resource, scrubber) is not resource or clean_scope(scope, scrubber) is not scope:
        return False
    if len(_clean_pairs) >= _MAX_STATICS:
        _clean_pairs.clear()
    # All three are kept with it, so that their ids are not given to other objects.
    _clean_pairs[id(scope)] = (scope, resource, scrubber)
    return True


def clean_resource(resource: Any, scrubber: Scrubber) -> Any:
    """Return a clean resource; the same one if it is clean. It is looked at once."""
    return _clean_static(resource, scrubber, gather_resource, ("_schema_url",))


def clean_scope(scope: Any, scrubber: Scrubber) -> Any:
    """Return a clean instrumentation scope; the same one if it is clean."""
    return _clean_static(scope, scrubber, gather_scope, ("_name", "_version", "_schema_url"))


class _Static(NamedTuple):
    """What was made of a resource or a scope, which come with every record."""

    original: Any
    scrubber: Scrubber
    cleaned: Any


_statics: dict[int, _Static] = {}
_clean_pairs: dict[int, tuple[Any, Any, Scrubber]] = {}


def _clean_static(original: Any, scrubber: Scrubber, gather: Gather, texts: tuple[str, ...]) -> Any:
    """Clean by rules alone. With the caller's token they are compared when they are made: see `statics`."""
    if original is None:
        return None
    static = _statics.get(id(original))
    if static is not None and static.original is original and static.scrubber is scrubber:
        return static.cleaned
    strings: list[str] = []
    cleaned = original
    if gather(original, scrubber, strings, NOTHING) or scrubber.is_suspect("\0".join(strings), NOTHING):
        cleaned = copy.copy(original)  # without the constructor, which compares with the tokens of this context
        cleaned._attributes = clean_attributes(original._attributes, scrubber, NOTHING)
        for name in texts:
            setattr(cleaned, name, scrubber.clean(getattr(original, name), NOTHING))
    if len(_statics) >= _MAX_STATICS:
        _statics.clear()
    _statics[id(original)] = _Static(original, scrubber, cleaned)
    return cleaned


def gather_resource(resource: Any, scrubber: Scrubber, strings: list[str], known: KnownTokens) -> bool:
    """Append every text of a resource; say whether it is suspect by itself."""
    strings.append(str(resource.schema_url or ""))
    return scrubber.gather(plain(resource.attributes), strings, known)


def gather_scope(scope: Any, scrubber: Scrubber, strings: list[str], known: KnownTokens) -> bool:
    """Append every text of an instrumentation scope; say whether it is suspect by itself."""
    strings += (str(scope.name), str(scope.version or ""), str(scope.schema_url or ""))
    return bool(scope.attributes) and scrubber.gather(plain(scope.attributes), strings, known)
