"""The relay, settings, and authenticator that this process currently uses.

An object that is created with ``settings=None`` looks up the current settings when it is first used, not when it is
created. Applications often create middleware while a module is being imported, before they call
`otel_token_relay.install`.
"""

from __future__ import annotations

from typing import NamedTuple

from otel_token_relay import refusals
from otel_token_relay.authentication import Authenticator
from otel_token_relay.configured_authenticator import build_authenticator
from otel_token_relay.configured_exchange import build_token_source
from otel_token_relay.relay import Relay
from otel_token_relay.settings import Settings


class Terms(NamedTuple):
    """The settings and the authenticator for incoming requests.

    The authenticator is ``None`` if verification is off.
    """

    settings: Settings
    authenticator: Authenticator | None


class Runtime:
    """The objects that all hooks share.

    Attributes:
        relay: The relay, which decides whether outgoing requests carry the token.
        terms: The settings and the authenticator for incoming requests.
        clients_are_hooked: Whether HTTP clients call the relay automatically, without a call to ``inject``.
        refuses_all: Whether every connection receives a 503 response because a server could not be hooked.
    """

    __slots__ = ("clients_are_hooked", "refuses_all", "relay", "terms")

    def __init__(self, settings: Settings) -> None:
        self.relay: Relay = Relay(settings, build_token_source(settings))
        self.terms: Terms = Terms(settings, build_authenticator(settings))
        self.clients_are_hooked: bool = False
        self.refuses_all: bool = False

    @property
    def settings(self) -> Settings:
        """The settings for incoming and outgoing requests."""
        return self.relay.settings

    def prepare(self) -> None:
        """Create the counters.

        Call this method only after OpenTelemetry can provide a meter, and do not hold a lock during the call.

        If this method is not called, the first request creates the counters. If the meter provider is waiting for that
        request, a deadlock can occur.
        """
        self.relay.prepare()
        if self.terms.authenticator is not None:
            self.terms.authenticator.prepare()
            refusals.prepare()


installed: Runtime | None = None
"""The current runtime; ``None`` if nothing is installed. Only `otel_token_relay.installation` sets this variable."""


class SettingsInForce:
    """The settings that apply to one object. This class is thread-safe.

    Args:
        given: The settings. If ``None``, the object uses the installed settings. If no settings are installed, the
            object reads the configuration file and the environment variables on first use.
    """

    __slots__ = ("_given", "_of_environment")

    def __init__(self, given: Settings | None) -> None:
        self._given = given
        self._of_environment: Settings | None = None

    def __call__(self) -> Settings:
        """Return the settings that currently apply."""
        if self._given is not None:
            return self._given
        if (current := installed) is not None:
            return current.settings
        if self._of_environment is None:
            self._of_environment = Settings.load()
        return self._of_environment


class TermsInForce:
    """The terms that apply to one middleware instance. This class is thread-safe.

    Args:
        settings: See `SettingsInForce`.
        authenticator: The authenticator that verifies each request. If ``None``, the settings determine the
            authenticator.
    """

    __slots__ = ("_authenticator", "_own", "_settings")

    def __init__(self, settings: Settings | None, authenticator: Authenticator | None = None) -> None:
        self._settings = SettingsInForce(settings)
        self._authenticator = authenticator
        # Build the authenticator now so that invalid settings are reported when the application starts.
        self._own = None if settings is None else self._build(settings)

    def __call__(self) -> Terms:
        """Return the terms that currently apply."""
        if self._own is not None:
            return self._own
        if (current := installed) is not None:
            terms = current.terms
            return terms if self._authenticator is None else Terms(terms.settings, self._authenticator)
        return self._build(self._settings())

    def _build(self, settings: Settings) -> Terms:
        return Terms(settings, build_authenticator(settings) if self._authenticator is None else self._authenticator)
