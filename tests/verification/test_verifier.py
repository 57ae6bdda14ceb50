"""The verifiers apply their rules in order, introspect tokens, check revocation, and return the verified token."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from otel_token_relay.errors import ConfigurationError
from otel_token_relay.issuers import TrustedIssuer
from otel_token_relay.verification import AsyncTokenVerifier, KeysUnavailable, TokenRejected, TokenVerifier
from tests.support.introspection import active, asked, both_verifier, opaque_verifier
from tests.support.issuers import Issuer, issuing, wait_until
from tests.support.tokens import AUDIENCE, claims, make_token, public_jwk

OPAQUE = "2YotnFZFEjr1zCsicMWpAA"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing(public_jwk("RS256", "k1")) as running:
        running.introspect = lambda token: active()
        yield running


@pytest.fixture
def verifier(issuer: Issuer) -> TokenVerifier:
    return TokenVerifier([issuer.url], AUDIENCE)


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        pytest.param({"issuers": []}, "issuers", id="no issuer"),
        pytest.param({"issuers": ["http://idp.example"]}, "issuers", id="plain http"),
        pytest.param({"issuers": ["https://idp.example?x=1"]}, "issuers", id="query"),
        pytest.param({"issuers": ["idp.example"]}, "issuers", id="no scheme"),
        pytest.param({"issuers": [1]}, "issuers", id="no text"),
        pytest.param({"audience": None}, "audience", id="no audience"),
        pytest.param({"audience": [""]}, "audience", id="empty audience"),
        pytest.param({"algorithms": []}, "algorithms", id="no algorithm"),
        pytest.param({"algorithms": ["HS256"]}, "algorithms", id="symmetric"),
        pytest.param({"algorithms": ["RS256", "none"]}, "algorithms", id="none"),
        pytest.param({"algorithms": "RS256"}, "algorithms", id="a text"),
        pytest.param({"profile": "strict"}, "profile", id="unknown profile"),
        pytest.param({"leeway": -1}, "leeway", id="negative leeway"),
        pytest.param({"leeway": float("nan")}, "leeway", id="leeway not a number"),
        pytest.param({"cooldown": -1}, "cooldown", id="negative cooldown"),
        pytest.param({"timeout": 0}, "timeout", id="no time"),
        pytest.param({"jwks_uri": "http://idp.example/jwks"}, "jwks_uri", id="keys over plain http"),
        pytest.param(
            {"jwks_uri": "https://a.example/jwks", "issuers": ["https://a.example", "https://b.example"]},
            "jwks_uri",
            id="one key set for two issuers",
        ),
        pytest.param({"introspection_endpoint": "http://a.example"}, "introspection_endpoint", id="plain endpoint"),
        pytest.param(
            {"introspection_endpoint": "https://a.example", "client_id": "a"}, "client_secret", id="half a credential"
        ),
    ],
)
@pytest.mark.parametrize("kind", [TokenVerifier, AsyncTokenVerifier], ids=["sync", "async"])
def test_bad_option_is_said_at_construction(kind: type, options: dict[str, Any], setting: str) -> None:
    """An insecure option raises an error at construction."""
    with pytest.raises(ConfigurationError) as refused:
        kind(**({"issuers": ["https://idp.example"], "audience": AUDIENCE} | options))

    assert refused.value.setting == setting


def test_claims_of_one_request_are_its_own(issuer: Issuer) -> None:
    """Each request gets a copy of the shared verification's claims, so changes do not affect later requests."""
    verifier = TokenVerifier([issuer.url], AUDIENCE)
    token = make_token(claims(issuer.url, roles=["reader"]))

    first = verifier.verify(token)
    first.claims["roles"].append("admin")
    with pytest.raises(TypeError):
        first.claims["sub"] = "admin"  # type: ignore[index]

    assert verifier.verify(token).claims["roles"] == ["reader"]


