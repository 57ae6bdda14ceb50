"""Hooks are lazy, innermost, idempotent, and reversible. A failed hook leaves its library unchanged."""

import logging
import os
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from opentelemetry import propagate
from opentelemetry.propagators.composite import CompositePropagator

from otel_token_relay import (
    Settings,
    TokenRelayPropagator,
    context,
    current_token,
    install,
    runtime,
    uninstall,
    use_token,
)
from otel_token_relay import installation as module
from otel_token_relay.clients import httpx as httpx_client
from otel_token_relay.servers.asgi import EnclosedApp
from tests.support.processes import INSTRUMENT, RELAY, instrumentations

LISTED = Settings(destinations=("https://a",))


@pytest.fixture(autouse=True)
def _clean():
    before = propagate.get_global_textmap()
    yield
    uninstall()
    propagate.set_global_textmap(before)


def run(program, **environ):
    """Run a program in a new interpreter and return its output."""
    environ = {**os.environ, **environ}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def test_uninstall_restores_the_previous_state():
    """`uninstall` restores the methods and the global propagator."""
    method, textmap = httpx.HTTPTransport.handle_request, propagate.get_global_textmap()

    install(LISTED)
    assert httpx.HTTPTransport.handle_request is not method
    assert "Authorization" in propagate.get_global_textmap().fields
    uninstall()

    assert httpx.HTTPTransport.handle_request is method
    assert propagate.get_global_textmap() is textmap
    uninstall()


def test_install_is_idempotent():
    """A second call to `install` changes nothing."""
    install(LISTED)
    method, textmap = httpx.HTTPTransport.handle_request, propagate.get_global_textmap()

    install()
    install(LISTED)

    assert httpx.HTTPTransport.handle_request is method
    assert propagate.get_global_textmap() is textmap


def test_new_settings_take_effect():
    """New settings take effect without an additional wrapper or propagator."""
    original = httpx.HTTPTransport.handle_request
    install(LISTED)
    install(Settings(destinations=("https://b",)))

    assert httpx.HTTPTransport.handle_request.__wrapped__ is original
    ours = [p for p in propagate.get_global_textmap()._propagators if isinstance(p, TokenRelayPropagator)]
    assert [str(d) for p in ours for d in p.relay.settings.destinations] == ["https://b"]


def test_an_existing_propagator_is_kept():
    """A propagator that the application added to its own composite is kept."""
    own = CompositePropagator([TokenRelayPropagator(LISTED)])
    propagate.set_global_textmap(own)

    install(LISTED)

    assert propagate.get_global_textmap() is own


def test_a_hook_that_fails_leaves_its_library_unchanged(monkeypatch, caplog):
    """A failed hook logs one clear error and leaves its library unchanged, and the other libraries are hooked."""
    broken = types.ModuleType("httpx_of_tomorrow")
    broken.Headers = httpx.Headers
    broken.HTTPTransport = type("HTTPTransport", (), {"handle_request": lambda self, request: "sent"})
    monkeypatch.setitem(sys.modules, "httpx_of_tomorrow", broken)
    hook = module.Hook("httpx_of_tomorrow", httpx_client.patch, None)
    monkeypatch.setattr(module, "HOOKS", (hook, *module.HOOKS))

    with caplog.at_level(logging.ERROR):
        install(LISTED)

    assert broken.HTTPTransport().handle_request(None) == "sent"
    assert "httpx_of_tomorrow" in caplog.text
    assert "AttributeError" in module.hook_states()["httpx_of_tomorrow"]
    assert module.hook_states()["httpx"] == "hooked"


def test_libraries_are_hooked_when_the_application_imports_them():
    """Libraries are hooked when the application imports them, and the package itself never imports them."""
    out, _ = run(
        "import sys, otel_token_relay as r; r.install()\n"
        "from otel_token_relay.installation import hook_states\n"
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


def test_the_entry_point_never_raises(monkeypatch, caplog):
    """The entry point never raises an exception, which would prevent the application from starting."""
    monkeypatch.setattr(Settings, "load", classmethod(lambda cls, **_: 1 / 0))

    propagator = module.propagator_from_env()

    assert propagator.relay.settings.destinations == ()
    assert "no tokens are relayed" in caplog.text


def test_unreadable_settings_are_reported_once_and_the_application_starts():
    """Each unreadable setting is logged once as an error, and the application starts."""
    environ = {
        **os.environ,
        **RELAY,
        **instrumentations("logging"),
        "OTEL_PROPAGATORS": "tracecontext,token_relay",
        "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS": "https://user:hunter2@a,https://b",
    }
    command = [*INSTRUMENT, sys.executable, "-c", "print('started')"]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60)

    assert done.stdout == "started\n"
    assert done.stderr.count("DESTINATIONS") == 1
    assert "hunter2" not in done.stderr


def test_settings_without_the_propagator_cause_a_warning(monkeypatch, caplog):
    """Settings without the propagator, the most common mistake, cause a warning at startup."""
    monkeypatch.setenv("OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS", "https://a")

    module.pre_instrument()
    assert "OTEL_PROPAGATORS" in caplog.text

    caplog.clear()
    install(LISTED)
    module.pre_instrument()
    assert caplog.text == ""


def test_servers_stay_enclosed_while_other_settings_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers keep their boundary while new settings are installed, so no request is served without verification."""
    uvicorn = pytest.importorskip("uvicorn")

    async def app(scope: object, receive: object, send: object) -> None: ...

    config = uvicorn.Config(app)
    config.load()
    install(Settings(destinations=("https://a",)))
    leave = module._leave_global_textmap
    seen: list[bool] = []

    def watch(installation: Any) -> None:
        seen.append(isinstance(config.loaded_app, EnclosedApp) and runtime.installed is not None)
        leave(installation)

    monkeypatch.setattr(module, "_leave_global_textmap", watch)
    install(Settings(destinations=("https://b",)))
    uninstall()

    assert seen == [True, False]
    assert not isinstance(config.loaded_app, EnclosedApp)


def test_the_first_token_hooks_the_threading_instrumentation_once() -> None:
    """Threads that start while a token is bound carry it, and later tokens do not repeat the work."""
    install(LISTED)
    assert context.before_first_token is not None
    with use_token("alice-token-0123456789"), ThreadPoolExecutor(1) as pool:
        assert context.before_first_token is None
        carried = pool.submit(lambda: (token := current_token()) and token.reveal()).result()
    assert carried == "alice-token-0123456789"


@pytest.mark.parametrize(
    ("program", "destinations"),
    [("/app/bin/opentelemetry-instrument", ()), ("/app/bin/gunicorn", ("https://a",)), ("", ("https://a",))],
)
def test_the_launcher_installs_nothing(
    program: str, destinations: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher has not read its flags yet, and the application runs in a new interpreter."""
    monkeypatch.setenv("OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS", "https://a")
    monkeypatch.setattr(sys, "argv", [program])
    listed = module.propagator_from_env().relay.settings.destinations
    assert tuple(map(str, listed)) == destinations
