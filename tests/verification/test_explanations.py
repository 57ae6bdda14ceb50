"""A rejection's explanation contains the failed check, the expected and actual values, and advice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.algorithms import DEFAULT_ALGORITHMS
from otel_token_relay.errors import RejectReason, TokenRejected
from otel_token_relay.verification import TokenVerifier
from otel_token_relay.verification.causes import Cause, Expectations, ExplainedReason, describe_time, join_names
from otel_token_relay.verification.claims import Rules
from otel_token_relay.verification.explanations import explain
from tests.support.introspection import active
from tests.support.issuers import Issuer, issuing
from tests.support.tokens import AUDIENCE, b64, claims, hmac_token, make_token, public_jwk, rsa_key, unsigned
from tests.verification.test_concealment import runs_of

NOW = 1_795_761_796  # 2026-11-27T06:43:16Z
ISSUER = "https://idp.example"
TENANT = "72f988bf-86f1-41af-91ab-2d7cd011db47"
EXPECTED = Expectations(rules=Rules(audience=("orders",)), issuers=(ISSUER,))
REASONS: tuple[ExplainedReason, ...] = (
    *get_args(RejectReason),
    "insufficient_scope",
    "insufficient_user_authentication",
)
Make = Callable[[str], str]


def token_with(**changes: Any) -> Make:
    """Return a function that creates an issuer's token with changed claims."""
    return lambda issuer: make_token(claims(issuer, **changes))


def header_with(alg: str = "RS256", **members: Any) -> Make:
    return lambda issuer: make_token(claims(issuer), alg, **members)


