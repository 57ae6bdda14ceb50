"""The authenticator accepts or rejects each request, and counts and logs the result."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from otel_token_relay import BearerToken, Settings, counters, operator_log
from otel_token_relay.authentication import RequestPath
from otel_token_relay.credentials import Credentials
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.reasons import Reason
from otel_token_relay.runtime import SettingsInForce
from otel_token_relay.verification import AsyncTokenVerifier, KeysUnavailable, TokenRejected, TokenVerifier
from otel_token_relay.verification.asgi import BearerAuthMiddleware
from otel_token_relay.verification.authenticator import (
    BearerAuthenticator,
    authenticator_from,
    choose_authenticator,
)
from otel_token_relay.verification.wsgi import PRINCIPAL_KEY
from otel_token_relay.verification.wsgi import BearerAuthMiddleware as WsgiAuth
from tests.support.issuers import Issuer, bearer
from tests.support.tokens import AUDIENCE, claims, make_token

PATH = RequestPath("/", "/")


def token_of(issuer: Issuer, **changes: Any) -> BearerToken:
    return BearerToken(make_token(claims(issuer.url, **changes)))


def check(authenticator: BearerAuthenticator, credentials: Credentials, path: RequestPath = PATH) -> Any:
    return authenticator.check(credentials, path)


def check_async(authenticator: BearerAuthenticator, credentials: Credentials, path: RequestPath = PATH) -> Any:
    return asyncio.run(authenticator.check_async(credentials, path))


both_ways = pytest.mark.parametrize("check", [check, check_async], ids=["sync", "async"])
both_verifiers = pytest.mark.parametrize("kind", [TokenVerifier, AsyncTokenVerifier])


@both_ways
@both_verifiers
def test_a_valid_token_is_accepted_and_marked_as_verified(issuer: Issuer, kind: Any, check: Any) -> None:
    """Either verifier works with either kind of server, and a rejected token remains unverified."""
    authenticator = BearerAuthenticator(kind([issuer.url], AUDIENCE), required_scopes=("profiles:read",))
    for _ in range(2):  # first after verification, and then from the cache
        accepted = token_of(issuer)
        assert check(authenticator, accepted) is None
        assert accepted.claims is not None
        assert accepted.claims["sub"] == "alice"

    for changes, expected, reason in (
        ({"exp": 1}, authenticator.challenges.invalid_token, "expired"),
        ({"scope": "profiles:write"}, authenticator.challenges.insufficient_scope, "insufficient_scope"),
    ):
        rejected = token_of(issuer, **changes)
        response = check(authenticator, rejected)
        assert response == expected
        assert response.reason == reason
        assert rejected.verification is None


@both_ways
@pytest.mark.parametrize(
    ("reason", "status"),
    [(Reason.ABSENT, 401), (Reason.MALFORMED, 400), (Reason.AMBIGUOUS, 400), (Reason.TOO_LONG, 401)],
)
def test_a_request_without_a_readable_token_is_rejected(
    verifier: TokenVerifier, check: Any, reason: Reason, status: int
) -> None:
    """A request without a readable token is accepted on an excluded path, unless the client chose the mount point."""
    authenticator = BearerAuthenticator(verifier, exclude=("/healthz",))
    moved = RequestPath("/healthz", "/admin/healthz", lambda: ["/admin"])

    assert check(authenticator, reason).status == status
    assert check(authenticator, reason, RequestPath(None, "/healthz")).status == status
    assert check(authenticator, reason, moved).status == status
    assert check(authenticator, reason, RequestPath("/healthz", "/healthz")) is None


class Failing:
    """A verifier that raises an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def verify(self, token: str) -> Any:
        raise self.error


