"""Verification that only settings configure is shared by the boundaries and fails closed if it cannot start."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator

import pytest

from otel_token_relay import Settings
from otel_token_relay.authentication import RequestPath
from otel_token_relay.configured_authenticator import DenyAll, build_authenticator
from otel_token_relay.reasons import Reason
from otel_token_relay.settings import Verify
from otel_token_relay.verification.authenticator import BearerAuthenticator
from tests.support.tokens import AUDIENCE

PREFIX = "OTEL_PYTHON_TOKEN_RELAY_"


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Forget the authenticators, because equal settings share them even between tests."""
    build_authenticator.cache_clear()
    yield
    build_authenticator.cache_clear()


def usable(mode: Verify, **options: object) -> Settings:
    """Return settings with an issuer that is not contacted before the first token."""
    return Settings(verify=mode, issuers=("https://idp.example",), audience=(AUDIENCE,), **options)  # type: ignore[arg-type]


def unusable(mode: Verify, **variables: str) -> Settings:
    """Return settings without an issuer, as if they were read from the environment."""
    values = {PREFIX + "VERIFY": mode} | {PREFIX + name: value for name, value in variables.items()}
    return Settings.from_env(values)


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({}, id="no issuer, no audience"),
        pytest.param({"ISSUERS": "https://idp.example"}, id="no audience"),
        pytest.param({"AUDIENCE": AUDIENCE}, id="no issuer"),
        pytest.param({"ISSUERS": "http://idp.example", "AUDIENCE": AUDIENCE}, id="issuer over plain http"),
        pytest.param({"ISSUERS": "https://i.example", "AUDIENCE": "a", "ALGORITHMS": "HS256"}, id="symmetric"),
        pytest.param({"ISSUERS": "https://i.example", "AUDIENCE": "a", "ALGORITHMS": "RS256,x"}, id="unknown"),
    ],
)
def test_settings_that_cannot_verify_deny_every_request(environ: dict[str, str]) -> None:
    """Settings that cannot verify tokens are reported as a problem, and every request is rejected."""
    variables = {PREFIX + name: value for name, value in (environ | {"VERIFY": "enforce"}).items()}
    settings = Settings.from_env(variables)
    authenticator = build_authenticator(settings)

    assert any("verification cannot start, because" in problem for problem in settings.problems)
    assert authenticator is not None
    error_response = authenticator.check(None, RequestPath("/", "/"))  # type: ignore[arg-type]  # it ignores the credentials
    assert error_response is not None
    assert error_response.status == 503


def test_requests_are_not_verified_unless_the_settings_ask_for_it() -> None:
    """An issuer alone does not enable verification."""
    assert build_authenticator(usable("off")) is None


@pytest.mark.parametrize("mode", ["enforce", "report"])
def test_equal_settings_share_one_authenticator(mode: Verify) -> None:
    """Equal settings share one authenticator, so all boundaries of a process share its keys."""
    authenticator = build_authenticator(usable(mode))

    assert isinstance(authenticator, BearerAuthenticator)
    assert build_authenticator(usable(mode)) is authenticator
    assert build_authenticator(usable(mode, verify_exclude=("/healthz",))) is not authenticator


def test_an_authenticator_that_cannot_start_denies_every_request(caplog: pytest.LogCaptureFixture) -> None:
    """If an authenticator cannot start, only excluded paths are served, and the reason is logged once."""
    settings = unusable("enforce", VERIFY_EXCLUDE="/healthz")
    with caplog.at_level(logging.ERROR, "otel_token_relay"):
        authenticator = build_authenticator(settings)
        assert build_authenticator(settings) is authenticator

    assert isinstance(authenticator, DenyAll)
    authenticator.prepare()
    for path, is_denied in (("/", True), ("/healthz/", True), ("/healthz", False)):
        expected = authenticator.check(Reason.ABSENT, RequestPath(path, path))
        assert (expected is not None) is is_denied
        assert asyncio.run(authenticator.check_async(Reason.ABSENT, RequestPath(path, path))) is expected
        if expected is not None:
            assert (expected.status, expected.error) == (503, "temporarily_unavailable")
            assert expected.reason == "cannot_start"
            assert ("Retry-After", "60") in expected.headers
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING]
    assert "verification cannot start" in caplog.messages[0]
    assert "tokens cannot be verified (cannot_start)" in caplog.messages[1]


def test_a_path_that_the_client_has_moved_is_denied() -> None:
    """An excluded path below a mount point from a header is denied, because the client can choose the header."""
    authenticator = DenyAll(unusable("enforce", VERIFY_EXCLUDE="/live"))

    assert authenticator.check(Reason.ABSENT, RequestPath("/live", "/admin/live", lambda: ["/admin"])) is not None
    assert authenticator.check(Reason.ABSENT, RequestPath("/live", "/admin/live", lambda: ["other"])) is None


def test_report_mode_serves_every_request_if_it_cannot_start(caplog: pytest.LogCaptureFixture) -> None:
    """In report mode, every request is served if the authenticator cannot start, and the reason is logged."""
    assert build_authenticator(unusable("report")) is None
    assert "verification cannot start" in caplog.text


@pytest.mark.parametrize(("mode", "expected"), [("enforce", DenyAll), ("report", type(None))])
def test_a_missing_extra_is_an_error_in_the_log(
    mode: Verify, expected: type, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If an extra is missing, the application starts and logs an error, and `enforce` rejects every request."""
    monkeypatch.setitem(sys.modules, "otel_token_relay.verification.authenticator", None)

    assert type(build_authenticator(usable(mode))) is expected
    assert "verification cannot start" in caplog.text
    assert "otel_token_relay.verification.authenticator" in caplog.text
