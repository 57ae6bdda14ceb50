"""The relay, settings and authenticator that are in force in this process.

An object created with ``settings=None`` looks them up at first use, not at creation: middleware is often created
while a module is being imported, and that can happen before `otel_token_relay.install` is called.
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
    """How a request is served: the settings that apply, and the authenticator, if any, that verifies the request."""

    settings: Settings
    authenticator: Authenticator | None


class Runtime:
    """The objects that all hooks share.

    Attributes:
        relay: Decides whether outgoing requests get the token.
        terms: How incoming requests are served.
        clients_are_hooked: Whether outgoing requests reach the relay without ``inject``.
        refuses_all: Whether every connection gets a 503 response, because no hook can verify its requests.
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
        """Create the counters. Call this without holding a lock, once OpenTelemetry can provide a meter.

        Otherwise, the first request creates the counters, even though the meter provider may be waiting for
        that very request.
        """
        self.relay.prepare()
        if self.terms.authenticator is not None:
            self.terms.authenticator.prepare()
            refusals.prepare()


installed: Runtime | None = None
"""The runtime of the current installation. `otel_token_relay.install` sets it, and `uninstall` clears it."""


class SettingsInForce:
    """The settings that apply to one object. Safe to share between threads.

    Args:
        given: ``None`` to use the installed settings or, if there are none, those that the configuration file and
            the environment variables specify at first use.
    """

    __slots__ = ("_given", "_of_environment")

    def __init__(self, given: Settings | None) -> None:
        self._given = given
        self._of_environment: Settings | None = None

    def __call__(self) -> Settings:
        """Return the settings that apply now."""
        if self._given is not None:
            return self._given
        if (current := installed) is not None:
            return current.settings
        if self._of_environment is None:
            self._of_environment = Settings.load()
        return self._of_environment


class TermsInForce:
    """How one middleware serves its requests. Safe to share between threads.

    Args:
        settings: See `SettingsInForce`.
        authenticator: Verifies each request; ``None`` to use the one that the settings require.
    """

    __slots__ = ("_authenticator", "_own", "_settings")

    def __init__(self, settings: Settings | None, authenticator: Authenticator | None = None) -> None:
        self._settings = SettingsInForce(settings)
        self._authenticator = authenticator
        # Settings passed by the caller are checked now, so that mistakes are reported when the application starts.
        self._own = None if settings is None else self._build(settings)

    def __call__(self) -> Terms:
        """Return the terms that apply now."""
        if self._own is not None:
            return self._own
        if (current := installed) is not None:
            terms = current.terms
            return terms if self._authenticator is None else Terms(terms.settings, self._authenticator)
        return self._build(self._settings())

    def _build(self, settings: Settings) -> Terms:
        return Terms(settings, build_authenticator(settings) if self._authenticator is None else self._authenticator)
