"""Install and remove a method's innermost wrapper.

Instrumentation also wraps the methods that this package wraps, and it must see the request without the token,
regardless of the installation order. Instrumentation uses wrapt proxies. The function inside a proxy can be replaced,
so our wrapper is always the innermost one.

Our wrappers are plain functions, not wrapt proxies, because a call through a proxy is many times slower. In addition,
opentelemetry-instrumentation's ``unwrap`` removes the outermost proxy, even if a different library installed it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Final

import wrapt

Function = Callable[..., Any]

# In wrapt 2, FunctionWrapper is derived from BaseObjectProxy instead of ObjectProxy.
Proxy: Final[Any] = getattr(wrapt, "BaseObjectProxy", wrapt.ObjectProxy)


def layers_of(function: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each layer of a wrapped function, from outermost to innermost, with the proxy that wraps it.

    The outermost layer is yielded with ``None`` instead of a proxy. The innermost layer is the first layer that is not
    a proxy.
    """
    proxy = None
    while isinstance(function, Proxy):
        yield proxy, function
        proxy, function = function, function.__wrapped__
    yield proxy, function


MISSING: Final = object()


class _EnclosedAttribute:
    """A descriptor that returns a wrapped value but stores the original value where the class would store it.

    Args:
        stored: The class's original attribute: a slot, a default value, or `MISSING`.
    """

    def __init__(self, name: str, stored: Any, enclose: Callable[[Any], Any], is_ready: Callable[[Any], bool]) -> None:
        self._name = name
        self._slot = stored if hasattr(type(stored), "__set__") else None
        self._default = stored
        self._enclose = enclose
        self._is_ready = is_ready
        self._last: tuple[Any, Any] = (None, None)  # a one-value cache is sufficient for most processes

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
    """A record of replaced methods and attributes, which `undo` restores."""

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
            build: A function that returns a wrapper for the original function.
            parameters: The parameters that the original function must have; ``None`` if the wrapper accepts any
                arguments. Explicit parameters are faster, because passing ``*args, **kwargs`` takes longer than the
                rest of most wrappers.

        Raises:
            AttributeError: *owner* does not define *name* itself, or the function has different parameters.
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
        """Make an instance attribute return ``enclose(value)`` when it is read. The stored values do not change.

        The change also affects existing instances and values that are assigned later.

        Args:
            owner: The class whose instances have the attribute.
            name: The attribute's name.
            enclose: A function that accepts an original value and returns the wrapped value.
            is_ready: A function that returns whether an instance is ready to return the wrapped value.

        Raises:
            AttributeError: No method of *owner* uses an attribute with this name.
        """
        methods = [value for base in owner.__mro__ for value in vars(base).values() if inspect.isfunction(value)]
        if not any(name in method.__code__.co_names for method in methods):
            raise AttributeError(f"{owner.__qualname__} has no {name}")
        previous = vars(owner).get(name, MISSING)
        replacement = _EnclosedAttribute(name, inspect.getattr_static(owner, name, MISSING), enclose, is_ready)
        setattr(owner, name, replacement)
        self._done.append((owner, name, previous, replacement))

    def override(self, owner: type, name: str, build: Callable[[Function], Function]) -> None:
        """Wrap a method of *owner*, even if it is inherited from a class that cannot be modified.

        Raises:
            AttributeError: *owner* has no method with this name.
        """
        if name in vars(owner):
            self.wrap(owner, name, build)
            return
        inherited = getattr(owner, name)
        replacement = functools.update_wrapper(build(inherited), inherited)
        setattr(owner, name, replacement)
        self._done.append((owner, name, MISSING, replacement))

    def undo(self) -> None:
        """Remove every wrapper. A wrapper that is inside another library's plain function remains in place but does
        nothing.
        """
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
