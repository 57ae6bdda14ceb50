"""A token with a valid signature must satisfy the rules for its type and claims."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.errors import ConfigurationError, TokenRejected
from otel_token_relay.verification.claims import (
    CLIENT_NAMES,
    MAX_NUMERIC_DATE,
    Rules,
    check_audience,
    check_claims,
    check_name,
    check_times,
    check_type,
    check_values,
    read_scopes,
    without_nulls,
)
from tests.support.json_values import json_values

NOW = 1_800_000_000
RULES = Rules(audience=("profile-service",))
COMPLETE: dict[str, Any] = {
    "iss": "https://idp.example",
    "aud": "profile-service",
    "sub": "alice",
    "client_id": "web",
    "iat": NOW,
    "exp": NOW + 600,
    "jti": "j-1",
    "scope": "profiles:read profiles:write",
}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("profile", "strict"),
        ("leeway", -1),
        ("leeway", float("nan")),
        ("leeway", True),
        ("leeway", "30"),
        ("audience", ("",)),
        ("audience", (None,)),
        ("scope_claims", ("scope", "")),
    ],
)
def test_rules_that_cannot_be_applied_are_an_error(setting: str, value: Any) -> None:
    """Rules that cannot be applied raise an error with the setting's name before the first token arrives."""
    with pytest.raises(ConfigurationError) as rejected:
        Rules(**{"audience": ("profile-service",), setting: value})

    assert rejected.value.setting == setting


@pytest.mark.parametrize(
    ("typ", "claims", "rfc9068", "generic"),
    [
        pytest.param("at+jwt", {}, True, True, id="access token"),
        pytest.param("application/AT+JWT", {}, True, True, id="media type in any case"),
        pytest.param("JWT", {"scope": "a"}, False, True, id="JWT"),
        pytest.param("application/jwt", {"scope": "a"}, False, True, id="media type JWT"),
        pytest.param(None, {"scope": "a"}, False, True, id="no type"),
        pytest.param("JWT", {}, False, False, id="nothing that says that it is an access token"),
        pytest.param("dpop+jwt", {}, False, False, id="DPoP proof"),
        pytest.param("logout+jwt", {}, False, False, id="logout token"),
        pytest.param("at+jwt ", {}, False, False, id="space behind"),
        pytest.param("", {}, False, False, id="empty"),
        pytest.param("JWT", {"nonce": "n"}, False, False, id="nonce of an ID token"),
        pytest.param("JWT", {"at_hash": "h"}, False, False, id="at_hash of an ID token"),
        pytest.param("JWT", {"typ": "Bearer"}, False, True, id="Keycloak's access token"),
        pytest.param("JWT", {"typ": "Refresh"}, False, False, id="Keycloak's refresh token"),
        pytest.param("JWT", {"typ": ["Bearer"]}, False, False, id="claim typ a list"),
    ],
)
def test_only_access_tokens_have_the_right_type(
    typ: str | None, claims: dict[str, Any], rfc9068: bool, generic: bool
) -> None:
    """Only the type of an access token is accepted, because an issuer signs other kinds of tokens with the same
    keys.
    """
    header = {"alg": "RS256"} | ({} if typ is None else {"typ": typ})
    for profile, accepted in (("rfc9068", rfc9068), ("generic", generic)):
        if accepted:
            check_type(header, claims, profile)  # type: ignore[arg-type]
        else:
            with pytest.raises(TokenRejected, match="wrong_type"):
                check_type(header, claims, profile)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["iss", "exp", "aud", "sub", "client_id", "iat", "jti"])
def test_each_required_claim_is_required(name: str) -> None:
    """The generic profile requires three of the seven claims and either ``sub`` or a client."""
    claims = {key: value for key, value in COMPLETE.items() if key != name}

    assert check_claims(COMPLETE, RULES, now=NOW) == {"profiles:read", "profiles:write"}
    with pytest.raises(TokenRejected, match="missing_claim"):
        check_claims(claims, RULES, now=NOW)
    generic = Rules(audience=("profile-service",), profile="generic")
    if name in ("sub", "client_id", "iat", "jti"):
        assert check_claims(claims, generic, now=NOW) == {"profiles:read", "profiles:write"}
    else:
        with pytest.raises(TokenRejected, match="missing_claim"):
            check_claims(claims, generic, now=NOW)


