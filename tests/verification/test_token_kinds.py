"""A token's members indicate its kind, and only an access token is accepted as one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.errors import TokenRejected
from otel_token_relay.verification.claims import check_type, without_nulls
from otel_token_relay.verification.token_kinds import MARKERS, Marker, names_user, read_kinds
from tests.support.json_values import json_values

# A value that satisfies the rows that have a condition; any value satisfies the other rows.
VALUES: dict[tuple[str, ...], dict[str, Any]] = {
    ("scope",): {"scope": "orders.read"},
    ("scp",): {"scp": ["orders.read"]},
    ("ver", "azp", "tid"): {"ver": "2.0", "azp": "web", "tid": "t"},
    ("type", "identity_nonce"): {"type": "app", "identity_nonce": "n"},
    ("type", "common_name"): {"type": "app", "common_name": "job.access"},
    ("events",): {"events": {"http://schemas.openid.net/event/backchannel-logout": {}}},
    ("sub",): {"sub": "spiffe://example.org/orders"},
}
ACCESS = [marker for marker in MARKERS if marker.kind == "access"]
NAMING = [marker for marker in MARKERS if marker.kind is None]
FOREIGN = [marker for marker in MARKERS if marker.kind not in (None, "access")]

# Possible values of a naming row in other kinds of tokens.
FOREIGN_WORDS = ("ID", "id", "id_token", "id-token", "Refresh", "refresh", "refresh_token", "refresh-token", "Offline")


def members_of(marker: Marker) -> dict[str, Any]:
    """Return members that satisfy a row."""
    return VALUES.get(marker.members) or dict.fromkeys(marker.members, "x")


def is_accepted(claims: dict[str, Any], typ: str | None = "JWT", profile: str = "generic") -> bool:
    try:
        check_type({} if typ is None else {"typ": typ}, without_nulls(claims), profile)  # type: ignore[arg-type]
    except TokenRejected:
        return False
    return True


@pytest.mark.parametrize("marker", ACCESS, ids=lambda marker: "+".join(marker.members))
def test_each_marker_of_an_access_token_suffices(marker: Marker) -> None:
    """Each marker of an access token has a provider and a source, and is enough for that provider's tokens to be
    accepted.
    """
    assert marker.provider
    assert marker.source
    assert is_accepted(members_of(marker))
    assert is_accepted(members_of(marker), None)
    assert not is_accepted(dict.fromkeys(marker.members))


@pytest.mark.parametrize("marker", NAMING, ids=lambda marker: marker.members[0])
def test_the_value_of_a_member_names_the_kind(marker: Marker) -> None:
    """The value of a member identifies the kind, regardless of case and punctuation."""
    (name,) = marker.members
    assert marker.accepted
    assert any(is_accepted({name: word}) for word in marker.accepted)
    for word in (*FOREIGN_WORDS, *(["Logout", "", 1, ["access"], {}] if marker.is_closed else [])):
        assert not is_accepted({name: word, "scope": "a", "scp": "a", "client_id": "web", "jti": "1"}), word


def test_a_member_with_a_common_name_may_mean_something_else() -> None:
    """An unknown value of the ``type`` claim indicates nothing, because applications use the claim for their own
    purposes.
    """
    assert is_accepted({"type": "employee", "scope": "a"})
    assert is_accepted({"events": ["login"], "scope": "a"})
    for claims in ({"type": "employee"}, {"type": "app"}, {"permissions": ["read"]}, {"client_id": "web"}):
        assert not is_accepted(claims)


def test_a_token_without_a_marker_is_refused() -> None:
    """A token without a marker is rejected, because some ID tokens from Entra (without a nonce) and Dex
    have no marker.
    """
    entra = {"aud": "app", "sub": "s", "oid": "o", "tid": "t", "ver": "2.0", "roles": ["Admin"], "name": "Alice"}
    dex = {"aud": "app", "sub": "s", "email": "alice@example.com", "email_verified": True, "name": "Alice"}

    assert not is_accepted(entra)
    assert not is_accepted(dex)
    assert is_accepted(entra, profile="id-token")


@pytest.mark.parametrize(
    ("claims", "generic"),
    [
        pytest.param({"nonce": "n", "typ": "Bearer", "azp": "web"}, True, id="Keycloak up to 23"),
        pytest.param({"nonce": "n", "scp": "read", "tfp": "B2C_1_signin"}, True, id="Azure AD B2C"),
        pytest.param({"nonce": "n", "tokenType": "access-token"}, True, id="Casdoor"),
        pytest.param({"nonce": "n", "scope": "read"}, False, id="scope does not say so in so many words"),
        pytest.param({"nonce": "n", "client_id": "web", "jti": "1"}, False, id="nor does client_id"),
        pytest.param({"nonce": "n", "scp": "read", "at_hash": "h"}, False, id="at_hash is never outweighed"),
        pytest.param({"nonce": "n", "scp": "read", "typ": "ID"}, False, id="nor is a statement to the contrary"),
    ],
)
def test_a_nonce_is_outweighed_by_a_statement_only(claims: dict[str, Any], generic: bool) -> None:
    """An explicit statement outweighs a nonce, which some providers copy from the login into access tokens."""
    assert is_accepted(claims) is generic


@given(
    foreign=st.one_of(
        st.sampled_from([marker for marker in FOREIGN if marker.members != ("nonce",)]).map(members_of),
        st.tuples(st.sampled_from(NAMING), st.sampled_from(FOREIGN_WORDS)).map(lambda p: {p[0].members[0]: p[1]}),
    ),
    access=st.lists(st.sampled_from([*map(members_of, ACCESS), *[{m.members[0]: m.accepted[0]} for m in NAMING]])),
    rest=st.dictionaries(st.text(max_size=8), json_values, max_size=4),
    typ=st.sampled_from([None, "JWT", "jwt", "application/jwt", "at+jwt", "application/at+jwt"]),
)
def test_no_combination_of_markers_admits_an_id_or_refresh_token(
    foreign: dict[str, Any], access: list[dict[str, Any]], rest: dict[str, Any], typ: str | None
) -> None:
    """One marker of a different kind is enough to reject a token, regardless of its other members."""
    claims: dict[str, Any] = dict(rest)
    for members in access:
        claims |= members

    assert not is_accepted(claims | foreign, typ)


@given(
    access=st.lists(st.sampled_from([members_of(marker) for marker in ACCESS if not marker.is_statement])),
    typ=st.sampled_from([None, "JWT", "at+jwt"]),
    nonce=st.text() | st.integers(),
)
def test_a_nonce_without_a_statement_is_refused(
    access: list[dict[str, Any]], typ: str | None, nonce: str | int
) -> None:
    """A token with a nonce and no explicit statement is rejected, because ID tokens have a nonce after a browser
    login.
    """
    claims: dict[str, Any] = {"nonce": nonce}
    for members in access:
        claims |= members

    assert not is_accepted(claims, typ)


@given(st.dictionaries(st.sampled_from(sorted({n for m in MARKERS for n in m.members})), json_values))
def test_any_values_are_read(claims: dict[str, Any]) -> None:
    """Values of any form raise no error, and no profile accepts a rejected kind as an access token."""
    kinds = read_kinds(claims)

    assert is_accepted(claims) == (kinds.foreign is None and kinds.access is not None)


@pytest.mark.parametrize(
    ("claims", "typ", "expected"),
    [
        pytest.param({"email": "a@b.example", "azp": "1"}, "JWT", True, id="Google"),
        pytest.param({"firebase": {"sign_in_provider": "google.com"}}, "JWT", True, id="Firebase"),
        pytest.param({"nonce": "n", "at_hash": "h"}, None, True, id="markers of ID tokens"),
        pytest.param({"token_use": "id"}, "JWT", True, id="Cognito"),
        pytest.param({"token_use": "access"}, "JWT", False, id="an access token of Cognito"),
        pytest.param({"typ": "Bearer"}, "JWT", False, id="an access token of Keycloak"),
        pytest.param({"typ": "Refresh"}, "JWT", False, id="a refresh token"),
        pytest.param({"events": {}}, "JWT", False, id="a logout token"),
        pytest.param({}, "at+jwt", False, id="RFC 9068"),
        pytest.param({}, "logout+jwt", False, id="another type"),
    ],
)
def test_the_profile_for_id_tokens_refuses_other_kinds(claims: dict[str, Any], typ: str | None, expected: bool) -> None:
    """The profile for providers that send ID tokens to APIs rejects other kinds of tokens."""
    assert is_accepted(claims, typ, "id-token") is expected


def test_claims_of_users_are_recognized() -> None:
    """A token without ``sub`` that contains a user's claim is not the client's own token."""
    assert names_user({"azp": "web", "preferred_username": "alice"})
    assert not names_user({"azp": "web", "preferred_username": None, "scope": "a"})