CASES = [
    pytest.param(
        lambda issuer: "abc.def",
        "malformed",
        "form: the token has 2 parts; a signed token has three parts, separated by dots",
        "introspection",
        id="malformed",
    ),
    pytest.param(
        lambda issuer: "a" * 16_385,
        "too_long",
        "length: expected at most 16384 characters; the token has 16385",
        "OTEL_PYTHON_TOKEN_RELAY_MAX_LENGTH",
        id="too long",
    ),
    pytest.param(
        lambda issuer: hmac_token({"alg": "HS256"}, claims(issuer), b"x" * 32),
        "algorithm_not_allowed",
        "alg: expected one of RS256, PS256, ES256, EdDSA; the token has HS256",
        "shared secret",
        id="symmetric",
    ),
    pytest.param(
        lambda issuer: unsigned({"alg": "none"}, claims(issuer), "AAAA"),
        "algorithm_not_allowed",
        "alg: expected one of RS256, PS256, ES256, EdDSA; the token has none",
        "not signed",
        id="none",
    ),
    pytest.param(
        header_with("ES384"),
        "algorithm_not_allowed",
        "alg: expected one of RS256, PS256, ES256, EdDSA; the token has ES384",
        "OTEL_PYTHON_TOKEN_RELAY_ALGORITHMS",
        id="another algorithm",
    ),
    pytest.param(
        lambda issuer: unsigned({"alg": 1}, claims(issuer), "AAAA"),
        "algorithm_not_allowed",
        "alg: expected one of RS256, PS256, ES256, EdDSA; the token has 1",
        "must specify the signature algorithm",
        id="alg a number",
    ),
    pytest.param(
        header_with("PS256"),
        "algorithm_not_allowed",
        "alg: expected RS256; the token has PS256 (the issuer's key supports only the expected algorithm)",
        "its own algorithm",
        id="not the key's algorithm",
    ),
    pytest.param(
        header_with(typ="JWT"),
        "wrong_type",
        "typ: expected at+jwt; the token has JWT",
        "OTEL_PYTHON_TOKEN_RELAY_PROFILE=generic",
        id="typ JWT",
    ),
    pytest.param(
        header_with(typ=...),
        "wrong_type",
        "typ: expected at+jwt; the token has none",
        "OTEL_PYTHON_TOKEN_RELAY_PROFILE=generic",
        id="no typ",
    ),
    pytest.param(
        lambda issuer: make_token(claims(issuer, nonce="n"), typ="JWT"),
        "wrong_type",
        "typ: expected at+jwt; the token has JWT",
        "This is an ID token, because it has the nonce claim. The caller must send its access token.",
        id="ID token",
    ),
    pytest.param(
        header_with(typ="logout+jwt"),
        "wrong_type",
        "typ: expected at+jwt; the token has logout+jwt",
        "Configure the issuer to send access tokens of type at+jwt",
        id="logout token",
    ),
    pytest.param(
        lambda issuer: make_token(claims(issuer + "/")),
        "unknown_issuer",
        "iss: expected {issuer}; the token has {issuer}/ (an extra trailing slash)",
        "OTEL_PYTHON_TOKEN_RELAY_ISSUERS",
        id="trailing slash",
    ),
    pytest.param(
        lambda issuer: make_token(claims("https://evil.example")),
        "unknown_issuer",
        "iss: expected {issuer}; the token has https://evil.example",
        "OTEL_PYTHON_TOKEN_RELAY_ISSUERS",
        id="another issuer",
    ),
    pytest.param(
        header_with(kid="k9"),
        "unknown_key",
        "kid: expected one of k1, r2 from the issuer's key set; the token has k9",
        "a different environment",
        id="kid",
    ),
    pytest.param(
        header_with(kid=None),
        "unknown_key",
        "kid: expected one of k1, r2 from the issuer's key set; the token has none",
        "must include the signing key",
        id="no kid",
    ),
    pytest.param(
        header_with(kid="weak"),
        "unknown_key",
        "kid: the key weak in the issuer's key set cannot be used: too short",
        "OTEL_PYTHON_TOKEN_RELAY_ALGORITHMS",
        id="unusable key",
    ),
    pytest.param(
        lambda issuer: make_token(claims(issuer), name="second"),
        "bad_signature",
        "signature: the token was not signed with the issuer's key k1, or was modified afterward",
        "Copy the whole token again",
        id="signature",
    ),
    pytest.param(
        token_with(jti=..., client_id=...),
        "missing_claim",
        "claims: expected iss, exp, aud, sub, client_id, iat, jti; the token lacks client_id, jti",
        "OTEL_PYTHON_TOKEN_RELAY_PROFILE=generic",
        id="missing claims",
    ),
    pytest.param(
        token_with(sub=...),
        "missing_claim",
        "claims: expected iss, exp, aud, sub, client_id, iat, jti; the token lacks sub",
        "must add the missing claims",
        id="missing subject",
    ),
    pytest.param(
        token_with(iss=...),
        "missing_claim",
        "claims: expected iss, exp, aud, sub, client_id, iat, jti; the token lacks iss",
        "must add the missing claims",
        id="missing issuer",
    ),
    pytest.param(
        token_with(aud=None),
        "missing_claim",
        "claims: expected iss, exp, aud, sub, client_id, iat, jti; the token lacks aud",
        "must add the missing claims",
        id="aud null",
    ),
    pytest.param(
        token_with(iss=1),
        "invalid_claim",
        "iss: expected a string; the token has a number",
        "RFC 7519",
        id="iss a number",
    ),
    pytest.param(
        token_with(sub="a\nb"),
        "invalid_claim",
        "sub: expected a non-empty string on one line; the token has a string with control characters",
        "RFC 7519",
        id="sub of two lines",
    ),
    pytest.param(
        token_with(client_id=""),
        "invalid_claim",
        "client_id: expected a non-empty string on one line; the token has an empty string",
        "RFC 7519",
        id="client_id empty",
    ),
    pytest.param(
        token_with(scope={}),
        "invalid_claim",
        "scope: expected a string or a list of strings; the token has an object",
        "RFC 7519",
        id="scope an object",
    ),
    pytest.param(
        token_with(exp="2026"),
        "invalid_claim",
        "exp: expected a number of seconds since 1970; the token has a string",
        "RFC 7519",
        id="exp a string",
    ),
    pytest.param(
        token_with(nbf=True),
        "invalid_claim",
        "nbf: expected a number of seconds since 1970; the token has true",
        "RFC 7519",
        id="nbf true",
    ),
    pytest.param(
        token_with(iat=-1),
        "invalid_claim",
        "iat: expected a number of seconds since 1970; the token has a negative number",
        "RFC 7519",
        id="iat negative",
    ),
    pytest.param(
        token_with(aud=[1]),
        "invalid_claim",
        "aud: expected a string or a list of strings; the token has a list",
        "RFC 7519",
        id="aud a list of numbers",
    ),
    pytest.param(
        token_with(aud=["billing", "account"]),
        "wrong_audience",
        "aud: expected profile-service; the token has billing, account",
        "OTEL_PYTHON_TOKEN_RELAY_AUDIENCE",
        id="aud",
    ),
    pytest.param(
        token_with(aud="Profile-Service"),
        "wrong_audience",
        "aud: expected profile-service; the token has Profile-Service (the capitalization differs)",
        "OTEL_PYTHON_TOKEN_RELAY_AUDIENCE",
        id="aud in upper case",
    ),
    pytest.param(
        token_with(aud=[]),
        "wrong_audience",
        "aud: expected profile-service; the token has none",
        "OTEL_PYTHON_TOKEN_RELAY_AUDIENCE",
        id="aud empty",
    ),
    pytest.param(
        token_with(exp=NOW - 312),
        "expired",
        "exp: 2026-11-27T06:38:04Z, 312 s ago; leeway 30 s",
        "new token",
        id="expired",
    ),
    pytest.param(
        token_with(nbf=NOW + 45),
        "not_yet_valid",
        "nbf: 2026-11-27T06:44:01Z, 45 s from now; leeway 30 s",
        "this machine's clock are probably out of sync",
        id="nbf",
    ),
    pytest.param(
        token_with(iat=NOW + 45),
        "not_yet_valid",
        "iat: 2026-11-27T06:44:01Z, 45 s from now; leeway 30 s",
        "this machine's clock are probably out of sync",
        id="iat",
    ),
    pytest.param(
        token_with(cnf={"jkt": "x", "x5t#S256": "y"}),
        "sender_constrained",
        "cnf: expected a bearer token without cnf; the token is bound to DPoP (jkt) and a client certificate"
        " (x5t#S256)",
        "disabling DPoP",
        id="bound to keys",
    ),
    pytest.param(
        token_with(cnf=1),
        "sender_constrained",
        "cnf: expected a bearer token without cnf; the token is bound to a key",
        "disabling DPoP",
        id="bound to an unknown key",
    ),
]


