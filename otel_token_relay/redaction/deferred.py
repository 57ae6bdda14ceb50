"""Create records that are redacted on first access.

Redacting a span's contents takes longer than all other redaction work, and the thread that ends the
span is serving a request. A batch processor queues the record without reading it, so the exporter's thread
redacts it. If a processor reads the record immediately, the record is redacted immediately.

Invariants:

* The record does not store raw content in its attributes. Accessing any attribute, public or private, first redacts all
  attributes. The record is then an ordinary instance of the SDK's own class.
* A field that is set before the record is first accessed becomes part of the raw record, so it is redacted too.
* The known tokens are collected in the thread that creates the record, while the record's context is current.
* No locks are used, since a fork could leave a lock held. If two threads access a record at the same time, both redact
  it, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn

DEFERRED: Final = "_token_relay_deferred"
"""The name of the attribute whose value `deferred_class` turns into the redacted record.

The value must not reveal raw content to code that prints or traverses the record's attributes.
"""


class DeferredRecord:
    """A raw record and its known tokens. The object has no ``__dict__`` to traverse and cannot be pickled."""

    __slots__ = ("known", "raw")

    def __init__(self, raw: Any, known: Any) -> None:
        self.raw: Any = raw
        self.known: Any = known

    def __repr__(self) -> str:
        return "<not redacted yet>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("cannot pickle a record that has not been redacted yet")

    def __getstate__(self) -> None:
        """Return nothing. The default implementation would expose the raw record to code that dumps objects."""


class _Changes(DeferredRecord):
    """The `DEFERRED` value of a record after fields have been set, which includes the fields' new values."""

    __slots__ = ("fields",)

    def __init__(self, deferred: Any) -> None:
        super().__init__(deferred, None)
        self.fields: dict[str, Any] = {}


class _RedactOnAccess:
    """A descriptor that redacts the record when the field is read, and that stores assigned values until then.

    Each field has its own descriptor, since a single ``__getattr__`` would make every access to an existing
    attribute ten times slower.
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
    """Return the class that a record has before the first access. The caller sets `DEFERRED` on each instance.

    Args:
        base: The SDK class that the record has after the first access.
        fields: The names of a *base* instance's fields.
        finish: A callable that creates a redacted *base* instance from the `DEFERRED` value and the fields that have
            been set in the meantime. The callable must not raise an exception, and may be called twice.
        plain: The names of the fields that the caller sets on each instance, because they contain no text.
    """

    def redact_now(record: Any) -> None:
        present = record.__dict__
        deferred = present.get(DEFERRED)
        if deferred is None:  # another thread has already redacted the record
            return
        # A processor may have replaced a plain field, or set a field without using its descriptor.
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
