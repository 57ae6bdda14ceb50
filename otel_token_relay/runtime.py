"""What is in force in this process: the relay, the settings and the authenticator.

Code that takes ``settings=None`` looks them up at first use, not when it is created: a middleware is often
created while a module is being imported, which can be before `otel_token_relay.install` is called.
"""

from __future__ import annotations

from typing import NamedTuple

from otel_token_relay.authentication import Authenticator
from otel_token_relay.configured_authenticator import build_authenticator
from otel_token_relay.relay import Relay
from otel_token_relay.settings import Settings


class Terms(NamedTuple):
    """How a request is served: under which settings, and verified by which authenticator, if by any."""

    settings: Settings
    authenticator: Authenticator | None


class Runtime:
    """What hooks work with.

    Attributes:
        relay: Decides about outgoing requests.
        terms: How incoming requests are served.
        clients_are_hooked: Whether outgoing requests reach the relay without ``inject``.
    """

    __slots__ = ("clients_are_hooked", "relay", "terms")

    def __init__(self, settings: Settings) -> None:
        self.relay: Relay = Relay(settings)
        self.terms: Terms = Terms(settings, build_authenticator(settings))
        self.clients_are_hooked: bool = False

    @property
    def settings(self) -> Settings:
        """The settings of both directions."""
        return self.relay.settings

    def prepare(self) -> None:
        """Create the counters. Call it without holding a lock, once OpenTelemetry can provide a meter.

        Otherwise the first request creates them, and the meter provider may be waiting for that request.
        """
        self.relay.prepare()
        if self.terms.authenticator is not None:
            self.terms.authenticator.prepare()


installed: Runtime | None = None
"""The runtime of the current installation. `otel_token_relay.install` sets it, `uninstall` clears it."""


class SettingsInForce:
    """The settings of one object. Safe to share between threads.

    Args:
        given: ``None`` for the installed settings, or else those of the environment at first use.
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
            self._of_environment = Settings.from_env()
        return self._of_environment


class TermsInForce:
    """How one middleware serves its requests. Safe to share between threads.

    Args:
        settings: See `SettingsInForce`.
        authenticator: Verifies each request; ``None`` for the one that the settings ask for.
    """

    __slots__ = ("_authenticator", "_own", "_settings")

    def __init__(self, settings: Settings | None, authenticator: Authenticator | None = None) -> None:
        self._settings = SettingsInForce(settings)
        self._authenticator = authenticator
        # Given settings are checked now, so that a mistake is reported when the application starts.
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