@pytest.fixture(scope="module")
def issuer() -> Any:
    weak = public_jwk("RS256", "weak", key=rsa_key(1024))
    with issuing(public_jwk("RS256", "k1"), public_jwk("RS256", "r2", name="third"), weak) as running:
        yield running


@pytest.mark.parametrize(("make", "reason", "cause", "advice"), CASES)
def test_each_rejection_is_explained(issuer: Issuer, make: Make, reason: str, cause: str, advice: str) -> None:
    """The verifier provides the reason for each rejection, and the explanation contains the check and both values."""
    verifier = TokenVerifier([issuer.url], AUDIENCE, now=lambda: float(NOW))
    token = make(issuer.url)

    with pytest.raises(TokenRejected) as rejected:
        verifier.verify(token)
    found = verifier.explain(token, rejected.value.reason)

    assert rejected.value.reason == reason
    assert str(found) == cause.format(issuer=issuer.url)
    assert advice in found.advice
    assert runs_of(token, f"{found} {found.advice}") == [] or len(set(token)) == 1


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue the tokens of the cases at the time when they are verified."""
    monkeypatch.setattr(time, "time", lambda: float(NOW))


def test_each_reason_has_a_case() -> None:
    """Each reason has a test case, except for the two that do not depend on the token's content."""
    assert {case.values[1] for case in CASES} | {"inactive", "revoked"} == set(get_args(RejectReason))


