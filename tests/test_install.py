"""Hooks: lazy, innermost, idempotent, undone; and one that fails leaves its library alone."""

import importlib.util
import logging
import os
import subprocess
import sys
import types

import httpx
import pytest
import wrapt
from opentelemetry import propagate
from opentelemetry.propagators.composite import CompositePropagator

from otel_token_relay import Settings, TokenRelayPropagator, install, uninstall
from otel_token_relay.patching import Patches

# The function of the same name hides the module in its package.
module = sys.modules["otel_token_relay.install"]
LISTED = Settings(destinations=("https://a",))


@pytest.fixture(autouse=True)
def _clean():
    before = propagate.get_global_textmap()
    yield
    uninstall()
    propagate.set_global_textmap(before)


def run(program, **environ):
    """Run a program in a fresh interpreter and give what it prints."""
    environ = {**os.environ, **environ}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


class Target:
    """A class to patch."""

    def method(self, value):
        return [value]


def add(mark):
    """Give a builder of wrappers that add *mark*."""
    return lambda original: lambda self, value: [*original(self, value), mark]


def proxy(mark):
    """Wrap as instrumentation does."""
    wrapt.wrap_function_wrapper(Target, "method", lambda wrapped, _, args, kwargs: [*wrapped(*args, **kwargs), mark])


@pytest.fixture
def target():
    """The class as it was, before and after."""
    original = Target.__dict__["method"]
    yield Target()
    Target.method = original


def test_ours_is_innermost_in_every_order(target):
    """Instrumentation sees the request without the token, before us and after us."""
    patches = Patches()

    proxy("earlier")
    proxy("outer")
    patches.wrap(Target, "method", add("ours"))
    proxy("later")

    assert target.method(1) == [1, "ours", "earlier", "outer", "later"]
    patches.undo()
    assert target.method(1) == [1, "earlier", "outer", "later"]


def test_what_instrumentation_takes_off_is_its_own(target):
    """`unwrap` takes the outermost proxy, and ours is none."""
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


def test_a_wrapper_that_is_covered_by_a_plain_function_stays(target):
    """There is no way to take it out, so it must be inert (the relay is closed)."""
    patches = Patches()
    patches.wrap(Target, "method", add("ours"))
    ours = Target.__dict__["method"]
    Target.method = lambda self, value: [*ours(self, value), "plain"]

    patches.undo()

    assert target.method(1) == [1, "ours", "plain"]


def test_a_method_that_is_not_there_is_refused():
    """An inherited one would be patched for every other class too."""
    with pytest.raises(AttributeError, match="Child has no method"):
        Patches().wrap(type("Child", (Target,), {}), "method", add("ours"))


def test_install_and_uninstall_put_back_what_they_found():
    """Methods and the global propagator."""
    method, textmap = httpx.HTTPTransport.handle_request, propagate.get_global_textmap()

    install(LISTED)
    assert httpx.HTTPTransport.handle_request is not method
    assert "Authorization" in propagate.get_global_textmap().fields
    uninstall()

    assert httpx.HTTPTransport.handle_request is method
    assert propagate.get_global_textmap() is textmap
    uninstall()


def test_install_is_idempotent():
    """Twice is once."""
    install(LISTED)
    method, textmap = httpx.HTTPTransport.handle_request, propagate.get_global_textmap()

    install()
    install(LISTED)

    assert httpx.HTTPTransport.handle_request is method
    assert propagate.get_global_textmap() is textmap


def test_new_settings_take_over():
    """One wrapper, one propagator."""
    original = httpx.HTTPTransport.handle_request
    install(LISTED)
    install(Settings(destinations=("https://b",)))

    assert httpx.HTTPTransport.handle_request.__wrapped__ is original
    ours = [p for p in propagate.get_global_textmap()._propagators if isinstance(p, TokenRelayPropagator)]
    assert [str(d) for p in ours for d in p.relay.settings.destinations] == ["https://b"]


def test_a_propagator_that_is_there_already_is_kept():
    """By hand, in the application's own composite."""
    own = CompositePropagator([TokenRelayPropagator(LISTED)])
    propagate.set_global_textmap(own)

    install(LISTED)

    assert propagate.get_global_textmap() is own