def test_rejection_holds_no_token(verifier: TokenVerifier, issuer: Issuer) -> None:
    """The error, its cause, and its arguments contain only the name of the rule."""
    token = make_token(claims(issuer.url, aud="elsewhere"))
    with pytest.raises(TokenRejected) as refused:
        verifier.verify(token)

    assert refused.value.reason == "wrong_audience"
    assert token not in repr(refused.value.args) + str(refused.value) + repr(refused.value.__cause__)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param({"active": False}, "inactive", id="inactive"),
        pytest.param({"active": False, "sub": "alice", "aud": AUDIENCE}, "inactive", id="inactive with claims"),
        pytest.param(active(aud="billing-service"), "wrong_audience", id="for another service"),
        pytest.param(active(aud=...), "missing_claim", id="without aud"),
        pytest.param(active(aud=None), "missing_claim", id="aud null"),
        pytest.param(active(exp=1), "expired", id="expired"),
        pytest.param(active(exp="9999999999"), "invalid_claim", id="exp a text"),
        pytest.param(active(nbf=9_999_999_999), "not_yet_valid", id="not yet"),
        pytest.param(active(sub=1), "invalid_claim", id="sub a number"),
        pytest.param(active(sub="a\nb"), "invalid_claim", id="sub of two lines"),
        pytest.param(active(scope=1), "invalid_claim", id="scope a number"),
        pytest.param(active(token_type="refresh_token"), "wrong_type", id="a refresh token"),
        pytest.param(active(token_type="DPoP"), "wrong_type", id="DPoP"),
        pytest.param(active(token_type=1), "wrong_type", id="type a number"),
        pytest.param(active(cnf={"jkt": "x"}), "sender_constrained", id="bound to a key"),
    ],
)
def test_answer_is_held_against_the_rules(issuer: Issuer, answer: Any, reason: str) -> None:
    """A token that the server reports as active must still satisfy this service's rules."""
    issuer.introspect = lambda token: answer

    with pytest.raises(TokenRejected) as refused:
        opaque_verifier(issuer).verify(OPAQUE)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(active(), id="all there"),
        pytest.param(active(exp=time.time() + 600.5), id="exp with a fraction"),
        pytest.param(active(exp=..., token_type=..., sub=..., client_id=..., scope=...), id="the least"),
        pytest.param(active(exp=None, nbf=None, sub=None), id="null for unknown"),
        pytest.param(active(token_type="bearer"), id="type in lower case"),
        pytest.param(active(token_type="access_token"), id="type by another name"),
        pytest.param(active(aud=["billing-service", AUDIENCE]), id="several audiences"),
    ],
)
def test_missing_optional_members_are_accepted(issuer: Issuer, answer: Any) -> None:
    """All members of an introspection response except ``active`` are optional (RFC 7662, section 2.2)."""
    issuer.introspect = lambda token: answer

    assert opaque_verifier(issuer).verify(OPAQUE).is_still_valid()


def test_jwt_is_verified_and_introspected(issuer: Issuer) -> None:
    """A revoked token is rejected despite a valid signature, and an invalid signature is rejected despite an active
    response.
    """
    verifier = both_verifier(issuer)
    token = make_token(claims(issuer.url))
    assert verifier.verify(token).claims["jti"] == "j-1"

    issuer.introspect = lambda token: {"active": False}
    with pytest.raises(TokenRejected, match="inactive"):
        verifier.verify(make_token(claims(issuer.url, jti="j-2")))
    issuer.introspect = lambda token: active()
    for bad in (make_token(claims(issuer.url), name="second"), make_token(claims(issuer.url, aud="elsewhere"))):
        with pytest.raises(TokenRejected):
            verifier.verify(bad)
    assert verifier.verify(OPAQUE).subject == "alice"


def test_answer_of_another_issuer_is_refused(issuer: Issuer) -> None:
    """If issuers are configured, an introspection response from a different issuer is rejected."""
    issuer.introspect = lambda token: active(iss="https://elsewhere.example")

    with pytest.raises(TokenRejected, match="unknown_issuer"):
        both_verifier(issuer).verify(OPAQUE)


@pytest.mark.parametrize("token", ["", "a b", "a,b", "é", "a\n", "\ud800", "x" * 20_000], ids=ascii)
def test_what_is_no_token_is_not_sent_to_the_server(issuer: Issuer, token: str) -> None:
    """Only a b64token of a permitted length is looked up at the server."""
    with pytest.raises(TokenRejected):
        opaque_verifier(issuer).verify(token)
    assert asked(issuer) == 0


def test_revocation_hook_is_called_at_each_use(issuer: Issuer) -> None:
    """The revocation hook runs at each use, even for cached tokens, unless a different rule fails first."""
    denied: set[object] = set()
    seen: list[object] = []

    def is_revoked(found: Any) -> bool:
        seen.append(found["jti"])
        return found["jti"] in denied

    verifier = TokenVerifier([issuer.url], AUDIENCE, is_revoked=is_revoked)
    token = make_token(claims(issuer.url))
    verified = verifier.verify(token)
    verifier.verify(token)
    assert seen == ["j-1", "j-1"]
    denied.add("j-1")

    with pytest.raises(TokenRejected, match="revoked"):
        verifier.verify(token)
    assert not verified.is_still_valid()
    with pytest.raises(TokenRejected, match="expired"):
        verifier.verify(make_token(claims(issuer.url, exp=1, jti="j-1")))
    assert len(seen) == 4