@pytest.mark.parametrize(
    ("change", "cause", "advice"),
    [
        pytest.param(
            {"nonce": "n"}, "nonce: expected an access token; the token has the nonce claim", "access", id="ID"
        ),
        pytest.param(
            {"typ": "Refresh"},
            "claim typ: expected one of Bearer, JWT, at+jwt; the token has Refresh",
            "a different kind",
            id="refresh",
        ),
        pytest.param(
            {"typ": 1}, "claim typ: expected one of Bearer, JWT, at+jwt; the token has 1", "kind", id="number"
        ),
    ],
)
def test_the_generic_profile_names_the_marker(issuer: Issuer, change: dict[str, Any], cause: str, advice: str) -> None:
    """For the generic profile, the explanation contains the claim that identifies an ID token or a refresh token."""
    verifier = TokenVerifier([issuer.url], AUDIENCE, profile="generic")
    token = make_token(claims(issuer.url, **change), typ="JWT")

    with pytest.raises(TokenRejected, match="wrong_type"):
        verifier.verify(token)

    found = verifier.explain(token, "wrong_type")
    assert str(found).startswith(cause)
    assert advice in found.advice


def test_the_generic_profile_names_the_type(issuer: Issuer) -> None:
    """For the generic profile, the explanation contains the token's type if it is wrong in both profiles."""
    verifier = TokenVerifier([issuer.url], AUDIENCE, profile="generic")
    token = make_token(claims(issuer.url, typ="Bearer"), typ="dpop+jwt")

    assert str(verifier.explain(token, "wrong_type")) == (
        "typ: expected one of at+jwt, JWT, no typ; the token has dpop+jwt"
    )


def test_a_cause_is_also_data() -> None:
    """A cause is also available as data, so programs need not parse the sentence."""
    token = make_token(claims(ISSUER, aud=["billing", "account"]))

    cause = explain(token, "wrong_audience", EXPECTED, now=NOW)

    assert json.loads(json.dumps(asdict(cause))) == {
        "check": "aud",
        "problem": "expected orders; the token has billing, account",
        "expected": ["orders"],
        "actual": ["billing", "account"],
        "advice": "If this is one of this service's names, add it to OTEL_PYTHON_TOKEN_RELAY_AUDIENCE. Otherwise, the"
        " caller must request a token for this service.",
    }


def test_keys_that_have_not_been_fetched_are_not_listed() -> None:
    """Keys that have not been fetched are not listed, because an explanation fetches nothing."""
    token = make_token(claims(ISSUER), kid="k9")

    assert str(explain(token, "unknown_key", EXPECTED, now=NOW)) == (
        "kid: expected one of the issuer's keys; the token has k9"
    )
    nothing = Expectations(rules=EXPECTED.rules, keys=())
    assert str(explain(token, "unknown_key", nothing, now=NOW)) == "kid: the issuer's key set has no usable key"


def test_missing_scopes_are_named() -> None:
    """The cause of a 403 response contains the missing scopes."""
    expected = Expectations(rules=EXPECTED.rules, required_scopes=("orders:read", "orders:write"))
    token = make_token(claims(ISSUER, scope="orders:read profile"))

    cause = explain(token, "insufficient_scope", expected, now=NOW)

    assert str(cause) == "scope: expected orders:read, orders:write; the token has orders:read, profile"
    assert cause.advice == "The caller must request the missing scopes: orders:write."
    none = explain(make_token(claims(ISSUER, scope=...)), "insufficient_scope", expected, now=NOW)
    assert str(none) == "scope: expected orders:read, orders:write; the token has none"