def test_a_hook_that_fails_leaves_its_library_as_it_was(monkeypatch, caplog):
    """One clear error, and the others are hooked."""
    broken = types.ModuleType("httpx_of_tomorrow")
    broken.Headers = httpx.Headers
    broken.HTTPTransport = type("HTTPTransport", (), {"handle_request": lambda self, request: "sent"})
    monkeypatch.setitem(sys.modules, "httpx_of_tomorrow", broken)
    hook = module.Hook("httpx_of_tomorrow", module.httpx.patch, None)
    monkeypatch.setattr(module, "HOOKS", (hook, *module.HOOKS))

    with caplog.at_level(logging.ERROR):
        install(LISTED)

    assert broken.HTTPTransport().handle_request(None) == "sent"
    assert "httpx_of_tomorrow" in caplog.text
    assert "AttributeError" in module.hook_states()["httpx_of_tomorrow"]
    assert module.hook_states()["httpx"] == "hooked"


def test_libraries_are_hooked_when_the_application_imports_them():
    """And never imported by us."""
    out, _ = run(
        "import sys, otel_token_relay as r; r.install()\n"
        "from otel_token_relay.install import hook_states\n"
        "libraries = {'httpx', 'aiohttp', 'flask', 'django', 'starlette', 'requests', 'opentelemetry.sdk'}\n"
        "print(sorted(libraries & set(sys.modules)))\n"
        "import httpx, starlette.applications\n"
        "print([name for name, state in hook_states().items() if state == 'hooked'])",
        OTEL_PROPAGATORS="tracecontext,token_relay",
    )

    first, second = out.splitlines()
    assert first == "[]"
    assert "'httpx'" in second
    assert "'starlette.applications'" in second


# Starlette and FastAPI import OpenTelemetry by themselves in their newer releases only.
SELF_IMPORTING = [
    name
    for name in (
        "fastapi",
        "opentelemetry.instrumentation.asgi",
        "opentelemetry.instrumentation.wsgi",
        "starlette.middleware.opentelemetry",
    )
    if importlib.util.find_spec(name) is not None
]


@pytest.mark.parametrize("first_import", SELF_IMPORTING)
def test_a_module_whose_own_import_brings_us_in_is_hooked(first_import):
    """It is half imported when OpenTelemetry loads the propagator."""
    out, err = run(
        f"import {first_import}\nimport opentelemetry.propagate, colorsys\n"
        "from otel_token_relay.install import hook_states\n"
        "import sys; states = hook_states()\n"
        "print([n for n, s in states.items() if n in sys.modules and s != 'hooked'], len(states))",
        OTEL_PROPAGATORS="tracecontext,baggage,token_relay",
    )

    assert out.startswith("[] ")
    assert not out.endswith(" 0")
    assert err == ""


def test_the_factory_never_raises(monkeypatch, caplog):
    """An exception there would keep the application from starting."""
    monkeypatch.setattr(Settings, "from_env", classmethod(lambda cls: 1 / 0))

    propagator = module.propagator_from_env()

    assert propagator.relay.settings.destinations == ()
    assert "no token is relayed" in caplog.text


def test_unreadable_settings_are_reported_once_and_the_application_starts():
    """Each problem is one error in the log, under `opentelemetry-instrument` too."""
    launcher = os.path.join(os.path.dirname(sys.executable), "opentelemetry-instrument")
    environ = {
        **os.environ,
        "OTEL_PROPAGATORS": "tracecontext,token_relay",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS": "https://user:hunter2@a,https://b",
    }
    done = subprocess.run(
        [launcher, sys.executable, "-c", "print('started')"], capture_output=True, text=True, env=environ, timeout=60
    )

    assert done.stdout == "started\n"
    assert done.stderr.count("DESTINATIONS") == 1
    assert "hunter2" not in done.stderr


def test_settings_without_the_propagator_are_warned_about(monkeypatch, caplog):
    """The most common mistake, said where the application starts."""
    monkeypatch.setenv("OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS", "https://a")

    module.pre_instrument()
    assert "OTEL_PROPAGATORS" in caplog.text

    caplog.clear()
    install(LISTED)
    module.pre_instrument()
    assert caplog.text == ""