def test_failing_revocation_hook_accepts_no_token(issuer: Issuer) -> None:
    """A failing revocation hook is a server error, and the response does not contain what the hook raised."""

    def is_revoked(found: Any) -> bool:
        raise RuntimeError(found["sub"])

    with pytest.raises(KeysUnavailable) as outage:
        TokenVerifier([issuer.url], AUDIENCE, is_revoked=is_revoked).verify(make_token(claims(issuer.url)))
    assert outage.value.__cause__ is None


@pytest.mark.parametrize("backend", [None, "asyncio", "trio"], ids=["threads", "asyncio", "trio"])
def test_a_verified_token_shows_what_the_issuer_signed(issuer: Issuer, backend: str | None) -> None:
    """Both verifiers return the issuer's claims, and verify a cached token without the issuer."""
    payload = claims(issuer.url, azp="other", roles=["reader"])
    token = make_token(payload)

    async def verify() -> list[Any]:
        verifier = AsyncTokenVerifier([issuer.url], AUDIENCE)
        return [await verifier.verify(token) for _ in range(2)]

    if backend is None:
        threaded = TokenVerifier([issuer.url], AUDIENCE)
        found = [threaded.verify(token) for _ in range(2)]
    else:
        found = anyio.run(verify, backend=backend)

    assert issuer.fetches == 1
    for verified in found:
        assert dict(verified.claims) == payload
        assert (verified.subject, verified.client_id, verified.issuer) == ("alice", "web", issuer.url)
        assert verified.scopes == {"profiles:read", "profiles:write"}
        assert verified.expires_at == payload["exp"]
        assert verified.is_still_valid()
        assert repr(verified) == f"VerifiedToken({len(payload)} claims, 2 scopes)"


@pytest.mark.parametrize(
    ("changes", "client_id"),
    [
        ({"client_id": "a", "azp": "b"}, "a"),
        ({"client_id": ..., "azp": "b", "cid": "c"}, "b"),
        ({"client_id": ..., "cid": "c", "appid": "d"}, "c"),
        ({"client_id": ..., "appid": "d"}, "d"),
        ({"client_id": ...}, None),
    ],
)
def test_the_client_is_found_under_the_names_of_common_issuers(
    issuer: Issuer, changes: dict[str, Any], client_id: str | None
) -> None:
    """The client is found under common issuers' claim names, and the RFC's name takes precedence."""
    verifier = TokenVerifier([issuer.url], AUDIENCE, profile="generic")

    assert verifier.verify(make_token(claims(issuer.url, **changes))).client_id == client_id


@pytest.mark.parametrize(
    ("changes", "subject", "identity"),
    [
        pytest.param({"sub": "alice"}, "alice", "alice", id="user"),
        pytest.param({"sub": ...}, None, "client:web", id="machine"),
        pytest.param({"sub": None, "client_id": ..., "azp": "web"}, None, "client:web", id="machine with null"),
        pytest.param({"sub": "client:web"}, "client:web", "subject:client:web", id="a user with the machine's name"),
        pytest.param({"sub": "subject:x"}, "subject:x", "subject:subject:x", id="a user with that prefix"),
        pytest.param({"sub": ..., "preferred_username": "bob"}, None, "", id="user without a subject"),
        pytest.param({"sub": ..., "sid": "session"}, None, "", id="session without a subject"),
    ],
)
def test_no_token_has_the_identity_of_another_one(
    issuer: Issuer, changes: dict[str, Any], subject: str | None, identity: str
) -> None:
    """A machine's identity differs from every user's, and a user without a subject has none."""
    verified = TokenVerifier([issuer.url], AUDIENCE, profile="generic").verify(
        make_token(claims(issuer.url, **changes), typ="JWT")
    )

    assert verified.subject == subject
    assert verified.identity == identity
    assert verified.client_id == "web"


@pytest.mark.parametrize("kind", [TokenVerifier, AsyncTokenVerifier], ids=["sync", "async"])
def test_a_verifier_lists_the_issuers_that_it_trusts(kind: type[TokenVerifier | AsyncTokenVerifier]) -> None:
    """A verifier lists the issuers that it trusts, and none if it only introspects tokens."""
    own = TrustedIssuer(issuer="acme.com", jwks_uri="https://idp.example/jwks")

    assert kind(["https://a.example", own], AUDIENCE).issuers == ("https://a.example", "acme.com")
    assert kind([], AUDIENCE, introspection_endpoint="https://a.example/introspect").issuers == ()