@pytest.mark.parametrize("client", CLIENT_NAMES)
def test_a_machine_token_needs_no_subject(client: str) -> None:
    """A machine token needs no subject, because Duende, PingOne, and Keycloak send only the client."""
    claims = {"iss": "https://idp.example", "aud": "profile-service", "exp": NOW + 600, client: "web"}
    generic = Rules(audience=("profile-service",), profile="generic")

    assert check_claims(claims, generic, now=NOW) == frozenset()
    with pytest.raises(TokenRejected) as rejected:
        check_claims({name: value for name, value in claims.items() if name != client}, generic, now=NOW)
    assert (rejected.value.reason, rejected.value.claim) == ("missing_claim", "sub")


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        pytest.param({"client_id": "orders"}, None, id="the claim that was chosen"),
        pytest.param({"client_id": "orders", "aud": ["a", "orders"]}, None, id="and aud"),
        pytest.param({"client_id": "orders", "aud": "billing"}, "wrong_audience", id="but another aud"),
        pytest.param({"client_id": "billing"}, "wrong_audience", id="another value"),
        pytest.param({"azp": "orders"}, "missing_claim", id="another claim"),
        pytest.param({"aud": "orders", "azp": "web"}, "missing_claim", id="aud alone"),
    ],
)
def test_another_claim_can_contain_the_audience(claims: dict[str, Any], reason: str | None) -> None:
    """Cognito sends ``client_id`` and no ``aud``, so a different claim can contain the audience; if both exist, both
    must match.
    """
    rules = Rules(audience=("orders",), profile="generic", audience_claim="client_id")
    claims = {"iss": "https://idp.example", "exp": NOW + 600, "sub": "alice"} | claims
    if reason is None:
        assert check_claims(claims, rules, now=NOW) == frozenset()
        return

    with pytest.raises(TokenRejected) as rejected:
        check_claims(claims, rules, now=NOW)
    assert rejected.value.reason == reason


@pytest.mark.parametrize("profile", ["rfc9068", "id-token"])
def test_the_audience_claim_requires_the_generic_profile(profile: Any) -> None:
    """A custom audience claim requires the generic profile, because RFC 9068 and OpenID Connect require ``aud``."""
    with pytest.raises(ConfigurationError, match="audience_claim"):
        Rules(audience=("orders",), profile=profile, audience_claim="client_id")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"sub": ""}, "invalid_claim", id="sub empty"),
        pytest.param({"azp": {}}, "invalid_claim", id="azp an object"),
        pytest.param({"scope": 1}, "invalid_claim", id="scope a number"),
        pytest.param({"cnf": None}, "sender_constrained", id="cnf null"),
        pytest.param({"exp": NOW - 30}, "expired", id="expired"),
        pytest.param({"aud": "billing-service"}, "wrong_audience", id="another audience"),
        pytest.param({"aud": None}, "missing_claim", id="aud null"),
    ],
)
def test_each_present_claim_is_checked(changes: dict[str, Any], reason: str) -> None:
    """Introspection responses can omit claims, but every present claim must satisfy the rules."""
    assert check_values({"aud": "profile-service"}, RULES, now=NOW) == frozenset()
    assert check_values({"aud": 1}, Rules(audience=()), now=NOW) == frozenset()
    with pytest.raises(TokenRejected) as rejected:
        check_values(COMPLETE | changes, RULES, now=NOW)

    assert rejected.value.reason == reason