def test_a_verifier_explains_missing_scopes(issuer: Issuer) -> None:
    """A verifier explains missing scopes, which the authenticator passes to it."""
    cause = TokenVerifier([issuer.url], AUDIENCE).explain(
        make_token(claims(issuer.url)), "insufficient_scope", required_scopes=["admin"]
    )

    assert str(cause) == "scope: expected admin; the token has profiles:read, profiles:write"


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("token", ["2YotnFZFEjr1zCsicMWpAA", "", "é", f"{b64('[]')}.{b64('{}')}.AAAA"], ids=ascii)
def test_every_reason_has_a_cause_without_claims(reason: ExplainedReason, token: str) -> None:
    """Every reason has a cause even if the token contains no readable claims, as an opaque token does not."""
    cause = explain(token, reason, EXPECTED, now=NOW)

    assert cause.check
    assert cause.problem
    assert cause.advice.endswith(".")


@pytest.mark.parametrize("reason", REASONS)
def test_a_rule_that_the_token_satisfies_is_not_named_as_its_mistake(reason: ExplainedReason) -> None:
    """If the introspection response violates a rule, the explanation does not blame the JWT."""
    token = make_token(claims(ISSUER, aud="orders", scope="a"))
    if reason in ("bad_signature", "unknown_key", "too_long"):
        return  # these rules concern the token itself

    expected = Expectations(rules=EXPECTED.rules, issuers=(ISSUER,), keys=(("k1", "RS256"),))
    cause = explain(token, reason, expected, now=NOW)

    assert not cause.problem.startswith("expected")
    assert cause.expected == cause.actual == ()


@pytest.mark.parametrize(
    ("name", "reason", "within", "beyond"),
    [("exp", "expired", -29, -30), ("nbf", "not_yet_valid", 30, 31), ("iat", "not_yet_valid", 30, 31)],
)
def test_a_time_within_the_leeway_is_not_the_cause(
    name: str, reason: ExplainedReason, within: int, beyond: int
) -> None:
    """A time within the verifier's leeway is not reported as the cause."""
    for offset, is_cause in ((within, False), (beyond, True)):
        token = make_token(claims(ISSUER, **{name: NOW + offset}))

        assert (explain(token, reason, EXPECTED, now=NOW).actual != ()) is is_cause


def test_an_introspection_response_that_is_rejected_is_explained(issuer: Issuer) -> None:
    """The explanation of a rejected introspection response states where to look for the cause."""
    issuer.introspect = lambda token: active(aud="billing")
    verifier = TokenVerifier((), AUDIENCE, introspection_endpoint=f"{issuer.url}/introspect", now=lambda: NOW)

    with pytest.raises(TokenRejected, match="wrong_audience"):
        verifier.verify("2YotnFZFEjr1zCsicMWpAA")

    assert str(verifier.explain("2YotnFZFEjr1zCsicMWpAA", "wrong_audience")) == (
        "aud: the introspection response violates the rule; the token does not"
    )


def test_an_unknown_reason_has_a_cause() -> None:
    """An unknown reason, which an application's verifier can return, has a cause."""
    assert explain("a.b.c", "other", EXPECTED, now=NOW).check == "token"  # type: ignore[arg-type]


def test_an_error_in_an_explanation_is_not_raised() -> None:
    """An error in an explanation is not raised, because a log line must not make a request fail."""
    broken = Expectations(rules=None)  # type: ignore[arg-type]
    token = make_token(claims(ISSUER))

    assert explain(token, "wrong_audience", broken, now=NOW).check == "aud"


def test_many_long_values_are_cut() -> None:
    """At most 5 values of at most 100 characters are printed, and a line has at most 500 bytes."""
    token = make_token(claims(ISSUER, aud=[f"{number}{'é' * 2000}" for number in range(9)]), kid="k" * 300)
    expected = Expectations(rules=Rules(audience=tuple(f"{n}{'a' * 300}" for n in range(9))), max_length=10**6)

    cause = explain(token, "wrong_audience", expected, now=NOW)

    assert [len(value) for value in cause.actual] == [100, 100, 100, 100, 100, 6]
    assert cause.actual[-1] == "4 more"
    assert [len(value) for value in cause.expected] == [100, 100, 100, 100, 100, 6]
    assert len(cause.line().encode()) == 500
    assert len(cause.line(80).encode()) == 80
    assert cause.line().startswith("aud: expected one of 0aaa")


