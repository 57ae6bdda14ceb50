"""The relay, settings, and authenticator that are in effect in this process.

An object created with ``settings=None`` looks up the ones in effect on first use, not when the object is created.
Middleware is often created while a module is being imported, which can happen before `otel_token_relay.install` is
called.
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
    """How a request is served: the settings that apply and, if requests are verified, the authenticator."""

    settings: Settings
    authenticator: Authenticator | None


class Runtime:
    """The objects that all hooks share.

    Attributes:
        relay: Decides whether outgoing requests get the token.
        terms: How incoming requests are served.
        clients_are_hooked: Whether outgoing requests reach the relay without a call to ``inject``.
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
        """Create the counters. Call this method without holding a lock, once OpenTelemetry can provide a meter.

        Otherwise, the first request creates the counters, even though the meter provider may be waiting for that same
        request.
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
        given: The settings; ``None`` to use the installed settings or, if there are none, the settings that the
            configuration file and the environment variables specify at the time of first use.
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
    """How a middleware instance serves its requests. Safe to share between threads.

    Args:
        settings: See `SettingsInForce`.
        authenticator: The authenticator that verifies each request; ``None`` to use the one that the settings require.
    """

    __slots__ = ("_authenticator", "_own", "_settings")

    def __init__(self, settings: Settings | None, authenticator: Authenticator | None = None) -> None:
        self._settings = SettingsInForce(settings)
        self._authenticator = authenticator
        # Settings passed by the application are checked now, so that mistakes are reported when the application starts.
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
