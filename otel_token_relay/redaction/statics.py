"""Redact resources, scopes, and instruments, which are created once and exported with every request's records.

An application can create such an object during a request and include the request's token in the object's name. The
current context's remembered tokens are therefore masked permanently when the object is created. Existing and exported
objects are not searched for known tokens, because a caller could otherwise mask the name of a service, a scope, or a
metric. As in all records, unknown tokens that match a pattern (JWTs, ``Bearer …``, and the values of sensitive keys)
are masked in the exported copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from otel_token_relay.patching import Function, Patches
from otel_token_relay.redaction.known_tokens import lasting_tokens
from otel_token_relay.redaction.scrubber import FAILED, Scrubber
from otel_token_relay.redaction.token_search import NOTHING


def patch_resources(module: ModuleType, scrubber: Scrubber, patches: Patches) -> None:
    """Hook ``opentelemetry.sdk.resources``."""

    def build(original: Function) -> Function:
        def __init__(self: Any, attributes: Any, schema_url: Any = None) -> None:
            attributes, schema_url = _clean((attributes, schema_url), scrubber)
            original(self, attributes, schema_url)

        return __init__

    patches.wrap(module.Resource, "__init__", build, ("self", "attributes", "schema_url"))


def patch_scopes(module: ModuleType, scrubber: Scrubber, patches: Patches) -> None:
    """Hook ``opentelemetry.sdk.util.instrumentation``."""

    def build(original: Function) -> Function:
        def __init__(self: Any, name: Any, version: Any = None, schema_url: Any = None, attributes: Any = None) -> None:
            original(self, *_clean((name, version, schema_url, attributes), scrubber))

        return __init__

    parameters = ("self", "name", "version", "schema_url", "attributes")
    patches.wrap(module.InstrumentationScope, "__init__", build, parameters)


def patch_tracers(module: ModuleType, scrubber: Scrubber, patches: Patches) -> None:
    """Hook ``opentelemetry.sdk.trace``, where each tracer stores a second copy of its scope's name."""

    def build(original: Function) -> Function:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            info = self.instrumentation_info
            if info is not None:
                strings = (info.name, info.version, info.schema_url)
                if _clean(strings, scrubber) != strings:
                    self.instrumentation_info = None

        return __init__

    patches.wrap(module.Tracer, "__init__", build)


def patch_instruments(module: ModuleType, scrubber: Scrubber, patches: Patches) -> None:
    """Hook ``opentelemetry.sdk.metrics._internal.instrument``."""

    def build(original: Function) -> Function:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            # The mask is set after the constructor has run, because the constructor would reject it as a name.
            before = (self.name, self.unit, self.description)
            self.name, self.unit, self.description = _clean(before, scrubber)

        return __init__

    patches.wrap(module._Synchronous, "__init__", build)
    patches.wrap(module._Asynchronous, "__init__", build)


def _clean(values: tuple[Any, ...], scrubber: Scrubber) -> tuple[Any, ...]:
    try:
        known = lasting_tokens()
        if known is NOTHING:
            return values
        strings: list[str] = []
        for value in values:
            scrubber.gather_value(value, strings, known)
        if not known.may_be_in("\0".join(strings)):
            return values
    except Exception:  # fail closed, because a value's class can raise any exception
        return tuple([_failed(value) for value in values])
    cleaned = [scrubber.redact(value, known) for value in values]
    return tuple([_failed(old) if new == FAILED else new for new, old in zip(cleaned, values, strict=True)])


def _failed(value: Any) -> Any:
    if value is None:
        return None
    return {} if isinstance(value, Mapping) else FAILED
