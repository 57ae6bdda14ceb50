"""Explicit settings and authenticators take precedence over installed ones, which take precedence over the
environment.
"""

from __future__ import annotations

import logging

import pytest

from otel_token_relay import Settings, install, refusals, runtime, uninstall
from otel_token_relay.authentication import ErrorResponse, RequestPath
from otel_token_relay.configured_authenticator import DenyAll, build_authenticator
from otel_token_relay.credentials import Credentials
from otel_token_relay.runtime import Runtime, SettingsInForce, Terms, TermsInForce

VARIABLE = "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS"
VERIFY = "OTEL_PYTHON_TOKEN_RELAY_VERIFY"
GIVEN, INSTALLED = Settings(destinations=("https://given",)), Settings(destinations=("https://installed",))


class AcceptAll:
    """An application's authenticator that counts how often it is prepared."""

    def __init__(self) -> None:
        self.prepared = 0

    def check(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        return None

    async def check_async(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        return None

    def prepare(self) -> None:
        self.prepared += 1


def destinations(settings: Settings) -> list[str]:
    return [str(entry) for entry in settings.destinations]


def test_a_runtime_serves_both_directions_under_the_same_settings() -> None:
    """A runtime relays and verifies with the same settings, and by default verifies no request and hooks no client."""
    made = Runtime(INSTALLED)

    assert made.settings is made.relay.settings is made.terms.settings is INSTALLED
    assert made.terms.authenticator is None
    assert made.clients_are_hooked is False


def test_preparing_a_runtime_creates_the_counter_and_prepares_the_authenticator() -> None:
    """Preparing a runtime creates the decision counter and prepares the authenticator if there is one."""
    made, authenticator = Runtime(INSTALLED), AcceptAll()
    assert made.relay._recorder._counter.created is None

    made.prepare()
    assert made.relay._recorder._counter.created is not None
    made.terms = Terms(INSTALLED, authenticator)
    made.prepare()

    assert authenticator.prepared == 1


def test_the_runtime_is_installed_and_removed() -> None:
    """The module variable refers to a runtime only while the runtime is installed."""
    assert runtime.installed is None
    install(INSTALLED)
    assert runtime.installed is not None
    assert runtime.installed.settings is INSTALLED
    uninstall()
    assert runtime.installed is None


def test_given_settings_apply_regardless_of_the_installation() -> None:
    """Settings that are given to an object apply regardless of the installation."""
    in_force = SettingsInForce(GIVEN)

    assert in_force() is GIVEN
    install(INSTALLED)
    assert in_force() is GIVEN


def test_settings_of_the_environment_are_read_at_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings from the environment are read once at first use, and installed settings override them."""
    in_force = SettingsInForce(None)
    monkeypatch.setenv(VARIABLE, "https://first")
    first = in_force()
    monkeypatch.setenv(VARIABLE, "https://second")

    assert destinations(first) == ["https://first"]
    assert in_force() is first
    install(INSTALLED)
    assert in_force() is INSTALLED
    uninstall()
    assert in_force() is first


def test_terms_follow_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Terms follow the installation, because a middleware is often created before `install` is called."""
    monkeypatch.setenv(VARIABLE, "https://environment")
    terms = TermsInForce(None)

    assert destinations(terms().settings) == ["https://environment"]
    install(INSTALLED)
    assert runtime.installed is not None
    assert terms() is runtime.installed.terms
    uninstall()
    assert destinations(terms().settings) == ["https://environment"]


@pytest.mark.parametrize("settings", [None, GIVEN], ids=["installed settings", "given settings"])
def test_a_given_authenticator_replaces_the_configured_one(
    settings: Settings | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A given authenticator replaces the configured one and uses the current settings."""
    monkeypatch.setenv(VERIFY, "enforce")
    authenticator = AcceptAll()
    terms = TermsInForce(settings, authenticator)

    assert terms().authenticator is authenticator
    install(INSTALLED)
    assert runtime.installed is not None
    assert terms() == Terms(runtime.installed.settings if settings is None else GIVEN, authenticator)


def test_given_settings_that_cannot_verify_are_reported_when_the_middleware_is_created(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Given settings that cannot verify tokens are reported when the middleware is created, and every request is
    rejected.
    """
    build_authenticator.cache_clear()
    settings = Settings.from_env({VERIFY: "enforce"})
    with caplog.at_level(logging.ERROR, "otel_token_relay"):
        terms = TermsInForce(settings)

    assert len(caplog.records) == 1
    assert "verification cannot start" in caplog.text
    install(INSTALLED)
    assert terms() is terms()
    assert isinstance(terms().authenticator, DenyAll)


def test_the_environment_that_cannot_verify_denies_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A middleware rejects every request if its only settings are environment variables that cannot verify tokens."""
    monkeypatch.setenv(VERIFY, "enforce")

    assert isinstance(TermsInForce(None)().authenticator, DenyAll)


def test_preparing_a_runtime_that_verifies_prepares_the_records_of_refused_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Preparing a runtime that verifies tokens also prepares the records of rejected requests."""
    calls: list[bool] = []
    monkeypatch.setattr(refusals, "prepare", lambda: calls.append(True))
    made = Runtime(Settings())
    made.prepare()
    assert calls == []

    made.terms = Terms(Settings(), AcceptAll())
    made.prepare()
    assert calls == [True]
