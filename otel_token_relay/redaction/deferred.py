"""Records that are cleaned when somebody first looks at them.

Cleaning a span takes longer than all else that redaction does, and the thread that ends it is the
one that answers a user. A batch processor puts the record into a queue and reads nothing of it, so
there it is cleaned by the exporter's thread; what reads the record at once has it cleaned at once.

Invariants:

* What has not been cleaned is no attribute of the record. Whatever attribute is asked for, private
  or not, by whomever, all of them are cleaned first, and the record is then what it would have
  been: an object of the SDK's own class.
* What it is compared with was taken in the thread that made the record, while its context was there.
* There is no lock, since a fork in the middle would leave it locked: two threads that look at the
  same moment both clean, and come to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn

PENDING: Final = "_token_relay_pending"
"""The attribute of a record that nobody has looked at: what it will be made of.

It must not show what it holds to whoever prints the record's attributes, or walks over them.
"""


class Pending:
    """The raw record and what to look for in it. Has no attributes that a walk could find, and does not pickle."""

    __slots__ = ("readable", "secrets")

    def __init__(self, readable: Any, secrets: Any) -> None:
        self.readable = readable
        self.secrets = secrets

    def __repr__(self) -> str:
        return "<not cleaned yet>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("what has not been cleaned cannot be pickled")


class _OnFirstLook:
    """Stands for a field until somebody asks for it.

    A descriptor for each field, and no ``__getattr__``: with that one, Python is ten times slower
    at each attribute that there is.
    """

    def __init__(self, name: str, look: Callable[[Any], None]) -> None:
        self._name = name
        self._look = look

    def __get__(self, record: Any, owner: type | None = None) -> Any:
        if record is None:
            return self
        self._look(record)
        return record.__dict__[self._name]


def unread_class(base: type, fields: Iterable[str], finish: Callable[[Any], Any]) -> type:
    """Give the class that a record has until somebody looks at it. Whoever makes one sets `PENDING`.

    Args:
        base: The SDK's class; afterwards the record is of this one.
        fields: What there is in a record of it.
        finish: Makes a clean record of *base* out of what `PENDING` holds. It must not raise, and
            may be called twice.
    """

    def look(record: Any) -> None:
        present = record.__dict__
        pending = present.get(PENDING)
        if pending is None:  # another thread was quicker
            return
        for name, value in finish(pending).__dict__.items():
            present.setdefault(name, value)  # what was set meanwhile stays
        present.pop(PENDING, None)
        object.__setattr__(record, "__class__", base)  # past whatever it does against being changed

    def __reduce_ex__(record: Any, protocol: Any) -> Any:
        look(record)
        return record.__reduce_ex__(protocol)

    namespace = {
        "__doc__": f"A {base.__name__} that nobody has looked at yet.",
        "__module__": base.__module__,
        "__reduce_ex__": __reduce_ex__,
        **{name: _OnFirstLook(name, look) for name in fields},
    }
    return type(f"Unread{base.__name__}", (base,), namespace)
