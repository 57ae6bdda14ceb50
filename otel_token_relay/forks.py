"""Call methods of shared objects in each forked child process.

In a forked child process, the parent's threads do not exist, and locks might still be held. Therefore, shared objects
must replace their threads and locks.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

_Owner = TypeVar("_Owner")

_methods: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()


def call_in_child(owner: _Owner, method: Callable[[_Owner], None]) -> None:
    """Call ``method(owner)`` in each forked child process until *owner* is garbage-collected.

    An owner can have only one method.
    """
    _methods[owner] = method


def _call_all() -> None:
    for owner, method in list(_methods.items()):
        method(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_call_all)