@both_ways
@pytest.mark.parametrize(
    ("error", "retry_after"),
    [
        pytest.param(KeysUnavailable(7.5), "8", id="issuer down"),
        pytest.param(RuntimeError("the token was secret-token"), "1", id="bug"),
        pytest.param(RecursionError(), "1", id="recursion"),
    ],
)
def test_a_verifier_that_fails_accepts_no_request(
    check: Any, error: Exception, retry_after: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If the verifier fails, the token is not reported as invalid, and a bug is logged only by its type."""
    token = BearerToken("secret-token")
    response = check(BearerAuthenticator(Failing(error)), token)

    assert response.status == 503
    assert dict(response.headers)["Retry-After"] == retry_after
    assert token.verification is None
    expected = [] if isinstance(error, KeysUnavailable) else [f"a verifier raised {type(error).__name__}"]
    warning = "request failed with 503 because tokens cannot be verified (unavailable); 0 more since the last warning"
    assert [record.getMessage() for record in caplog.records] == [*expected, warning]
    assert "secret-token" not in caplog.text


def test_report_mode_accepts_every_request_and_warns_once_for_each_reason(
    issuer: Issuer, verifier: TokenVerifier, caplog: pytest.LogCaptureFixture
) -> None:
    """Report mode accepts every request, warns once for each reason, and marks only a valid token as verified."""
    authenticator = BearerAuthenticator(verifier, mode="report")
    valid, expired = token_of(issuer), token_of(issuer, exp=1)
    for _ in range(3):
        for credentials in (valid, expired, Reason.ABSENT):
            assert check(authenticator, credentials) is None

    assert valid.verification is not None
    assert expired.verification is None
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "report mode: request would have been rejected (expired); 0 more since the last warning",
        "report mode: request would have been rejected (absent); 0 more since the last warning",
    ]


def test_the_reason_is_logged_for_operators_only(
    issuer: Issuer, verifier: TokenVerifier, caplog: pytest.LogCaptureFixture
) -> None:
    """The response contains the same word for all invalid tokens, and a DEBUG log line contains the reason."""
    authenticator = BearerAuthenticator(verifier)
    with caplog.at_level(logging.DEBUG, logger="otel_token_relay"):
        response = check(authenticator, token_of(issuer, aud="billing-service"))

    assert json.loads(response.body) == {"error": "invalid_token"}
    assert ("otel_token_relay", logging.DEBUG, "request rejected: wrong_audience") in caplog.record_tuples


class BrokenMeter:
    """A meter that raises an error itself, or whose counters raise one."""

    def __init__(self, *, creates: bool) -> None:
        self.creates = creates
        self.created = 0

    def create_counter(self, *args: object, **options: object) -> Any:
        self.created += 1
        if not self.creates:
            raise RuntimeError("no counters today")
        return self

    def add(self, *args: object, **options: object) -> None:
        raise RuntimeError("no counting today")


@pytest.mark.parametrize("creates", [False, True], ids=["no counter", "a counter that raises"])
def test_a_meter_that_fails_does_not_change_the_result(
    issuer: Issuer, verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch, creates: bool
) -> None:
    """A failing meter does not change the result, and a request does not create an existing counter again."""
    meter = BrokenMeter(creates=creates)
    monkeypatch.setattr(counters.metrics, "get_meter", lambda *args: meter)
    authenticator = BearerAuthenticator(verifier)
    authenticator.prepare()
    assert meter.created == 1

    assert check(authenticator, token_of(issuer)) is None
    assert check(authenticator, Reason.ABSENT).status == 401
    assert meter.created == (1 if creates else 3)


@pytest.mark.parametrize(("mode", "is_rejected"), [("enforce", True), ("report", False)])
def test_the_settings_determine_the_authenticator_of_the_boundary(issuer: Issuer, mode: Any, is_rejected: bool) -> None:
    """The boundary's authenticator has the settings' mode, excluded paths, issuers, and audience."""
    settings = Settings(verify=mode, issuers=(issuer.url,), audience=(AUDIENCE,), verify_exclude=("/healthz",))
    authenticator = authenticator_from(settings)
    accepted = token_of(issuer)

    assert check(authenticator, accepted) is None
    assert accepted.claims is not None
    assert (check(authenticator, token_of(issuer, aud="billing-service")) is not None) is is_rejected
    assert check(authenticator, Reason.ABSENT, RequestPath("/healthz", "/healthz")) is None


def test_settings_without_an_issuer_or_audience_are_an_error(issuer: Issuer) -> None:
    """Settings without an issuer or an audience are an error, because any token could be accepted."""
    for settings in (Settings(audience=("a",)), Settings(issuers=(issuer.url,))):
        with pytest.raises(ConfigurationError):
            authenticator_from(settings)


def test_a_given_authenticator_is_used_as_it_is(verifier: TokenVerifier) -> None:
    """The middleware uses a given authenticator unchanged, and builds one with the options from a given verifier."""
    given, in_force = BearerAuthenticator(verifier), SettingsInForce(Settings())
    built = choose_authenticator(verifier, None, in_force, {"realm": "shared"})

    assert choose_authenticator(None, given, in_force, {}) is given
    assert isinstance(built, BearerAuthenticator)
    assert ("WWW-Authenticate", 'Bearer realm="shared"') in built.challenges.unauthenticated.headers


def test_each_check_is_counted(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each check is counted by outcome and reason, both of which are closed sets."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(counters.metrics, "get_meter", provider.get_meter)
    authenticator = BearerAuthenticator(TokenVerifier([issuer.url], AUDIENCE), exclude=("/healthz",))
    for token in (make_token(claims(issuer.url)), make_token(claims(issuer.url, exp=1)), "opaque"):
        authenticator.check(BearerToken(token), RequestPath("/", "/"))
    authenticator.check(Reason.ABSENT, RequestPath("/healthz", "/healthz"))

    data = reader.get_metrics_data()
    assert data is not None
    points = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
    counted = {tuple(sorted((point.attributes or {}).items())): point.value for point in points}  # type: ignore[union-attr]
    assert counted == {
        (("token_relay.verification", "accepted"),): 1,
        (("token_relay.verification", "excluded"),): 1,
        (("token_relay.reason", "expired"), ("token_relay.verification", "refused")): 1,
        (("token_relay.reason", "malformed"), ("token_relay.verification", "refused")): 1,
    }
    provider.shutdown()


@both_ways
@pytest.mark.parametrize(
    ("scope", "is_accepted"),
    [
        pytest.param("read a", True, id="one"),
        pytest.param("b read a", True, id="both"),
        pytest.param("read", False, id="none of them"),
        pytest.param("a b", False, id="required one missing"),
        pytest.param("read ab", False, id="part of a name"),
        pytest.param("", False, id="no scope"),
    ],
)
def test_one_of_several_scopes_is_enough(
    issuer: Issuer,
    check: Any,
    scope: str,
    is_accepted: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A token needs the required scopes and one of several alternative scopes, and the challenge contains all of
    them.
    """
    verifier = TokenVerifier([issuer.url], AUDIENCE)
    authenticator = BearerAuthenticator(verifier, required_scopes=("read",), any_scopes=("a", "b"))
    operator_log.follow("debug")
    try:
        response = check(authenticator, token_of(issuer, scope=scope))
    finally:
        operator_log.follow("")

    assert (response is None) is is_accepted
    if response is not None:
        assert (response.status, response.reason) == (403, "insufficient_scope")
        assert dict(response.headers)["WWW-Authenticate"].endswith('error="insufficient_scope", scope="read a b"')
        one_of = "" if "a" in scope.split() else ", one of a, b"
        assert f'cause="scope: expected read{one_of}; the token has ' in capsys.readouterr().err


@both_ways
@pytest.mark.parametrize("mode", ["decisions", "debug"])
def test_the_decision_log_names_the_claim_and_has_values_only_with_debug(
    issuer: Issuer, check: Any, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log has one line per request with the name of the wrong claim, and contains the claim's value only in debug
    mode.
    """
    authenticator = BearerAuthenticator(TokenVerifier([issuer.url], AUDIENCE), required_scopes=("write",))
    tokens = [token_of(issuer, aud="billing"), token_of(issuer, scope="read"), token_of(issuer, scope="write")]
    operator_log.follow(mode)
    try:
        for credentials in (*tokens, Reason.AMBIGUOUS):
            check(authenticator, credentials)
    finally:
        operator_log.follow("")

    written = capsys.readouterr().err
    lines = [line.partition(" otel-token-relay ")[2] for line in written.splitlines()]
    audience, scope = (
        (
            f' cause="aud: expected {AUDIENCE}; the token has billing"',
            ' cause="scope: expected write; the token has read"',
        )
        if mode == "debug"
        else ("", "")
    )
    assert [line for line in lines if line.startswith("verification=")] == [
        f"verification=refused reason=wrong_audience claim=aud{audience}",
        f"verification=refused reason=insufficient_scope claim=scope{scope}",
        "verification=accepted",
        "verification=refused reason=ambiguous"
        ' cause="The request has more than one line for the source header, or the header\'s value contains a comma."',
    ]
    assert not any(token.reveal() in written for token in tokens)


def test_a_verifier_of_the_application_has_no_cause(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For a rejection by an application's own verifier, only the reason is known."""

    class Own:
        def verify(self, token: str) -> Any:
            raise TokenRejected("revoked")

    monkeypatch.setattr(operator_log, "decisions", operator_log.DecisionLog())
    BearerAuthenticator(Own()).check(BearerToken("some-token"), PATH)

    assert capsys.readouterr().err.rstrip().endswith(" verification=refused reason=revoked")


def test_foreign_verifier_does_for_asgi_and_wsgi(issuer: Issuer) -> None:
    """Any object with a synchronous or asynchronous `verify` method works, and an error in it rejects the request."""
    own = TokenVerifier([issuer.url], AUDIENCE)

    class Foreign:
        def verify(self, token: str) -> Any:
            if token == "broken":
                raise RuntimeError("the token was " + token)
            return own.verify(token)

    class Awaited:
        async def verify(self, token: str) -> Any:
            return own.verify(token)

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        await JSONResponse({"user": scope["user"].identity})(scope, receive, send)

    def wsgi(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [json.dumps({"user": environ[PRINCIPAL_KEY].identity}).encode()]

    clients = [
        TestClient(BearerAuthMiddleware(asgi, Foreign())),
        TestClient(BearerAuthMiddleware(asgi, Awaited())),
        httpx.Client(transport=httpx.WSGITransport(app=WsgiAuth(wsgi, Foreign())), base_url="http://test"),
    ]
    for client in clients:
        assert client.get("/", headers=bearer(issuer)).json() == {"user": "alice"}
        assert client.get("/", headers=bearer(issuer, exp=1)).status_code == 401
    for client in (clients[0], clients[2]):
        assert client.get("/", headers={"Authorization": "Bearer broken"}).status_code == 503


@pytest.mark.parametrize(
    ("claimed", "status"),
    [
        pytest.param({"acr": "gold", "auth_time": 1}, 401, id="too long ago"),
        pytest.param({"acr": "bronze", "auth_time": 2e9}, 401, id="not strong enough"),
        pytest.param({"auth_time": 2e9}, 401, id="no acr"),
        pytest.param({"acr": "gold"}, 401, id="no auth_time"),
        pytest.param({"acr": "gold", "auth_time": "2000000000"}, 401, id="auth_time a text"),
        pytest.param({"acr": "gold", "auth_time": 2e9}, 200, id="good enough"),
    ],
)
def test_step_up_is_asked_for(issuer: Issuer, verifier: TokenVerifier, claimed: dict[str, Any], status: int) -> None:
    """A token with insufficient authentication gets a step-up challenge (row 18: RFC 9470, section 3)."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await JSONResponse({})(scope, receive, send)

    client = TestClient(BearerAuthMiddleware(app, verifier, acr_values=("gold", "silver"), max_age=300))
    reply = client.get("/", headers=bearer(issuer, **claimed))

    assert reply.status_code == status
    if status == 401:
        assert reply.headers["www-authenticate"] == (
            'Bearer realm="api", error="insufficient_user_authentication", acr_values="gold silver", max_age="300"'
        )


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"realm": ""}, id="empty realm"),
        pytest.param({"realm": 'a"b'}, id="quote in the realm"),
        pytest.param({"realm": "a\\b"}, id="backslash in the realm"),
        pytest.param({"realm": "a\r\nX: y"}, id="line break in the realm"),
        pytest.param({"realm": "é"}, id="realm beyond ASCII"),
        pytest.param({"required_scopes": ("a b",)}, id="space in a scope"),
        pytest.param({"required_scopes": "profiles:read"}, id="scopes as one text"),
        pytest.param({"resource_metadata": "https://a.example/\n"}, id="line break in the metadata"),
        pytest.param({"exclude": "/healthz"}, id="paths as one text"),
        pytest.param({"exclude": ("healthz",)}, id="path without a slash"),
        pytest.param({"acr_values": ('a"b',)}, id="quote in acr"),
    ],
)
@pytest.mark.parametrize("kind", [BearerAuthMiddleware, WsgiAuth], ids=["asgi", "wsgi"])
def test_option_that_would_break_the_challenge_is_refused(
    verifier: TokenVerifier, kind: Any, options: dict[str, Any]
) -> None:
    """An option that would break the challenge raises an error at construction."""
    with pytest.raises(ConfigurationError):
        kind(None, verifier, **options)


@pytest.mark.parametrize("kind", [BearerAuthMiddleware, WsgiAuth], ids=["asgi", "wsgi"])
@pytest.mark.parametrize(
    ("with_verifier", "with_authenticator", "options"),
    [
        pytest.param(False, False, {}, id="neither"),
        pytest.param(True, True, {}, id="both"),
        pytest.param(False, True, {"required_scopes": ("admin",)}, id="authenticator and options"),
    ],
)
def test_middleware_takes_either_a_verifier_or_an_authenticator(
    verifier: TokenVerifier, kind: Any, with_verifier: bool, with_authenticator: bool, options: dict[str, Any]
) -> None:
    """The middleware accepts a verifier or an authenticator, and ambiguous arguments raise an error at construction."""
    authenticator = BearerAuthenticator(verifier) if with_authenticator else None
    with pytest.raises(ConfigurationError):
        kind(None, verifier if with_verifier else None, authenticator=authenticator, **options)
