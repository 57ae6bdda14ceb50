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
    """A class whose original method is restored after the test."""
    original = Target.__dict__["method"]
    yield Target()
    Target.method = original


def test_our_wrapper_is_innermost_in_every_order(target):
    """Instrumentation sees the request without the token, whether it wraps before or after the package."""
    patches = Patches()

    proxy("earlier")
    proxy("outer")
    patches.wrap(Target, "method", add("ours"))
    proxy("later")

    assert target.method(1) == [1, "ours", "earlier", "outer", "later"]
    patches.undo()
    assert target.method(1) == [1, "earlier", "outer", "later"]


def test_instrumentation_removes_only_its_own_wrapper(target):
    """Instrumentation removes its own wrapper and not the package's wrapper, which is not a proxy."""
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
    """A wrapper inside a plain function cannot be removed, so it must do nothing after the relay is closed."""
    patches = Patches()
    patches.wrap(Target, "method", add("ours"))
    ours = Target.__dict__["method"]
    Target.method = lambda self, value: [*ours(self, value), "plain"]

    patches.undo()

    assert target.method(1) == [1, "ours", "plain"]


def test_a_missing_method_cannot_be_patched():
    """A method that the class only inherits cannot be patched, because the patch would affect all other subclasses."""
    with pytest.raises(AttributeError, match="Child has no method"):
        Patches().wrap(type("Child", (Target,), {}), "method", add("ours"))


def test_a_function_of_a_module_is_wrapped_and_restored() -> None:
    """A module's function is wrapped with its name, docstring, and signature, and can be restored."""

    def double(value: int = 1) -> int:
        """Return the value multiplied by two."""
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
    """A method with unexpected parameters is not wrapped, because the wrapper would lose an argument of a later
    release.
    """
    original = Target.__dict__["method"]

    with pytest.raises(AttributeError, match=r"Target\.method has unexpected parameters"):
        Patches().wrap(Target, "method", add("ours"), parameters)

    assert Target.__dict__["method"] is original


def test_the_parameters_are_those_of_the_innermost_function(target):
    """The parameters are those of the innermost function, even under instrumentation's proxies."""
    patches = Patches()
    proxy("otel")

    patches.wrap(Target, "method", add("ours"), ("self", "value"))

    assert target.method(1) == [1, "ours", "otel"]
    patches.undo()


def test_each_patch_of_one_method_is_undone_once(target):
    """Patches of one method are undone in reverse order, and a second call does nothing."""
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
    """Undoing a patch does not raise an error or restore a method that the application deleted."""
    owner = type("Owner", (), {"method": lambda self, value: [value]})
    patches = Patches()
    patches.wrap(owner, "method", add("ours"))
    del owner.method

    patches.undo()

    assert "method" not in vars(owner)


def test_layers_are_listed_from_the_outermost() -> None:
    """Layers are listed from the outermost, each with the proxy that wraps it."""

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
    """A method can be wrapped in a subclass without changing the base class, and undoing removes the addition."""
    before = vars(owner).get("method")
    patches = Patches()
    patches.override(owner, "method", add("ours"))
    assert owner().method(1) == [1, "ours"]
    assert owner is Target or Target().method(1) == [1]

    patches.undo()

    assert owner().method(1) == [1]
    assert vars(owner).get("method") is before


def test_a_method_that_does_not_exist_cannot_be_overridden() -> None:
    """Overriding a method that does not exist fails and does not change the class."""
    with pytest.raises(AttributeError):
        Patches().override(Target, "other", add("ours"))


def slotted():
    """Return a server class whose attribute is a slot."""

    class Slotted:
        __slots__ = ("app",)

        def __init__(self, app=None):
            self.app = app

    return Slotted


def defaulted():
    """Return a server class that has a default application."""

    class Defaulted:
        app = "default"

        def configure(self, app):
            self.app = app

    return Defaulted


def plain():
    """Return a server class whose attribute is stored only in the instance."""

    class Plain:
        def __init__(self, app=None):
            self.app = app

    return Plain


@pytest.fixture(params=[slotted, defaulted, plain], ids=lambda shape: shape.__name__)
def server(request):
    """A class whose methods assign an application."""
    return request.param()


def enclose(value):
    """Return the value that a server reads instead of its application."""
    return f"enclosed {value}"


def with_app(server, app):
    """Return an instance that has the application."""
    instance = server()
    instance.app = app
    return instance


