"""The token source that the settings require."""

from __future__ import annotations

import importlib

import pytest

from otel_token_relay import Settings
from otel_token_relay.configured_exchange import build_token_source

EXCHANGING = {
    "destinations": ("https://billing;audience=billing",),
    "issuers": ("https://idp.example",),
    "audience": ("user-service",),
    "verify": "enforce",
    "client_id": "user-service",
    "client_secret": "user-service-secret",
}


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    build_token_source.cache_clear()


def test_no_source_is_built_unless_an_entry_needs_one() -> None:
    """A process that only relays does not import the extra's packages."""
    assert build_token_source(Settings(destinations=("https://profile-service",))) is None


def test_equal_settings_share_a_source() -> None:
    """The source has a cache, which all relays of a process use."""
    first = build_token_source(Settings(**EXCHANGING))

    assert first is not None
    assert build_token_source(Settings(**EXCHANGING)) is first
    assert build_token_source(Settings(**{**EXCHANGING, "client_id": "other"})) is not first


def test_settings_that_cannot_exchange_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    """The message names the setting, and not the secret. The process continues."""
    settings = Settings(destinations=("https://billing;audience=billing",))

    assert build_token_source(settings) is None
    [record] = caplog.records
    assert record.getMessage().startswith("token relay: no token can be exchanged: ")
    assert "OTEL_PYTHON_TOKEN_RELAY_TOKEN_ENDPOINT" in record.getMessage()


def test_a_missing_package_is_reported(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The extra's packages are optional."""

    def fail(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name="jwt")

    monkeypatch.setattr(importlib, "import_module", fail)

    assert build_token_source(Settings(**EXCHANGING)) is None
    [record] = caplog.records
    assert "no token can be exchanged" in record.getMessage()
