"""The settings in force: those that are installed, else those of the environment.

Everything that takes ``settings=None`` asks here, at its first use and not when it is made: a middleware
is made while a module is being imported, which may be before `otel_token_relay.install` is called.
"""

from __future__ import annotations

from typing import NamedTuple

from otel_token_relay.authentication import Authenticator
from otel_token_relay.configured_authenticator import build_authenticator
from otel_token_relay.relay import Relay
from otel_token_relay.settings import Settings

installed_relay: Relay | None = None
"""The relay of the current installation. `otel_token_relay.install` sets and clears it."""


class Terms(NamedTuple):
    """What a request is served under: the settings, and what verifies it, if anything does."""

    settings: Settings
    authenticator: Authenticator | None


class SettingsInForce:
    """The settings of one object. Safe to share between threads.

    Args:
        given: ``None`` for the installed settings, else those of the environment as it is at first use.
    """

    __slots__ = ("_given", "_of_environment")

    def __init__(self, given: Settings | None) -> None:
        self._given = given
        self._of_environment: Settings | None = None

    def __call__(self) -> Settings:
        """Return the settings that apply now."""
        if self._given is not None:
            return self._given
        if installed_relay is not None:
            return installed_relay.settings
        if self._of_environment is None:
            self._of_environment = Settings.from_env()
        return self._of_environment


class TermsInForce:
    """The settings of one middleware and what verifies its requests. Safe to share between threads.

    Args:
        settings: As for `SettingsInForce`.
        gate: What verifies each request; ``None`` for what the settings ask for.
    """

    __slots__ = ("_authenticator", "_own", "_settings")

    def __init__(self, settings: Settings | None, authenticator: Authenticator | None = None) -> None:
        self._settings = SettingsInForce(settings)
        self._authenticator = authenticator
        # Settings that are given are checked here, so that a mistake shows when the application starts.
        self._own = None if settings is None else self._build(settings)

    def __call__(self) -> Terms:
        """Return the terms that apply now."""
        if self._own is not None:
            return self._own
        if installed_relay is not None:
            return Terms(
                installed_relay.settings,
                installed_relay.authenticator if self._authenticator is None else self._authenticator,
            )
        return self._build(self._settings())

    def _build(self, settings: Settings) -> Terms:
        return Terms(settings, build_authenticator(settings) if self._authenticator is None else self._authenticator)
