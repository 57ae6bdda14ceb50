"""Only verified, unexpired, and unrevoked tokens are relayed, without code in the application."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from otel_token_relay import BearerToken, Settings, carry, current_token, install, uninstall, use_token
from otel_token_relay.errors import TokenUnavailable
from otel_token_relay.testing import ThirdParty, third_party
from otel_token_relay.verification import TokenVerifier
from otel_token_relay.verification.asgi import BearerAuthMiddleware
from tests.support.issuers import Issuer, wait_until
from tests.support.tokens import AUDIENCE, claims, make_token


@pytest.fixture
def downstream() -> Iterator[ThirdParty]:
    with third_party() as running:
        yield running


@contextmanager
def installed(*destinations: str, **options: Any) -> Iterator[None]:
    install(Settings(destinations=destinations, **options))
    try:
        yield
    finally:
        uninstall()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def relaying_app(downstream: ThirdParty, before: Callable[[], None] = lambda: None) -> Starlette:
    """Return a service that calls a second service for each request and returns the result of the call."""

    def call(request: Request) -> JSONResponse:
        before()
        try:
            httpx.get(downstream.url)
        except TokenUnavailable as error:
            return JSONResponse({"withheld": error.reason.value})
        return JSONResponse({"sent": downstream.requests[-1].authorization is not None})

    return Starlette(routes=[Route("/", call), Route("/healthz", call)])


def test_only_a_verified_token_is_relayed(issuer: Issuer, downstream: ThirdParty) -> None:
    """With REQUIRE_VERIFIED, an unverified token is not relayed."""
    token = make_token(claims(issuer.url))
    verifier = TokenVerifier([issuer.url], AUDIENCE)
    with installed(f"{downstream.url};required", require_verified=True):
        bare = relaying_app(downstream)
        protected = relaying_app(downstream)
        protected.add_middleware(BearerAuthMiddleware, verifier=verifier, exclude=("/healthz",))

        assert TestClient(bare).get("/", headers=bearer(token)).json() == {"withheld": "not_verified"}
        assert TestClient(protected).get("/", headers=bearer(token)).json() == {"sent": True}
        assert TestClient(protected).get("/healthz", headers=bearer(token)).json() == {"withheld": "not_verified"}
        with use_token(token), pytest.raises(TokenUnavailable):
            httpx.get(downstream.url)


def test_verdict_of_one_request_does_not_serve_the_next(issuer: Issuer, downstream: ThirdParty) -> None:
    """The same token is unverified again in a later request that is not verified."""
    token = make_token(claims(issuer.url))
    verifier = TokenVerifier([issuer.url], AUDIENCE)
    with installed(f"{downstream.url};required", require_verified=True):
        app = relaying_app(downstream)
        app.add_middleware(BearerAuthMiddleware, verifier=verifier, exclude=("/healthz",))
        client = TestClient(app)

        assert client.get("/", headers=bearer(token)).json() == {"sent": True}
        assert client.get("/healthz", headers=bearer(token)).json() == {"withheld": "not_verified"}


def test_revocation_counts_at_each_hop(issuer: Issuer, downstream: ThirdParty) -> None:
    """A token that is revoked while its request runs is no longer relayed."""
    denied: set[object] = set()
    verifier = TokenVerifier([issuer.url], AUDIENCE, is_revoked=lambda found: found["jti"] in denied)
    with installed(f"{downstream.url};required"):
        app = relaying_app(downstream, before=lambda: denied.add("j-1"))
        app.add_middleware(BearerAuthMiddleware, verifier=verifier)

        assert TestClient(app).get("/", headers=bearer(make_token(claims(issuer.url)))).json() == {
            "withheld": "not_verified"
        }
    assert downstream.requests == []


def test_failing_revocation_hook_withholds_at_the_hop(issuer: Issuer, downstream: ThirdParty) -> None:
    """If the revocation hook fails, the token is not relayed, and the application's call continues."""
    broken = False

    def is_revoked(found: Any) -> bool:
        if broken:
            raise RuntimeError("the list cannot be read")
        return False

    def break_it() -> None:
        nonlocal broken
        broken = True

    verifier = TokenVerifier([issuer.url], AUDIENCE, is_revoked=is_revoked)
    with installed(downstream.url):
        app = relaying_app(downstream, before=break_it)
        app.add_middleware(BearerAuthMiddleware, verifier=verifier)

        assert TestClient(app).get("/", headers=bearer(make_token(claims(issuer.url)))).json() == {"sent": False}


def test_introspection_verdict_counts_at_each_hop(issuer: Issuer, downstream: ThirdParty) -> None:
    """Once the server reports an opaque token as inactive, no hop of a running request relays it."""
    state = {"active": True}
    issuer.introspect = lambda token: state | {"sub": "alice", "aud": AUDIENCE}
    ahead = 0.0
    verifier = TokenVerifier(
        audience=AUDIENCE,
        introspection_endpoint=f"{issuer.url}/introspect",
        monotonic=lambda: time.monotonic() + ahead,
    )

    def revoke() -> None:
        nonlocal ahead
        state["active"] = False
        ahead = 40.0
        introspection = verifier._introspection
        assert introspection is not None
        token = current_token()
        assert token is not None
        assert token.verification is not None
        verification = token.verification
        wait_until(lambda: not verification.is_still_valid())

    with installed(f"{downstream.url};required"):
        app = relaying_app(downstream, before=revoke)
        app.add_middleware(BearerAuthMiddleware, verifier=verifier)

        assert TestClient(app).get("/", headers=bearer("opaque")).json() == {"withheld": "not_verified"}


