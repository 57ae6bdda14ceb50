"""Install the relay for the duration of a test, and then restore the previous state."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.propagate import get_global_textmap, set_global_textmap

from otel_token_relay import context as binding
from otel_token_relay import installation, runtime
from otel_token_relay.settings import Settings
from otel_token_relay.testkit.mocks import visible_to_mocks

_OUR_KEYS = (
    binding.TOKEN_KEY,
    binding.REFUSED_KEY,
    binding.UNUSED_KEY,
    binding.SERVICE_KEY,
    binding.NOT_FOUND_KEY,
    binding.DESTINATION_KEY,
)


class InstalledRelay:
    """The relay that is installed for one test. To install different settings during the test, call this object."""

    @property
    def settings(self) -> Settings:
        """The effective settings, including any values from the configuration file and the environment.

        Raises:
            RuntimeError: The test has uninstalled the relay.
        """
        if runtime.installed is None:
            raise RuntimeError("the relay is not installed")
        return runtime.installed.settings

    def __call__(self, settings: Settings | None = None, /, **fields: Any) -> Settings:
        """Replace the effective settings, and return the new settings.

        Args:
            settings: The new settings, or ``None`` to build them from *fields*.
            fields: `Settings` fields.

        Raises:
            ConfigurationError: A value is invalid.
            TypeError: Both *settings* and *fields* are passed, neither is passed, or a field does not exist.
        """
        chosen = _build(settings, fields)
        if chosen is None:
            raise TypeError("expected settings or fields of Settings, such as destinations=[...]")
        installation.install(chosen)
        return self.settings

    def __repr__(self) -> str:
        installed = runtime.installed
        entries = () if installed is None else tuple(map(str, installed.settings.entries))
        return f"<InstalledRelay to {', '.join(entries) or 'no destination'}>"


def _build(settings: Settings | None, fields: dict[str, Any]) -> Settings | None:
    if settings is not None and fields:
        raise TypeError("expected either settings or fields of Settings, not both")
    return Settings(**fields) if fields else settings


@contextmanager
def installed_relay(settings: Settings | None = None, /, **fields: Any) -> Generator[InstalledRelay, None, None]:
    """Install the relay for the duration of a block, as if in a new process that has not handled any requests.

    When the block ends, the previous installation, global propagator, and context are restored. Within the block, mocks
    for the Requests library receive the relay's header. The installation applies to the entire process, so blocks can
    be nested but must not overlap across threads.

    Args:
        settings: The settings, or ``None`` to build them from *fields*.
        fields: `Settings` fields. Without *settings* and *fields*, the relay uses the settings that the application
            installed in code. If the application has not installed any settings, the relay uses the configuration file
            and the environment.

    Raises:
        ConfigurationError: A value is invalid.
        TypeError: Both *settings* and *fields* are passed, or a field does not exist.
    """
    chosen = _build(settings, fields)
    previous = installation._installed
    textmap = get_global_textmap()
    flags = binding.has_bound, binding.has_served
    attached = otel_context.attach(_unbound())
    try:
        installation.uninstall()
        binding.has_bound = binding.has_served = False
        installation.install(previous.code if chosen is None and previous is not None else chosen)
        with visible_to_mocks():
            yield InstalledRelay()
    finally:
        installation.uninstall()
        set_global_textmap(textmap)
        if previous is not None:
            if previous.runtime.clients_are_hooked:
                installation.install(previous.code)
            else:
                installation.start_before_servers()
        binding.has_bound, binding.has_served = flags
        otel_context.detach(attached)


def _unbound() -> Context:
    """Return a copy of the current context without the values that this package added."""
    return Context({key: value for key, value in otel_context.get_current().items() if key not in _OUR_KEYS})