def test_a_short_cause_is_one_whole_line() -> None:
    """A short cause is a complete line, which does not contain the advice."""
    cause = Cause(check="aud", problem="expected a; the token has b", advice="Do something.")

    assert cause.line() == "aud: expected a; the token has b"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "1970-01-01T00:00:00Z"), (NOW + 0.9, "2026-11-27T06:43:16Z"), (2**40 - 1, "1099511627775"), (-1, "-1")],
)
def test_times_are_in_utc(seconds: float, text: str) -> None:
    """Every NumericDate that the verifier accepts is printed in UTC."""
    assert describe_time(seconds) == text


def test_names_are_joined_within_limits() -> None:
    """Names from the settings or from a scope are joined up to the limits."""
    assert join_names(["a", "b\n"]) == r"a, b\n"
    assert join_names(map(str, range(8))) == "0, 1, 2, 3, 4, 3 more"


# Hostile tokens

SIGNATURE = "c2lnbmF0dXJlLXdpdGgtbWFueS1jaGFyYWN0ZXJzLWFuZC1ub3RoaW5nLWVsc2U"
OTHER = make_token(claims("https://other.example"))
HOSTILE = st.one_of(
    st.just("\x1b]0;title\x07\x1b[2J"),
    st.just("a\r\nlevel=INFO msg=accepted"),
    st.just(OTHER),
    st.just(f"Bearer {OTHER}"),
    st.just("x" * 3000),
    st.builds(lambda start, size: SIGNATURE[start : start + size], st.integers(0, 60), st.integers(10, 60)),
    st.builds(lambda start, size: b64({"alg": "RS256"})[start : start + size], st.integers(0, 8), st.integers(10, 30)),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)
VALUES = HOSTILE | st.lists(HOSTILE, max_size=7) | st.dictionaries(HOSTILE, HOSTILE, max_size=3) | st.integers(0, 2**53)


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("iss", "aud", "scope", "sub", "exp", "nbf", "iat", "cnf", "typ", "nonce"), VALUES),
    ),
    st.fixed_dictionaries({}, optional=dict.fromkeys(("alg", "kid", "typ"), HOSTILE)),
    st.sampled_from(["rfc9068", "generic"]),
)
def test_no_part_of_a_hostile_token_is_shown(payload: dict[str, Any], header: dict[str, Any], profile: Any) -> None:
    """Explanations contain no control characters and no 17 consecutive characters of the hostile token or of a token
    inside it.
    """
    header = {"alg": "RS256"} | header
    token = f"{b64(header)}.{b64(payload)}.{SIGNATURE}"
    expected = Expectations(
        rules=Rules(audience=("orders",), profile=profile),
        issuers=(ISSUER,),
        algorithms=DEFAULT_ALGORITHMS,
        required_scopes=("admin",),
        keys=((str(header.get("kid")), "ES256"),),
        max_length=10**6,
    )

    for reason in REASONS:
        cause = explain(token, reason, expected, now=NOW)
        line, document = cause.line(), json.dumps(asdict(cause))

        assert all(" " <= c <= "~" for c in line + cause.advice)
        assert len(line) <= 500
        assert runs_of(token, line + cause.advice + document) == []
        assert runs_of(OTHER.rpartition(".")[2], line + document) == []


def test_a_huge_token_is_explained_in_time() -> None:
    """A token with 100 kB in each claim is explained in time, because values are truncated before the search."""
    huge = "abc/" * 25_000
    token = unsigned({"alg": "RS256", "kid": huge}, claims(ISSUER, iss=huge, aud=[huge, huge], scope=huge), "AAAA")
    expected = Expectations(rules=EXPECTED.rules, issuers=(ISSUER,), max_length=10**7, required_scopes=("a",))

    started = time.perf_counter()
    for reason in REASONS:
        assert len(explain(token, reason, expected, now=NOW).line()) <= 500

    assert time.perf_counter() - started < 20  # a limit, not a measurement
    assert explain(token, "wrong_audience", EXPECTED, now=NOW).actual == ()  # tokens beyond the limit are not parsed