def test_an_attribute_shows_the_enclosed_value_however_it_is_assigned(server) -> None:
    """Existing and new instances return the wrapped value, also after later assignments, and `None` is not wrapped."""
    existing, patches = with_app(server, "first"), Patches()

    patches.wrap_attribute(server, "app", enclose)

    assert existing.app == "enclosed first"
    existing.app = "second"
    assert (existing.app, existing.app) == ("enclosed second", "enclosed second")
    setattr(existing, "app", "third")  # noqa: B010
    assert existing.app == "enclosed third"
    new = with_app(server, "fourth")
    assert (new.app, existing.app, new.app) == ("enclosed fourth", "enclosed third", "enclosed fourth")
    new.app = None
    assert new.app is None


def test_the_same_value_is_enclosed_in_the_same_object(server) -> None:
    """A value is wrapped only once, so repeated reads are fast and comparisons of the wrapped value remain true."""
    count = []
    app = object()
    one, other = with_app(server, app), with_app(server, app)
    Patches().wrap_attribute(server, "app", lambda value: count.append(value) or [value])

    assert one.app is one.app is other.app
    assert count == [app]


def test_undo_restores_the_class_and_its_instances_exactly(server) -> None:
    """Undoing restores the class attribute, or its absence, and the instances keep the last assigned values."""
    before = dict(vars(server))
    existing, patches = with_app(server, "first"), Patches()
    patches.wrap_attribute(server, "app", enclose)
    new = with_app(server, "second")
    existing.app = "third"

    patches.undo()
    patches.undo()

    assert dict(vars(server)) == before
    assert (existing.app, new.app) == ("third", "second")
    existing.app = "fourth"
    assert existing.app == "fourth"


def test_an_attribute_can_be_deleted(server) -> None:
    """After its deletion, an attribute has the class's default value or is missing, as without the patch."""
    instance = with_app(server, "first")
    Patches().wrap_attribute(server, "app", enclose)

    del instance.app

    if server.__name__ == "Defaulted":
        assert instance.app == "enclosed default"
    else:
        with pytest.raises(AttributeError, match="app"):
            _ = instance.app
        assert not hasattr(instance, "app")
    with pytest.raises(AttributeError, match="app"):
        del instance.app


def test_the_class_shows_what_it_showed_before() -> None:
    """The class attribute is unchanged, and a default value is wrapped only when it is read from an instance."""
    Patches().wrap_attribute(server := defaulted(), "app", enclose)

    assert server.app == "default"
    assert server().app == "enclosed default"


def test_an_instance_that_is_not_ready_shows_its_value(server) -> None:
    """An instance that is not ready returns the value itself, which might not be the application yet."""
    ready = []
    instance = with_app(server, "factory")
    Patches().wrap_attribute(server, "app", enclose, lambda asked: ready)

    assert instance.app == "factory"
    ready.append(instance)
    assert instance.app == "enclosed factory"


def test_subclasses_show_the_enclosed_value(server) -> None:
    """Subclasses return the wrapped value, even those that are defined later or have their own slots."""
    early = type("Early", (server,), {})
    Patches().wrap_attribute(server, "app", enclose)
    late = type("Late", (server,), {"__slots__": ("more",)})

    assert (with_app(early, "first").app, with_app(late, "second").app) == ("enclosed first", "enclosed second")


def test_an_inherited_slot_or_default_is_stored_where_it_was(server) -> None:
    """Patching a subclass leaves an inherited slot or default in place and does not affect instances of
    the base class.
    """
    child, patches = type("Child", (server,), {}), Patches()
    existing = with_app(child, "first")
    patches.wrap_attribute(child, "app", enclose)
    new = with_app(child, "second")

    assert (existing.app, new.app) == ("enclosed first", "enclosed second")
    assert with_app(server, "third").app == "third"
    patches.undo()
    assert (existing.app, new.app) == ("first", "second")
    assert "app" not in vars(child)


def test_a_class_without_such_an_attribute_cannot_be_patched(server) -> None:
    """A class without the attribute cannot be patched; otherwise, a server that renames the attribute would have no
    boundary.
    """
    before = dict(vars(server))

    with pytest.raises(AttributeError, match=f"{server.__qualname__} has no application"):
        Patches().wrap_attribute(server, "application", enclose)

    assert dict(vars(server)) == before


def test_undo_leaves_an_attribute_that_another_library_has_replaced(server) -> None:
    """Undoing leaves an attribute that another library replaced, and a patch inside the replacement does nothing."""
    patches = Patches()
    patches.wrap_attribute(server, "app", enclose)
    theirs = property(lambda self: "theirs")
    server.app = theirs

    patches.undo()

    assert vars(server)["app"] is theirs
