"""Redact log records when a processor converts them into records for an exporter.

``ReadableLogRecord.__init__`` runs once for each processor, in the thread that emits the log record. When ``__init__``
is called, the hook only collects the known tokens. The readable record is created and redacted on first access, so it
includes attributes that other processors have added by then. The application's own record is not modified.
"""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

from otel_token_relay.copying import shallow_copy, with_changes
from otel_token_relay.otel import get_current
from otel_token_relay.patching import Function, Patches
from otel_token_relay.redaction.deferred import DEFERRED, deferred_class
from otel_token_relay.redaction.known_tokens import tokens_in_context, with_later_tokens
from otel_token_relay.redaction.records import are_clean, clean_attributes, clean_resource, clean_scope
from otel_token_relay.redaction.scrubber import FAILED, Scrubber
from otel_token_relay.redaction.token_search import KnownTokens

# ReadableLogRecord is a frozen dataclass.
_set = object.__setattr__


def patch(module: ModuleType, scrubber: Scrubber, patches: Patches) -> None:
    """Hook ``opentelemetry.sdk._logs._internal``.

    Raises:
        AttributeError: The SDK does not have this conversion point.
    """
    record_class = module.ReadableLogRecord
    fields = [field.name for field in dataclasses.fields(record_class)]
    deferred_record = deferred_class(record_class, fields, lambda make, changes: make(changes))

    def clean(readable: Any, known: KnownTokens) -> Any:
        try:
            redact(readable, scrubber, with_later_tokens(known, readable.log_record.trace_id))
        except Exception:  # fail closed, and let the application continue
            wipe(readable)
        return readable

    def build_init(original: Function) -> Function:
        def __init__(
            self: Any, log_record: Any, resource: Any, instrumentation_scope: Any = None, limits: Any = None
        ) -> None:
            try:
                known = tokens_of_record(log_record)
            except Exception:  # fail closed
                original(self, log_record, resource, instrumentation_scope, limits)
                wipe(self)
                return
            if type(self) is not record_class:  # redact an instance of a subclass immediately
                original(self, log_record, resource, instrumentation_scope, limits)
                clean(self, known)
                return

            def make(
                changes: dict[str, Any],
            ) -> Any:  # a function's repr does not reveal the raw record
                readable = object.__new__(record_class)
                original(readable, log_record, resource, instrumentation_scope, limits)
                for name, value in changes.items():
                    _set(readable, name, value if name in fields else scrubber.redact(value, known))
                return clean(readable, known)

            _set(self, DEFERRED, make)
            _set(self, "__class__", deferred_record)

        return __init__

    parameters = ("self", "log_record", "resource", "instrumentation_scope", "limits")
    patches.wrap(record_class, "__init__", build_init, parameters)


def tokens_of_record(record: Any) -> KnownTokens:
    """Return the known tokens from a log record's trace and context."""
    return tokens_in_context(record.context or get_current(), record.trace_id)


def redact(readable: Any, scrubber: Scrubber, known: KnownTokens) -> None:
    """Redact a record that no other code can access yet.

    Objects in the record are replaced, not modified.
    """
    record = readable.log_record
    if is_suspect(record, scrubber, known):
        _set(readable, "log_record", _cleaned(record, scrubber, known))
    resource, scope = readable.resource, readable.instrumentation_scope
    if not are_clean(resource, scope, scrubber):
        _set(readable, "resource", clean_resource(resource, scrubber))
        _set(readable, "instrumentation_scope", clean_scope(scope, scrubber))


def is_suspect(record: Any, scrubber: Scrubber, known: KnownTokens) -> bool:
    """Return whether a log record requires the thorough redaction stage."""
    strings: list[str] = []
    suspect = False
    for text in (record.event_name, record.severity_text):
        if type(text) is str:
            strings.append(text)
        elif text is not None:
            suspect = scrubber.gather_value(text, strings, known) or suspect
    body = record.body
    if type(body) is str:
        strings.append(body)
    elif body is not None:
        suspect = scrubber.gather_value(body, strings, known) or suspect
    attributes = record.attributes
    if values := getattr(attributes, "_dict", attributes):
        suspect = scrubber.gather(values, strings, known) or suspect
    if getattr(record, "exception", None) is not None:
        strings.append(str(record.exception))
    return suspect or scrubber.is_suspect("\0".join(strings), known)


def _cleaned(record: Any, scrubber: Scrubber, known: KnownTokens) -> Any:
    fields = {name: scrubber.clean(getattr(record, name), known) for name in ("body", "event_name", "severity_text")}
    # The attributes already describe the exception. The exception object refers to frames and their local variables.
    exception = {"exception": None} if hasattr(record, "exception") else {}
    return with_changes(record, attributes=clean_attributes(record.attributes, scrubber, known), **fields, **exception)


def wipe(readable: Any) -> None:
    """Remove all application data from a record that cannot be redacted."""
    new = shallow_copy(readable.log_record)
    new.body, new.attributes, new.event_name = FAILED, {}, None
    if hasattr(new, "exception"):
        new.exception = None
    if not isinstance(new.severity_text, str) or len(new.severity_text) > 16:
        new.severity_text = None
    _set(readable, "log_record", new)
    _set(readable, "instrumentation_scope", None)
    if readable.resource is not None:
        _set(readable, "resource", type(readable.resource)({}))
