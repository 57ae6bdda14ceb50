"""What spans, log records and metrics have in common: attributes, resource, scope."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from otel_token_relay.redaction.fragments import NOTHING, Secrets
from otel_token_relay.redaction.scrubber import Scrubber
from otel_token_relay.settings import Settings

Gather = Callable[[Any, Scrubber, list[str], Secrets], bool]

_MAX_STATICS: Final = 128


def scrubber_for(settings: Settings) -> Scrubber:
    """Give the rules under these settings."""
    return Scrubber(settings.redact_keys, (*settings.source_headers, settings.header))


def plain(attributes: Any) -> Mapping[str, Any]:
    """Give the dictionary within the SDK's container, which takes a lock for each look."""
    inner = getattr(attributes, "_dict", None)
    return inner if inner is not None else attributes  # type: ignore[no-any-return]


def twin(original: Any) -> Any:
    """Give a second object of the same state, without running a constructor that might change it."""
    new = object.__new__(type(original))
    new.__dict__.update(original.__dict__)
    return new


def clean_attributes(attributes: Any, scrubber: Scrubber, secrets: Secrets) -> Any:
    """Give clean attributes in the same container, its counts and limits kept; itself if clean."""
    if not attributes:
        return attributes
    cleaned = scrubber.clean_mapping(plain(attributes), secrets)
    if cleaned is None:
        return attributes
    if not hasattr(attributes, "_dict"):
        return cleaned
    new = twin(attributes)
    new._dict = type(attributes._dict)(cleaned)
    return new


def are_clean(resource: Any, scope: Any, scrubber: Scrubber, secrets: Secrets) -> bool:
    """Say whether resource and scope can stay. The answer is kept with the tokens."""
    found = secrets.clean_origins.get(id(scope))
    if found is not None and found[0] is scope and found[1] is resource and found[2] is scrubber:
        return True
    if clean_resource(resource, scrubber, secrets) is not resource:
        return False
    if clean_scope(scope, scrubber, secrets) is not scope:
        return False
    if len(secrets.clean_origins) >= _MAX_STATICS:
        secrets.clean_origins.clear()
    # All three are kept with it, so that their ids are not given to other objects.
    secrets.clean_origins[id(scope)] = (scope, resource, scrubber)
    return True


def clean_resource(resource: Any, scrubber: Scrubber, secrets: Secrets) -> Any:
    """Give a clean resource; the same one if it is clean. It is looked at once for each token."""
    return _clean_static(resource, scrubber, secrets, gather_resource, _rebuild_resource)


def clean_scope(scope: Any, scrubber: Scrubber, secrets: Secrets) -> Any:
    """Give a clean instrumentation scope; the same one if it is clean."""
    return _clean_static(scope, scrubber, secrets, gather_scope, _rebuild_scope)


class _Static(NamedTuple):
    """The text of a resource or a scope, which come with every record and with every new token."""

    original: Any
    scrubber: Scrubber
    lowered: str
    is_suspect: bool


_statics: dict[int, _Static] = {}


def _static(original: Any, scrubber: Scrubber, gather: Gather) -> _Static:
    static = _statics.get(id(original))
    if static is not None and static.original is original and static.scrubber is scrubber:
        return static
    strings: list[str] = []
    is_suspect = original is not None and gather(original, scrubber, strings, NOTHING)
    joined = "\0".join(strings)
    static = _Static(original, scrubber, joined.lower(), is_suspect or scrubber.is_suspect(joined, NOTHING))
    if len(_statics) >= _MAX_STATICS:
        _statics.clear()
    _statics[id(original)] = static
    return static


def _clean_static(
    original: Any,
    scrubber: Scrubber,
    secrets: Secrets,
    gather: Gather,
    rebuild: Callable[[Any, Scrubber, Secrets], Any],
) -> Any:
    static = _static(original, scrubber, gather)
    if not static.is_suspect and not secrets.may_stand_in(static.lowered):
        return original
    found = secrets.cleaned.get(id(original))
    if found is not None and found[0] is original and found[1] is scrubber:
        return found[2]
    cleaned = rebuild(original, scrubber, secrets)
    if len(secrets.cleaned) >= _MAX_STATICS:
        secrets.cleaned.clear()
    secrets.cleaned[id(original)] = (original, scrubber, cleaned)
    return cleaned


def gather_resource(resource: Any, scrubber: Scrubber, strings: list[str], secrets: Secrets) -> bool:
    """Append every text of a resource; say whether it is suspect by itself."""
    strings.append(str(resource.schema_url or ""))
    return scrubber.gather(plain(resource.attributes), strings, secrets)


def _rebuild_resource(resource: Any, scrubber: Scrubber, secrets: Secrets) -> Any:
    attributes = scrubber.clean(dict(resource.attributes), secrets)
    return type(resource)(attributes, scrubber.clean(resource.schema_url, secrets))


def gather_scope(scope: Any, scrubber: Scrubber, strings: list[str], secrets: Secrets) -> bool:
    """Append every text of an instrumentation scope; say whether it is suspect by itself."""
    strings += (str(scope.name), str(scope.version or ""), str(scope.schema_url or ""))
    return bool(scope.attributes) and scrubber.gather(plain(scope.attributes), strings, secrets)


def _rebuild_scope(scope: Any, scrubber: Scrubber, secrets: Secrets) -> Any:
    def clean(value: Any) -> Any:
        return scrubber.clean(value, secrets)

    attributes = clean(dict(scope.attributes)) if scope.attributes else scope.attributes
    return type(scope)(clean(scope.name), clean(scope.version), clean(scope.schema_url), attributes)
