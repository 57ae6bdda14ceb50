"""Wrappers are innermost and reversible, whether other libraries wrap before or after them."""

from __future__ import annotations

import inspect
import types

import pytest
import wrapt

from otel_token_relay.patching import Patches, layers_of


class Target:
    """A class to patch."""

    def method(self, value):
        return [value]


def add(mark):
    """Return a function that wraps a method and adds *mark* to its result."""
    return lambda original: lambda self, value: [*original(self, value), mark]


def proxy(mark):
    """Wrap the method as instrumentation does."""
    wrapt.wrap_function_wrapper(Target, "method", lambda wrapped, _, args, kwargs: [*wrapped(*args, **kwargs), mark])


@pytest.fixture
def target():
    """The class with its original method, which is restored after the test."""
    original = Target.__dict__["method"]
    yield Target()
    Target.method = original


def test_our_wrapper_is_innermost_in_every_order(target):
    """Instrumentation sees the request without the token, whether it wraps before or after us."""
    patches = Patches()

    proxy("earlier")
    proxy("outer")
    patches.wrap(Target, "method", add("ours"))
    proxy("later")

    assert target.method(1) == [1, "ours", "earlier", "outer", "later"]
    patches.undo()
    assert target.method(1) == [1, "earlier", "outer", "later"]


def test_instrumentation_removes_only_its_own_wrapper(target):
    """`unwrap` removes the outermost proxy, and our wrapper is not a proxy."""
    from opentelemetry.instrumentation.utils import unwrap

    patches = Patches()
    patches.wrap(Target, "method", add("ours"))
    unwrap(Target, "method")
    assert target.method(1) == [1, "ours"]

    proxy("otel")
    unwrap(Target, "method")
    assert target.method(1) == [1, "ours"]
    patches.undo()
    assert target.method(1) == [1]


def test_a_wrapper_inside_a_plain_function_stays(target):
    """It cannot be removed, so it must do nothing (the relay is closed)."""
    patches = Patches()
    patches.wrap(Target, "method", add("ours"))
    ours = Target.__dict__["method"]
    Target.method = lambda self, value: [*ours(self, value), "plain"]

    patches.undo()

    assert target.method(1) == [1, "ours", "plain"]


def test_a_missing_method_cannot_be_patched():
    """An inherited method would be patched for every other subclass too."""
    with pytest.raises(AttributeError, match="Child has no method"):
        Patches().wrap(type("Child", (Target,), {}), "method", add("ours"))


def test_a_function_of_a_module_is_wrapped_and_restored() -> None:
    """The wrapper keeps the name, the docstring and the signature of the original."""

    def double(value: int = 1) -> int:
        """Return twice the value."""
        return 2 * value

    module = types.ModuleType("module")
    module.double = double
    patches = Patches()

    patches.wrap(module, "double", lambda original: lambda *args, **kwargs: original(*args, **kwargs) + 1, ("value",))

    assert module.double(2) == 5
    assert (module.double.__name__, module.double.__doc__) == ("double", "Return twice the value.")
    assert inspect.signature(module.double) == inspect.signature(double)
    patches.undo()
    assert module.double is double


@pytest.mark.parametrize("parameters", [(), ("self",), ("value", "self"), ("self", "value", "other")])
def test_a_method_with_unexpected_parameters_is_not_wrapped(target, parameters):
    """A wrapper that repeats the parameters would lose an argument of a later release."""
    original = Target.__dict__["method"]

    with pytest.raises(AttributeError, match=r"Target\.method has unexpected parameters"):
        Patches().wrap(Target, "method", add("ours"), parameters)

    assert Target.__dict__["method"] is original


def test_the_parameters_are_those_of_the_innermost_function(target):
    """Instrumentation's proxies do not hide them."""
    patches = Patches()
    proxy("otel")

    patches.wrap(Target, "method", add("ours"), ("self", "value"))

    assert target.method(1) == [1, "ours", "otel"]
    patches.undo()


def test_each_patch_of_one_method_is_undone_once(target):
    """Patches are undone in reverse order, and a second call does nothing."""
    patches = Patches()
    patches.wrap(Target, "method", add("first"))
    patches.wrap(Target, "method", add("second"))
    assert target.method(1) == [1, "first", "second"]

    patches.undo()
    assert target.method(1) == [1]
    Patches().wrap(Target, "method", add("another library"))
    patches.undo()
    assert target.method(1) == [1, "another library"]


def test_a_method_that_was_deleted_meanwhile_stays_deleted() -> None:
    """Undoing does not raise, and does not restore what the application has removed."""
    owner = type("Owner", (), {"method": lambda self, value: [value]})
    patches = Patches()
    patches.wrap(owner, "method", add("ours"))
    del owner.method

    patches.undo()

    assert "method" not in vars(owner)


def test_layers_are_listed_from_the_outermost() -> None:
    """Each layer comes with the proxy whose inner function it is."""

    def function() -> None:
        """Do nothing."""

    inner = wrapt.FunctionWrapper(function, lambda wrapped, _, args, kwargs: wrapped(*args, **kwargs))
    outer = wrapt.ObjectProxy(inner)

    layers = list(layers_of(outer))

    assert [proxy is expected for (proxy, _), expected in zip(layers, (None, outer, inner), strict=True)] == [True] * 3
    assert [layer is expected for (_, layer), expected in zip(layers, (outer, inner, function), strict=True)] == [
        True
    ] * 3
    assert list(layers_of(function)) == [(None, function)]


@pytest.mark.parametrize("owner", [type("Derived", (Target,), {}), Target], ids=["inherited", "own"])
def test_a_method_can_be_wrapped_in_a_derived_class(owner: type) -> None:
    """The class from which it is inherited is not changed, and undoing removes what was added."""
    before = vars(owner).get("method")
    patches = Patches()
    patches.override(owner, "method", add("ours"))
    assert owner().method(1) == [1, "ours"]
    assert owner is Target or Target().method(1) == [1]

    patches.undo()

    assert owner().method(1) == [1]
    assert vars(owner).get("method") is before


def test_a_method_that_does_not_exist_cannot_be_overridden() -> None:
    """The hook fails, and the class is not changed."""
    with pytest.raises(AttributeError):
        Patches().override(Target, "other", add("ours"))
