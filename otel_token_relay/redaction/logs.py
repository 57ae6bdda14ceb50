"""Log records: cleaned where a processor turns one into the record that its exporter gets.

``ReadableLogRecord.__init__`` runs once for each processor, in the thread that logs. The record
that the application holds is not changed.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from opentelemetry import context as otel_context

from otel_token_relay.patching import Function, Patches
from otel_token_relay.redaction.fragments import Secrets
from otel_token_relay.redaction.memory import secrets_in
from otel_token_relay.redaction.records import are_clean, clean_attributes, clean_resource, clean_scope, plain, twin
from otel_token_relay.redaction.scrubber import FAILED, Scrubber


def patch(module: ModuleType, scrubber: Scrubber, patches: Patches) -> None:
    """Hook ``opentelemetry.sdk._logs._internal``.

    Raises:
        AttributeError: This SDK has no such place.
    """

    def build_init(original: Function) -> Function:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            try:
                redact(self, scrubber, secrets_of_record(self.log_record))
            except Exception:  # noqa: BLE001  # nothing leaves as it was, and the application goes on
                wipe(self)

        return __init__

    patches.wrap(module.ReadableLogRecord, "__init__", build_init)


def secrets_of_record(record: Any) -> Secrets:
    """Give the tokens of a log record: those of where it was written, and of its trace."""
    return secrets_in(record.context or otel_context.get_current(), record.trace_id)


def redact(readable: Any, scrubber: Scrubber, secrets: Secrets) -> None:
    """Clean a record that nobody else holds yet; what it refers to is replaced, not changed."""
    record = readable.log_record
    if is_suspect(record, scrubber, secrets):
        _set(readable, "log_record", _cleaned(record, scrubber, secrets))
    resource, scope = readable.resource, readable.instrumentation_scope
    if not are_clean(resource, scope, scrubber, secrets):
        _set(readable, "resource", clean_resource(resource, scrubber, secrets))
        _set(readable, "instrumentation_scope", clean_scope(scope, scrubber, secrets))


def is_suspect(record: Any, scrubber: Scrubber, secrets: Secrets) -> bool:
    """Say whether a log record has to be looked at closely."""
    strings: list[str] = []
    suspect = False
    body = record.body
    if body.__class__ is str:
        strings.append(body)
    elif body is not None:
        suspect = scrubber.gather_value(body, strings, secrets)
    if record.event_name:
        strings.append(record.event_name)
    if record.severity_text:
        strings.append(record.severity_text)
    if attributes := record.attributes:
        suspect = scrubber.gather(plain(attributes), strings, secrets) or suspect
    if getattr(record, "exception", None) is not None:
        strings.append(str(record.exception))
    return suspect or scrubber.is_suspect("\0".join(strings), secrets)


def _cleaned(record: Any, scrubber: Scrubber, secrets: Secrets) -> Any:
    new = twin(record)
    new.body = scrubber.clean(record.body, secrets)
    new.attributes = clean_attributes(record.attributes, scrubber, secrets)
    new.event_name = scrubber.clean(record.event_name, secrets)
    new.severity_text = scrubber.clean(record.severity_text, secrets)
    if getattr(record, "exception", None) is not None:
        # Its attributes say what there is to say; the exception itself holds frames and values.
        new.exception = None
    return new


def wipe(readable: Any) -> None:
    """Leave nothing of what the application said: for a record that cannot be cleaned."""
    new = twin(readable.log_record)
    new.body, new.attributes, new.event_name = FAILED, {}, None
    if hasattr(new, "exception"):
        new.exception = None
    if not isinstance(new.severity_text, str) or len(new.severity_text) > 16:
        new.severity_text = None
    _set(readable, "log_record", new)
    _set(readable, "instrumentation_scope", None)
    if readable.resource is not None:
        _set(readable, "resource", type(readable.resource)({}))


def _set(readable: Any, name: str, value: object) -> None:
    # It is a frozen dataclass, and its constructor is still running.
    object.__setattr__(readable, name, value)