@pytest.mark.parametrize(
    ("make", "reason", "expectations", "cause", "advice"),
    [
        pytest.param(
            lambda: ".".join(["eyJhbGciOiJkaXIifQ", "", "aXY", "Y3Q", "dGFn"]),
            "malformed",
            EXPECTED,
            "form: the token has five parts, so it is an encrypted token (JWE)",
            "Auth0 encrypts a token if the client requests it without the audience parameter",
            id="encrypted",
        ),
        pytest.param(
            lambda: make_token(claims(ISSUER, aud="https://graph.microsoft.com")),
            "bad_signature",
            EXPECTED,
            "signature: the token is for Microsoft Graph",
            "must request a token for this service",
            id="Graph by its audience",
        ),
        pytest.param(
            lambda: make_token(claims(ISSUER), nonce="hashed"),
            "bad_signature",
            EXPECTED,
            "signature: the token is for Microsoft Graph",
            "must request a token for this service",
            id="Graph by its header",
        ),
        pytest.param(
            lambda: make_token(claims(f"https://login.microsoftonline.com/{TENANT}/v2.0", tid=TENANT)),
            "unknown_issuer",
            Expectations(
                rules=Rules(audience=("orders",)),
                issuers=("https://login.microsoftonline.com/{tid}/v2.0",),
                tenants=("11111111-2222-4333-8444-555555555555",),
            ),
            f"tid: expected 11111111-2222-4333-8444-555555555555; the token has {TENANT}",
            "OTEL_PYTHON_TOKEN_RELAY_TENANTS",
            id="another tenant",
        ),
        pytest.param(
            lambda: make_token(claims(ISSUER, scope=..., client_id=...), typ="JWT"),
            "wrong_type",
            Expectations(rules=Rules(audience=("orders",), profile="generic"), issuers=(ISSUER,)),
            "type: expected an access token; the token has no member that indicates an access token",
            "OTEL_PYTHON_TOKEN_RELAY_PROFILE=id-token",
            id="no marker",
        ),
        pytest.param(
            lambda: make_token(claims(ISSUER, scp="a", typ="Bearer"), typ="JWT"),
            "wrong_type",
            Expectations(rules=Rules(audience=("orders",), profile="id-token"), issuers=(ISSUER,)),
            "scp: expected an ID token; the token has the scp claim, which only access tokens have",
            "The caller must send its ID token.",
            id="access token",
        ),
        pytest.param(
            lambda: make_token(claims(ISSUER, sub=..., client_id=...), typ="JWT"),
            "missing_claim",
            Expectations(rules=Rules(audience=("orders",), profile="generic"), issuers=(ISSUER,)),
            "claims: expected iss, exp, aud, sub or client_id; the token lacks sub and client_id",
            "must add the missing claims",
            id="neither subject nor client",
        ),
        pytest.param(
            lambda: make_token(claims(ISSUER, aud=..., client_id="web")),
            "wrong_audience",
            Expectations(rules=Rules(audience=("orders",), profile="generic", audience_claim="client_id")),
            "client_id: expected orders; the token has web",
            "OTEL_PYTHON_TOKEN_RELAY_AUDIENCE",
            id="another claim for the audience",
        ),
    ],
)
def test_tokens_of_providers_are_recognized(
    make: Callable[[], str], reason: ExplainedReason, expectations: Expectations, cause: str, advice: str
) -> None:
    """The most common mistakes with tokens from common providers are recognized."""
    found = explain(make(), reason, expectations, now=time.time())

    assert str(found).startswith(cause)
    assert advice in found.advice
