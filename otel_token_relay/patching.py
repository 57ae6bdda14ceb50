"""Install a wrapper inside all other wrappers of a method, and remove it again.

Instrumentation wraps the same methods and must see the request without the token, regardless of
which of the two is installed first. It uses wrapt proxies, whose inner function can be replaced, so
our wrapper is always the innermost.

Our wrappers are plain functions, not wrapt proxies: a proxy costs many times as much per call, and
``unwrap`` of opentelemetry-instrumentation removes the outermost proxy, even if it is not its own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Final

import wrapt

Function = Callable[..., Any]

# In wrapt 2, FunctionWrapper no longer derives from ObjectProxy but from the class above it.
Proxy: Final[Any] = getattr(wrapt, "BaseObjectProxy", wrapt.ObjectProxy)


def layers_of(function: Any) -> Iterator[tuple[Any, Any]]:
    """Return each layer of a wrapped function, from the outermost to the innermost, with the proxy around it.

    The proxy around the outermost layer is ``None``. The innermost layer is the first one that is not a proxy.
    """
    proxy = None
    while isinstance(function, Proxy):
        yield proxy, function
        proxy, function = function, function.__wrapped__
    yield proxy, function


class Patches:
    """The methods replaced so far, so that all of them can be restored."""

    def __init__(self) -> None:
        self._done: list[tuple[type | ModuleType, str, Function, Function]] = []

    def wrap(
        self,
        owner: type | ModuleType,
        name: str,
        build: Callable[[Function], Function],
        parameters: tuple[str, ...] | None = None,
    ) -> None:
        """Wrap the innermost function of a method.

        Args:
            owner: The class or the module.
            name: The name of the method.
            build: Returns the wrapper for the original function.
            parameters: The parameters that the original must have, for a wrapper that repeats them:
                ``*args, **kwargs`` would cost more than most wrappers do.

        Raises:
            AttributeError: *owner* itself does not define *name*, or its parameters differ.
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
        """Remove every wrapper. One that another library has wrapped in a plain function stays, but does nothing."""
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