@pytest.mark.parametrize(
    ("changes", "members", "reason"),
    [
        pytest.param({"iss": "https://evil.example"}, {"alg": "none"}, "algorithm_not_allowed", id="algorithm first"),
        pytest.param({"iss": ..., "exp": 1}, {"kid": "forged"}, "missing_claim", id="then the issuer"),
        pytest.param({"iss": 1}, {"kid": "forged"}, "invalid_claim", id="an issuer that is not text"),
        pytest.param({"iss": "https://evil.example"}, {"kid": "forged"}, "unknown_issuer", id="another issuer"),
        pytest.param({"exp": 1}, {"kid": "forged", "typ": "JWT"}, "unknown_key", id="then the key"),
        pytest.param({"exp": 1}, {"alg": "PS256", "typ": "JWT"}, "bad_signature", id="then the signature"),
        pytest.param({"exp": 1}, {"typ": "JWT"}, "wrong_type", id="then the type"),
        pytest.param({"exp": 1, "aud": "billing-service"}, {}, "expired", id="then the claims"),
    ],
)
def test_the_rules_are_applied_in_a_fixed_order(
    issuer: Issuer, changes: dict[str, Any], members: dict[str, Any], reason: str
) -> None:
    """The order of the rules prevents an attacker without a key from learning which claims this service expects."""
    issuer.keys = [public_jwk("RS256", "k1", alg=None)]
    header = {"alg": "RS256", "typ": "at+jwt", "kid": "k1"} | members
    with pytest.raises(TokenRejected) as rejected:
        TokenVerifier([issuer.url], AUDIENCE).verify(make_token(claims(issuer.url, **changes), header=header))

    assert rejected.value.reason == reason


def test_a_token_is_not_valid_while_its_state_is_unknown(issuer: Issuer) -> None:
    """If the hook fails or the introspection result has expired, a token is not valid, and the hop does not wait or
    raise an error.
    """
    ahead = 0.0
    hook_fails = False

    def is_revoked(found: object) -> bool:
        if hook_fails:
            raise RuntimeError("the list cannot be read")
        return False

    verifier = opaque_verifier(issuer, is_revoked=is_revoked, monotonic=lambda: time.monotonic() + ahead)
    verified = verifier.verify(OPAQUE)
    assert verified.is_still_valid()

    hook_fails = True
    assert not verified.is_still_valid()
    hook_fails = False
    issuer.behave = issuer.fail
    ahead = 61.0
    assert not verified.is_still_valid()
    # The lookup for the next hop.
    wait_until(lambda: asked(issuer) == 2 and not verifier._introspection._pending)  # type: ignore[union-attr]


def test_a_cached_verification_ends_with_the_token_and_with_its_key(issuer: Issuer) -> None:
    """The cache never accepts a token that would be rejected without it."""
    ahead = 0.0
    verifier = TokenVerifier([issuer.url], AUDIENCE, now=lambda: time.time() + ahead, cache_seconds=1e6)
    short, long = (make_token(claims(issuer.url, exp=int(time.time()) + seconds)) for seconds in (600, 100_000))
    assert verifier.verify(short).subject == verifier.verify(long).subject == "alice"

    ahead = 700.0
    with pytest.raises(TokenRejected, match="expired"):
        verifier.verify(short)
    assert verifier.verify(long).subject == "alice"

    issuer.keys = [public_jwk("RS256", "k2", name="second")]
    ahead = 0.0
    assert verifier.verify(make_token(claims(issuer.url), kid="k2", name="second")).subject == "alice"
    with pytest.raises(TokenRejected, match="unknown_key"):
        verifier.verify(long)


def test_a_token_is_not_invalid_because_the_issuer_is_down(issuer: Issuer) -> None:
    """Without the issuer's keys or response, a token is not accepted and not reported as invalid."""
    issuer.behave = issuer.fail
    for verifier, token in (
        (TokenVerifier([issuer.url], AUDIENCE), make_token(claims(issuer.url))),
        (opaque_verifier(issuer), OPAQUE),
    ):
        with pytest.raises(KeysUnavailable) as outage:
            verifier.verify(token)
        assert outage.value.retry_after > 0
        for text in (None, "", "a b", "x" * 20_000):
            with pytest.raises(TokenRejected):
                verifier.verify(text)  # type: ignore[arg-type]
