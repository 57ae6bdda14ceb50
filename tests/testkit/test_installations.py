"""The relay is installed for a block, and everything is afterward as it was before."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry import context as otel_context
from opentelemetry.propagate import get_global_textmap

from otel_token_relay import Settings, context, current_token, install, runtime, uninstall, use_token
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.installation import hook_states, start_before_servers
from otel_token_relay.testkit.installations import installed_relay

A, B = "https://a.example", "https://b.example"


def installed() -> list[str] | None:
    """Return the destinations of the installed relay."""
    return None if runtime.installed is None else [str(entry) for entry in runtime.installed.settings.entries]


def test_the_relay_is_installed_until_the_block_ends() -> None:
    """Also if the block raises."""
    textmap = get_global_textmap()
    with installed_relay(destinations=[A]) as relay:
        assert installed() == [A]
        assert [str(entry) for entry in relay.settings.entries] == [A]
        assert get_global_textmap() is not textmap
    assert installed() is None
    with pytest.raises(ArithmeticError), installed_relay(Settings(destinations=(B,))):
        raise ArithmeticError
    assert installed() is None
    assert hook_states() == {}
    assert get_global_textmap() is textmap


def test_the_settings_of_the_environment_apply_without_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields take precedence over the environment."""
    monkeypatch.setenv("OTEL_PROPAGATORS", "token_relay")
    monkeypatch.setenv("OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS", A)
    with installed_relay() as relay:
        assert [str(entry) for entry in relay.settings.entries] == [A]
    with installed_relay(destinations=[B]) as relay:
        assert [str(entry) for entry in relay.settings.entries] == [B]


def test_the_settings_that_the_application_installed_are_kept_and_restored() -> None:
    """Blocks can be nested."""
    install(Settings(destinations=(A,)))
    with installed_relay():
        assert installed() == [A]
        with installed_relay(destinations=[B]):
            assert installed() == [B]
        assert installed() == [A]
        uninstall()
    assert installed() == [A]


def test_an_installation_before_the_servers_is_restored_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clients are not hooked yet."""
    monkeypatch.setenv("OTEL_PROPAGATORS", "token_relay")
    monkeypatch.setenv("OTEL_PYTHON_TOKEN_RELAY_VERIFY", "report")
    start_before_servers()
    before = runtime.installed
    assert before is not None
    assert not before.clients_are_hooked
    with installed_relay(destinations=[A]):
        assert runtime.installed is not None
        assert runtime.installed.clients_are_hooked

    assert runtime.installed is not None
    assert not runtime.installed.clients_are_hooked


def test_other_settings_can_be_installed_during_the_block() -> None:
    """The call returns the settings in effect."""
    with installed_relay(destinations=[A]) as relay:
        assert [str(entry) for entry in relay(destinations=[B]).entries] == installed() == [B]
        chosen = Settings(destinations=(A,))
        assert relay(chosen).destinations == chosen.destinations
        assert installed() == [A]
        assert repr(relay) == f"<InstalledRelay to {A}>"
        uninstall()
        assert repr(relay) == "<InstalledRelay to no destination>"
        with pytest.raises(RuntimeError, match="the relay is not installed"):
            _ = relay.settings


def test_wrong_arguments_are_errors() -> None:
    """The relay stays as it was."""
    with installed_relay(destinations=[A]) as relay:
        with pytest.raises(TypeError, match="expected settings or fields of Settings, such as destinations"):
            relay()
        with pytest.raises(TypeError, match="expected either settings or fields of Settings, not both"):
            relay(Settings(), destinations=[B])
        with pytest.raises(TypeError):
            relay(destination=[B])
        with pytest.raises(ConfigurationError):
            relay(verify="sometimes")
        assert installed() == [A]
    for arguments, fields in (((Settings(),), {"destinations": [B]}), ((), {"destination": [B]})):
        with pytest.raises(TypeError), installed_relay(*arguments, **fields):  # type: ignore[arg-type]
            pass
    assert installed() is None


def test_the_block_is_a_process_that_has_served_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of the test's own context is not bound, and other values of the context are kept."""
    monkeypatch.setattr(context, "has_served", True)
    attached = otel_context.attach(otel_context.set_value("own", "value"))
    try:
        with use_token("the-tests-own-token"):
            assert context.has_bound
            with installed_relay(destinations=[A]):
                assert current_token() is None
                assert (context.has_bound, context.has_served) == (False, False)
                assert otel_context.get_value("own") == "value"
            assert current_token() is not None
            assert (context.has_bound, context.has_served) == (True, True)
    finally:
        otel_context.detach(attached)


def test_the_block_works_on_an_event_loop() -> None:
    """The context of the task is restored."""

    async def block() -> None:
        with installed_relay(destinations=[A]):
            await asyncio.sleep(0)
            assert installed() == [A]

    asyncio.run(block())
    assert installed() is None
