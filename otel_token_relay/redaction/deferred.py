"""Records that are redacted on first access.

Redacting a span costs more than the rest of redaction, and the thread that ends the span is serving a
request. A batch processor queues the record without reading it, so the exporter's thread redacts it.
A processor that reads the record at once has it redacted at once.

Invariants:

* Raw content is not an attribute of the record. Access to any attribute, public or private, redacts
  all of them first. The record then is an ordinary object of the SDK's own class.
* The known tokens are collected in the thread that creates the record, while its context is current.
* No lock is used, since a fork could leave it locked. If two threads access a record at the same
  moment, both redact it, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn

DEFERRED: Final = "_token_relay_deferred"
"""The attribute of a deferred record from which `deferred_class` makes the redacted one.

Its value must not show raw content to code that prints or walks over the record's attributes.
"""


class DeferredRecord:
    """The raw record and its known tokens. Has no ``__dict__`` that a walk could find, and cannot be pickled."""

    __slots__ = ("known", "readable")

    def __init__(self, readable: Any, known: Any) -> None:
        self.readable: Any = readable
        self.known: Any = known

    def __repr__(self) -> str:
        return "<not redacted yet>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("cannot pickle a record that is not redacted yet")


class _RedactOnAccess:
    """A field that redacts its record when it is read.

    There is a descriptor for each field instead of one ``__getattr__``, which would make every access
    to an existing attribute ten times slower.
    """

    def __init__(self, name: str, redact_now: Callable[[Any], None]) -> None:
        self._name = name
        self._redact_now = redact_now

    def __get__(self, record: Any, owner: type | None = None) -> Any:
        if record is None:
            return self
        self._redact_now(record)
        return record.__dict__[self._name]


def deferred_class(base: type, fields: Iterable[str], finish: Callable[[Any], Any]) -> type:
    """Return the class of a record until its first access. The caller sets `DEFERRED` on each instance.

    Args:
        base: The SDK's class, which becomes the class of the record.
        fields: The fields of a record of *base*.
        finish: Makes a redacted record of *base* from the value of `DEFERRED`. It must not raise, and
            may be called twice.
    """

    def redact_now(record: Any) -> None:
        present = record.__dict__
        deferred = present.get(DEFERRED)
        if deferred is None:  # another thread was faster
            return
        for name, value in finish(deferred).__dict__.items():
            present.setdefault(name, value)  # keep fields that were set in the meantime
        present.pop(DEFERRED, None)
        object.__setattr__(record, "__class__", base)  # bypasses the checks of a frozen dataclass

    def __reduce_ex__(record: Any, protocol: Any) -> Any:
        redact_now(record)
        return record.__reduce_ex__(protocol)

    namespace = {
        "__doc__": f"A {base.__name__} that is redacted on first access.",
        "__module__": base.__module__,
        "__reduce_ex__": __reduce_ex__,
        **{name: _RedactOnAccess(name, redact_now) for name in fields},
    }
    return type(f"Deferred{base.__name__}", (base,), namespace)
