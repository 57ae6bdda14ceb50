"""Which settings and which authenticator apply: those given, those installed, or those of the environment."""

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
    """An authenticator of an application, which counts how often it is prepared."""

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
    """By default no request is verified, and clients are not hooked yet."""
    made = Runtime(INSTALLED)

    assert made.settings is made.relay.settings is made.terms.settings is INSTALLED
    assert made.terms.authenticator is None
    assert made.clients_are_hooked is False


def test_preparing_a_runtime_creates_the_counter_and_prepares_the_authenticator() -> None:
    """With no authenticator, only the counter of decisions is created."""
    made, authenticator = Runtime(INSTALLED), AcceptAll()
    assert made.relay._recorder._counter.created is None

    made.prepare()
    assert made.relay._recorder._counter.created is not None
    made.terms = Terms(INSTALLED, authenticator)
    made.prepare()

    assert authenticator.prepared == 1


def test_the_runtime_is_installed_and_removed() -> None:
    """Other modules read the variable, so it must not refer to a runtime that is not in force."""
    assert runtime.installed is None
    install(INSTALLED)
    assert runtime.installed is not None
    assert runtime.installed.settings is INSTALLED
    uninstall()
    assert runtime.installed is None


def test_given_settings_apply_regardless_of_the_installation() -> None:
    """They are those of the object, not of the process."""
    in_force = SettingsInForce(GIVEN)

    assert in_force() is GIVEN
    install(INSTALLED)
    assert in_force() is GIVEN


def test_settings_of_the_environment_are_read_at_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later changes of the environment have no effect, and installed settings take precedence while installed."""
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
    """A middleware is often created before `install` is called."""
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
    """It verifies each request, under the settings that apply."""
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
    """The application starts and rejects every request, also if an installation would accept them."""
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
    """A middleware without settings and without an installation fails closed."""
    monkeypatch.setenv(VERIFY, "enforce")

    assert isinstance(TermsInForce(None)().authenticator, DenyAll)


def test_preparing_a_runtime_that_verifies_prepares_the_records_of_refused_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A runtime that verifies nothing refuses nothing."""
    calls: list[bool] = []
    monkeypatch.setattr(refusals, "prepare", lambda: calls.append(True))
    made = Runtime(Settings())
    made.prepare()
    assert calls == []

    made.terms = Terms(Settings(), AcceptAll())
    made.prepare()
    assert calls == [True]