@pytest.mark.parametrize("value", ["", None, 1, ["alice"], {}, "a\nb", "a\0", "a\u2028b"], ids=ascii)
def test_a_name_is_text_on_one_line(value: object) -> None:
    """A name is a single line of text, because applications write names to logs, headers, and database keys."""
    check_name("Åsa 漢字")
    with pytest.raises(TokenRejected, match="invalid_claim"):
        check_name(value)


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        pytest.param({}, None, id="no times"),
        pytest.param({"exp": NOW - 29.5}, None, id="exp within the leeway"),
        pytest.param({"exp": NOW - 30}, "expired", id="exp at the leeway"),
        pytest.param({"exp": NOW - 31}, "expired", id="exp past the leeway"),
        pytest.param({"nbf": NOW + 29}, None, id="nbf within the leeway"),
        pytest.param({"nbf": NOW + 30}, None, id="nbf at the leeway"),
        pytest.param({"nbf": NOW + 30.5}, "not_yet_valid", id="nbf past the leeway"),
        pytest.param({"iat": NOW + 30}, None, id="iat at the leeway"),
        pytest.param({"iat": NOW + 31}, "not_yet_valid", id="iat past the leeway"),
        pytest.param({"exp": MAX_NUMERIC_DATE - 1}, None, id="the latest date"),
        pytest.param({"exp": MAX_NUMERIC_DATE}, "invalid_claim", id="later than that"),
        pytest.param({"exp": NOW + 9, "nbf": -1}, "invalid_claim", id="negative"),
        pytest.param({"exp": "9999999999"}, "invalid_claim", id="text"),
        pytest.param({"exp": True}, "invalid_claim", id="true"),
        pytest.param({"iat": None}, "invalid_claim", id="null"),
        pytest.param({"nbf": [NOW]}, "invalid_claim", id="a list"),
        pytest.param({"exp": float("inf")}, "invalid_claim", id="infinite"),
        pytest.param({"exp": float("nan")}, "invalid_claim", id="not a number"),
    ],
)
def test_a_token_is_valid_between_its_times(claims: dict[str, Any], reason: str | None) -> None:
    """A token is expired as of ``exp`` plus the leeway (RFC 7519, section 4.1.4)."""
    if reason is None:
        check_times(claims, 30.0, now=NOW)
        return

    with pytest.raises(TokenRejected) as rejected:
        check_times(claims, 30.0, now=NOW)
    assert rejected.value.reason == reason


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param("profile-service", None, id="text"),
        pytest.param(["billing-service", "profiles"], None, id="one of several"),
        pytest.param("profile", "wrong_audience", id="a part of the name"),
        pytest.param("profile-service,profiles", "wrong_audience", id="with a comma"),
        pytest.param("PROFILES", "wrong_audience", id="upper case"),
        pytest.param([], "wrong_audience", id="empty list"),
        pytest.param(None, "missing_claim", id="none"),
        pytest.param(["profiles", 1], "invalid_claim", id="a number in the list"),
        pytest.param([["profiles"]], "invalid_claim", id="a list in the list"),
        pytest.param({"profiles": True}, "invalid_claim", id="an object"),
    ],
)
def test_the_audience_contains_a_name_of_this_service(value: object, reason: str | None) -> None:
    """One of the audience's entries must be this service's full name, and every entry must be text."""
    accepted = ("profile-service", "profiles")
    if reason is None:
        check_audience(value, accepted)
        return

    with pytest.raises(TokenRejected) as rejected:
        check_audience(value, accepted)
    assert rejected.value.reason == reason


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        pytest.param({}, set(), id="none"),
        pytest.param({"scope": "a b"}, {"a", "b"}, id="text"),
        pytest.param({"scope": " a  b "}, {"a", "b"}, id="several spaces"),
        pytest.param({"scope": ["a b", "c", ""]}, {"a b", "c"}, id="list"),
        pytest.param({"scp": ["c"]}, {"c"}, id="second claim"),
        pytest.param({"scope": "a", "scp": ["b", "a"]}, {"a", "b"}, id="the scopes of all claims"),
        pytest.param({"realm_access": {"roles": ["r"]}}, {"r"}, id="within an object"),
        pytest.param({"realm_access.roles": "r", "realm_access": {"roles": ["admin"]}}, {"r"}, id="a name with a dot"),
        pytest.param({"realm_access": ["roles"]}, set(), id="a list instead of the object"),
        pytest.param({"realm_access": {}}, set(), id="an empty object"),
        pytest.param({"scope": None}, set(), id="null"),
        pytest.param({"realm_access": {"roles": None}}, set(), id="null within an object"),
        pytest.param({"scope": {"a": True}}, None, id="an object"),
        pytest.param({"scope": ["a", 1]}, None, id="a number in the list"),
        pytest.param({"scope": "a\nadmin"}, None, id="line break"),
        pytest.param({"scope": ["a\tb"]}, None, id="tab in the list"),
    ],
)
def test_scopes_are_found_in_the_configured_claims(claims: dict[str, Any], expected: set[str] | None) -> None:
    """Scopes are found in the configured claims as words separated by spaces or as a list of words."""
    names = ("scope", "scp", "realm_access.roles")
    if expected is not None:
        assert read_scopes(claims, names) == expected
        return

    with pytest.raises(TokenRejected, match="invalid_claim"):
        read_scopes(claims, names)


@given(st.dictionaries(st.sampled_from([*COMPLETE, "nbf", "cnf", "scp", "azp"]), json_values), st.booleans())
def test_any_claims_are_accepted_or_rejected(changes: dict[str, Any], is_complete: bool) -> None:
    """No claim value raises an error other than `TokenRejected`."""
    try:
        scopes = check_claims((COMPLETE if is_complete else {}) | changes, RULES, now=NOW)
    except TokenRejected:
        return
    assert all(isinstance(scope, str) and scope for scope in scopes)


def test_a_claim_with_a_null_value_counts_as_missing() -> None:
    """A claim whose value is null counts as missing, because some issuers send null instead of omitting a claim."""
    generic = Rules(audience=("profile-service",), profile="generic")
    sent = COMPLETE | {"nbf": None, "sub": None, "cnf": None, "roles": []}

    check_claims(without_nulls(sent), generic, now=NOW)

    assert without_nulls(sent) == {name: value for name, value in COMPLETE.items() if name != "sub"} | {"roles": []}
    assert without_nulls(COMPLETE) == COMPLETE
    with pytest.raises(TokenRejected) as rejected:
        check_claims(without_nulls(COMPLETE | {"exp": None}), generic, now=NOW)
    assert (rejected.value.reason, rejected.value.claim) == ("missing_claim", "exp")
