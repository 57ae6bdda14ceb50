"""Create records that are redacted on first access.

Redacting a span's contents is the most expensive redaction step, and the thread that ends a span is usually still
processing a request. A batch processor queues the record without reading its contents, so the record is redacted in the
exporter's thread. If a processor reads the record immediately, the record is redacted immediately.

This module maintains the following invariants:

* A record's attributes never contain raw content. Reading any field that can contain text redacts the entire record.
  After redaction, the record is an ordinary instance of the SDK's own class.
* If a field is set before redaction, the new value is also redacted.
* The known tokens are collected in the thread that creates the record, while the record's context is current.
* Records do not use locks, because a lock could remain locked in a forked child process. If two threads read a record
  simultaneously, both threads redact it and produce the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn

DEFERRED: Final = "_token_relay_deferred"
"""The name of the attribute whose value `deferred_class` uses to create the redacted record.

The value must not expose raw content to code that prints or traverses the record's attributes.
"""


class DeferredRecord:
    """A raw record and its known tokens. Instances have no ``__dict__`` and cannot be pickled."""

    __slots__ = ("known", "raw")

    def __init__(self, raw: Any, known: Any) -> None:
        self.raw: Any = raw
        self.known: Any = known

    def __repr__(self) -> str:
        return "<not redacted yet>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("cannot pickle a record that has not been redacted yet")

    def __getstate__(self) -> None:
        """Return ``None``, because the default implementation would expose the raw record."""


class _Changes(DeferredRecord):
    """A raw record and the new values of the fields that were set before redaction."""

    __slots__ = ("fields",)

    def __init__(self, deferred: Any) -> None:
        super().__init__(deferred, None)
        self.fields: dict[str, Any] = {}


class _RedactOnAccess:
    """A descriptor that redacts the entire record when the descriptor's field is read.

    Until the record is redacted, the descriptor stores any value that is assigned to the field.

    Each field has its own descriptor, because a single ``__getattr__`` would make every access to an existing attribute
    ten times slower.
    """

    def __init__(self, name: str, redact_now: Callable[[Any], None]) -> None:
        self._name = name
        self._redact_now = redact_now

    def __get__(self, record: Any, owner: type | None = None) -> Any:
        if record is None:
            return self
        self._redact_now(record)
        return record.__dict__[self._name]

    def __set__(self, record: Any, value: Any) -> None:
        present = record.__dict__
        deferred = present.get(DEFERRED)
        if deferred is None:  # another thread has just redacted the record
            present[self._name] = value
            return
        if not isinstance(deferred, _Changes):
            present[DEFERRED] = deferred = _Changes(deferred)
        deferred.fields[self._name] = value


def deferred_class(
    base: type, fields: Iterable[str], finish: Callable[[Any, dict[str, Any]], Any], plain: Iterable[str] = ()
) -> type:
    """Return a subclass of *base* for records that have not been redacted yet.

    The code that creates an instance must set `DEFERRED` on the instance.

    Args:
        base: The SDK class of the redacted records.
        fields: The names of the fields in *base* instances.
        finish: A function that returns a redacted *base* instance. The function receives the `DEFERRED` value and a
            dictionary of the fields that were set before redaction. The function must not raise exceptions and must be
            safe to call twice.
        plain: The names of fields that do not contain text. The code that creates an instance must also set these
            fields.
    """

    def redact_now(record: Any) -> None:
        present = record.__dict__
        deferred = present.get(DEFERRED)
        if deferred is None:  # another thread has already redacted the record
            return
        # A processor might have replaced a plain field or bypassed a field's descriptor.
        changes = {name: value for name, value in present.items() if name != DEFERRED}
        raw = deferred
        if isinstance(deferred, _Changes):
            raw = deferred.raw
            changes |= deferred.fields
        finished = finish(raw, changes).__dict__
        if present.get(DEFERRED) is None:
            return
        present.update(finished)
        present.pop(DEFERRED, None)
        object.__setattr__(record, "__class__", base)  # bypasses a frozen dataclass's checks

    def __reduce_ex__(record: Any, protocol: Any) -> Any:
        redact_now(record)
        return record.__reduce_ex__(protocol)

    namespace = {
        "__doc__": f"A {base.__name__} that is redacted on first access.",
        "__module__": base.__module__,
        "__reduce_ex__": __reduce_ex__,
        **{name: _RedactOnAccess(name, redact_now) for name in set(fields).difference(plain)},
    }
    return type(f"Deferred{base.__name__}", (base,), namespace)