@pytest.mark.parametrize(
    ("lifetime", "min_ttl", "expected"),
    [
        pytest.param(100, 60.0, {"sent": True}, id="enough left"),
        pytest.param(50, 60.0, {"withheld": "expired"}, id="too little left"),
        pytest.param(-5, 0.0, {"withheld": "expired"}, id="expired and within the leeway here"),
    ],
)
def test_lifetime_of_an_opaque_token_counts_at_the_hop(
    issuer: Issuer, downstream: ThirdParty, lifetime: int, min_ttl: float, expected: object
) -> None:
    """The verified `exp` applies at the hop, even if the token itself contains none."""
    issuer.introspect = lambda token: {
        "active": True,
        "sub": "alice",
        "aud": AUDIENCE,
        "exp": int(time.time()) + lifetime,
    }
    verifier = TokenVerifier(audience=AUDIENCE, introspection_endpoint=f"{issuer.url}/introspect")
    with installed(f"{downstream.url};required", min_ttl=min_ttl):
        app = relaying_app(downstream)
        app.add_middleware(BearerAuthMiddleware, verifier=verifier)

        assert TestClient(app).get("/", headers=bearer("opaque")).json() == expected


def test_claims_are_reachable_and_carried_on(issuer: Issuer) -> None:
    """``current_token().claims`` contains the verified claims, also in carried work."""
    verifier = TokenVerifier([issuer.url], AUDIENCE)
    carried: list[Any] = []

    def remember() -> None:
        token = current_token()
        carried.append(token and token.claims and token.claims["sub"])

    def show(request: Request) -> JSONResponse:
        carried.append(carry(remember, seconds=5))
        token = current_token()
        assert token is not None
        return JSONResponse(dict(token.claims or {}))

    app = Starlette(routes=[Route("/", show)])
    app.add_middleware(BearerAuthMiddleware, verifier=verifier)
    expected = claims(issuer.url, roles=["a"])

    assert TestClient(app).get("/", headers=bearer(make_token(expected))).json() == expected
    carried[0]()
    assert carried[1] == "alice"


def test_unverified_token_has_no_claims() -> None:
    """The claims of an unverified JWT are not considered verified."""
    token = BearerToken(make_token({"sub": "mallory"}, kid=None))

    assert token.claims is None
    assert token.verification is None


def verifying_without_code(issuer: Issuer, mode: str = "enforce", **options: Any) -> Any:
    return installed(verify=mode, issuers=(issuer.url,), audience=(AUDIENCE,), **options)


def hello_app() -> Starlette:
    def hello(request: Request) -> JSONResponse:
        token = current_token()
        return JSONResponse({"claims": None if token is None or token.claims is None else token.claims["sub"]})

    return Starlette(routes=[Route("/", hello), Route("/healthz", hello)])


def test_boundary_of_ones_own_does_not_let_enforcement_be_skipped(issuer: Issuer) -> None:
    """An outer boundary without an authenticator does not prevent the inner boundary's check."""
    from otel_token_relay.servers.asgi import TokenRelayMiddleware

    with verifying_without_code(issuer):
        client = TestClient(TokenRelayMiddleware(hello_app(), Settings()))

        assert client.get("/").status_code == 401
        assert client.get("/", headers=bearer(make_token(claims(issuer.url)))).json() == {"claims": "alice"}


def test_extra_that_is_missing_lets_nobody_in() -> None:
    """If PyJWT is missing, an error mentions the extra and every request is rejected; without VERIFY, PyJWT is not
    needed.
    """
    program = """
import logging, sys
logging.basicConfig(stream=sys.stdout)
sys.modules["jwt"] = sys.modules["jwt.algorithms"] = None
import httpx, flask
from otel_token_relay import Settings, install
for verify in ("off", "report", "enforce"):
    install(Settings(verify=verify, issuers=("https://idp.example",), audience=("a",)))
    app = flask.Flask("app")
    app.get("/")(lambda: "")
    print(verify, app.test_client().get("/").status_code)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert "off 200" in ran.stdout
    assert "report 200" in ran.stdout
    assert "enforce 503" in ran.stdout
    assert "otel-token-relay[verify]" in ran.stdout


def test_nothing_of_pyjwt_is_imported_unless_used() -> None:
    """A service that only relays tokens does not import PyJWT."""
    program = """
import sys, otel_token_relay, otel_token_relay.verification
otel_token_relay.install(otel_token_relay.Settings(span_claims=("sub:enduser.id",)))
print([name for name in sys.modules if name.split(".")[0] in ("jwt", "cryptography", "fastapi")])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert ran.stdout.strip() == "[]"
