"""Put a wrapper under everything else that wraps a method, and take it out again.

Instrumentation wraps the same methods and must see the request without the token, in whatever
order the two were installed. It uses wrapt proxies, whose inner function can be exchanged, so
ours goes to the very inside of the chain.

Ours are plain functions, not wrapt proxies: a proxy costs many times as much per call, and
``unwrap`` of opentelemetry-instrumentation takes off whatever proxy it finds on the outside.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

import wrapt

Function = Callable[..., Any]

# wrapt 2 has a root of its own above ObjectProxy, and its FunctionWrapper descends from that one.
Proxy: Final[Any] = getattr(wrapt, "BaseObjectProxy", wrapt.ObjectProxy)


class Patches:
    """The methods replaced so far, for taking all of them back."""

    def __init__(self) -> None:
        self._done: list[tuple[type | ModuleType, str, Function, Function]] = []

    def wrap(
        self,
        owner: type | ModuleType,
        name: str,
        build: Callable[[Function], Function],
        parameters: tuple[str, ...] | None = None,
    ) -> None:
        """Replace a method by what *build* makes of the innermost function behind it.

        Args:
            owner: The class or the module.
            name: The method.
            build: Makes the wrapper of the original.
            parameters: What the original must take, for a wrapper that names them: packing what
                one does not know costs more than most wrappers do.

        Raises:
            AttributeError: *owner* itself does not define *name*, or it takes something else.
        """
        if name not in vars(owner):
            raise AttributeError(f"{getattr(owner, '__qualname__', owner.__name__)} has no {name}")
        original = vars(owner)[name]
        proxy = None
        while isinstance(original, Proxy):
            proxy, original = original, original.__wrapped__
        if parameters is not None and tuple(inspect.signature(original).parameters) != parameters:
            raise AttributeError(f"{getattr(owner, '__qualname__', owner.__name__)}.{name} takes other arguments")
        replacement = functools.update_wrapper(build(original), original)
        if proxy is None:
            setattr(owner, name, replacement)
        else:
            proxy.__wrapped__ = replacement
        self._done.append((owner, name, original, replacement))

    def undo(self) -> None:
        """Take every wrapper out. One that somebody has covered by a plain function stays, inert."""
        while self._done:
            owner, name, original, replacement = self._done.pop()
            current: Any = vars(owner).get(name)
            proxy = None
            while current is not replacement and isinstance(current, Proxy):
                proxy, current = current, current.__wrapped__
            if current is not replacement:
                continue
            if proxy is None:
                setattr(owner, name, original)
            else:
                proxy.__wrapped__ = original
