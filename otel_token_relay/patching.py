"""Install a wrapper inside all of a method's other wrappers, and remove it later.

Instrumentation wraps the same methods and must see the request without the token, regardless of
whether it or the relay is installed first. Instrumentation uses wrapt proxies, whose inner function
can be replaced, so our wrapper is always the innermost one.

Our wrappers are plain functions, not wrapt proxies: a call through a proxy takes many times as long, and
opentelemetry-instrumentation's ``unwrap`` removes the outermost proxy even if a different library installed it.
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
    """Yield each layer of a wrapped function, from outermost to innermost, along with the proxy that wraps the layer.

    For the outermost layer, that proxy is ``None``. The innermost layer is the first one that is not a proxy.
    """
    proxy = None
    while isinstance(function, Proxy):
        yield proxy, function
        proxy, function = function, function.__wrapped__
    yield proxy, function


MISSING: Final = object()


class _EnclosedAttribute:
    """A class attribute that returns an enclosed value, but stores the original value where the class would store it.

    Args:
        stored: The class's own attribute: a slot, a default value, or `MISSING`.
    """

    def __init__(self, name: str, stored: Any, enclose: Callable[[Any], Any], is_ready: Callable[[Any], bool]) -> None:
        self._name = name
        self._slot = stored if hasattr(type(stored), "__set__") else None
        self._default = stored
        self._enclose = enclose
        self._is_ready = is_ready
        self._last: tuple[Any, Any] = (None, None)  # most processes use only one value

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self if self._default is MISSING else self._default
        if self._slot is not None:
            value = self._slot.__get__(instance, owner)
        else:
            value = vars(instance).get(self._name, self._default)
        if value is MISSING:
            raise AttributeError(f"{type(instance).__name__!r} object has no attribute {self._name!r}")
        if value is None or not self._is_ready(instance):
            return value
        last, enclosed = self._last
        if value is not last:
            enclosed = self._enclose(value)
            self._last = value, enclosed
        return enclosed

    def __set__(self, instance: Any, value: Any) -> None:
        if self._slot is not None:
            self._slot.__set__(instance, value)
        else:
            vars(instance)[self._name] = value

    def __delete__(self, instance: Any) -> None:
        if self._slot is not None:
            self._slot.__delete__(instance)
        elif self._name in vars(instance):
            del vars(instance)[self._name]
        else:
            raise AttributeError(self._name)


class Patches:
    """Keep track of replaced methods so that all of them can be restored."""

    def __init__(self) -> None:
        self._done: list[tuple[type | ModuleType, str, Any, Any]] = []

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
            parameters: The parameters that the original function must have, if the wrapper declares the same ones.
                (Passing ``*args, **kwargs`` would take longer than the rest of most wrappers.)

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

    def wrap_attribute(
        self,
        owner: type,
        name: str,
        enclose: Callable[[Any], Any],
        is_ready: Callable[[Any], bool] = lambda instance: True,
    ) -> None:
        """Return ``enclose(value)`` to code that reads an instance attribute. The instances themselves do not change.

        This also applies to existing instances and to values that are assigned later.

        Args:
            owner: The class whose instances have the attribute.
            name: The attribute's name.
            enclose: Returns the enclosed value for an original value.
            is_ready: Returns whether an instance should return the enclosed value yet.

        Raises:
            AttributeError: None of *owner*'s methods uses an attribute with this name.
        """
        methods = [value for base in owner.__mro__ for value in vars(base).values() if inspect.isfunction(value)]
        if not any(name in method.__code__.co_names for method in methods):
            raise AttributeError(f"{owner.__qualname__} has no {name}")
        previous = vars(owner).get(name, MISSING)
        replacement = _EnclosedAttribute(name, inspect.getattr_static(owner, name, MISSING), enclose, is_ready)
        setattr(owner, name, replacement)
        self._done.append((owner, name, previous, replacement))

    def override(self, owner: type, name: str, build: Callable[[Function], Function]) -> None:
        """Wrap a method that *owner* may inherit from a class that cannot be modified.

        Raises:
            AttributeError: *owner* has no *name* method.
        """
        if name in vars(owner):
            self.wrap(owner, name, build)
            return
        inherited = getattr(owner, name)
        replacement = functools.update_wrapper(build(inherited), inherited)
        setattr(owner, name, replacement)
        self._done.append((owner, name, MISSING, replacement))

    def undo(self) -> None:
        """Remove every wrapper. A wrapper inside another library's plain function stays but does nothing."""
        while self._done:
            owner, name, original, replacement = self._done.pop()
            if isinstance(replacement, _EnclosedAttribute):
                if vars(owner).get(name) is replacement:
                    delattr(owner, name) if original is MISSING else setattr(owner, name, original)
                continue
            for proxy, layer in layers_of(vars(owner).get(name)):
                if layer is not replacement:
                    continue
                if proxy is not None:
                    proxy.__wrapped__ = replacement.__wrapped__ if original is MISSING else original
                elif original is MISSING:
                    delattr(owner, name)
                else:
                    setattr(owner, name, original)
                break
