"""Install a wrapper inside all of a method's other wrappers, and remove it again.

Instrumentation wraps the same methods and must see the request without the token, regardless of
whether it or the relay is installed first. Instrumentation uses wrapt proxies, whose inner function
can be replaced, so our wrapper is always the innermost one.

Our wrappers are plain functions, not wrapt proxies: a call through a proxy costs many times as much, and
opentelemetry-instrumentation's ``unwrap`` removes the outermost proxy even if another library installed it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Final

import wrapt

Function = Callable[..., Any]

# In wrapt 2, FunctionWrapper derives not from ObjectProxy but from ObjectProxy's base class.
Proxy: Final[Any] = getattr(wrapt, "BaseObjectProxy", wrapt.ObjectProxy)


def layers_of(function: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each layer of a wrapped function, from the outermost to the innermost, with the proxy that wraps it.

    For the outermost layer, that proxy is ``None``. The innermost layer is the first one that is not a proxy.
    """
    proxy = None
    while isinstance(function, Proxy):
        yield proxy, function
        proxy, function = function, function.__wrapped__
    yield proxy, function


class Patches:
    """Keep track of replaced methods so that all of them can be restored."""

    def __init__(self) -> None:
        self._done: list[tuple[type | ModuleType, str, Function, Function]] = []

    def wrap(
        self,
        owner: type | ModuleType,
        name: str,
        build: Callable[[Function], Function],
        parameters: tuple[str, ...] | None = None,
    ) -> None:
        """Wrap a method's innermost function.

        Args:
            owner: The class or module that defines the method.
            name: The method's name.
            build: Returns a wrapper for the original function.
            parameters: The parameters that the original function must have, if the wrapper repeats them.
                (Passing ``*args, **kwargs`` would cost more than the rest of most wrappers.)

        Raises:
            AttributeError: *owner* itself does not define *name*, or the function's parameters differ.
        """
        if name not in vars(owner):
            raise AttributeError(f"{getattr(owner, '__qualname__', owner.__name__)} has no {name}")
        *_, (proxy, original) = layers_of(vars(owner)[name])
        if parameters is not None and tuple(inspect.signature(original).parameters) != parameters:
            raise AttributeError(f"{getattr(owner, '__qualname__', owner.__name__)}.{name} has unexpected parameters")
        replacement = functools.update_wrapper(build(original), original)
        if proxy is None:
            setattr(owner, name, replacement)
        else:
            proxy.__wrapped__ = replacement
        self._done.append((owner, name, original, replacement))

    def undo(self) -> None:
        """Remove every wrapper. One that another library has wrapped in a plain function stays but does nothing."""
        while self._done:
            owner, name, original, replacement = self._done.pop()
            for proxy, layer in layers_of(vars(owner).get(name)):
                if layer is not replacement:
                    continue
                if proxy is None:
                    setattr(owner, name, original)
                else:
                    proxy.__wrapped__ = original
                break
