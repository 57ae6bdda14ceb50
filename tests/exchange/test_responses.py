"""A response is used only if it contains a new bearer token for the requested audience."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.errors import ExchangeFailed
from otel_token_relay.exchange.grants import ACCESS_TOKEN, JWT, Request
from otel_token_relay.exchange.responses import Issued, read_response
from tests.support.json_values import json_values

SUBJECT, ACTOR = "the-callers-token", "the-services-token"
REQUEST = Request(audience="billing-api")
ON_BEHALF = Request("on-behalf-of", scope="api://billing/.default")
GOOD = {"access_token": "issued-1", "issued_token_type": ACCESS_TOKEN, "token_type": "Bearer", "expires_in": 300}


def jwt(**claims: Any) -> str:
    parts = ({"alg": "RS256"}, claims)
    return (
        ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + ".c2ln"
    )


def read(members: Any, *, status: int = 200, request: Request = REQUEST) -> Issued:
    return read_response(status, members, request, (SUBJECT, ACTOR), 2000)


@pytest.mark.parametrize(
    ("changes", "expires_in"),
    [
        ({}, 300.0),
        ({"token_type": "bearer"}, 300.0),
        ({"issued_token_type": JWT}, 300.0),
        ({"expires_in": "300"}, 300.0),
        ({"expires_in": 0.5}, 0.5),
        ({"expires_in": None}, None),
        ({"expires_in": True}, None),
        ({"expires_in": "soon"}, None),
        ({"expires_in": -5}, 0.0),
        ({"expires_in": 10**400}, None),
        ({"access_token": jwt(aud="billing-api", exp=5)}, 300.0),
        ({"access_token": jwt(aud=["x", "billing-api"])}, 300.0),
        ({"scope": 7, "refresh_token": "r"}, 300.0),
    ],
)
def test_a_good_response_is_used(changes: dict[str, Any], expires_in: float | None) -> None:
    """A valid response is used, and the audience of an opaque token is not checked."""
    members = GOOD | changes

    issued = read(members)

    assert (issued.token, issued.expires_in) == (members["access_token"], expires_in)
    assert issued.token not in repr(issued)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"access_token": SUBJECT}, "bad_response"),
        ({"access_token": ACTOR}, "bad_response"),
        ({"access_token": ""}, "bad_response"),
        ({"access_token": None}, "bad_response"),
        ({"access_token": ["issued-1"]}, "bad_response"),
        ({"access_token": "two words"}, "bad_response"),
        ({"access_token": "a\r\nX: y"}, "bad_response"),
        ({"access_token": "a" * 2001}, "bad_response"),
        ({"token_type": "N_A"}, "bad_response"),
        ({"token_type": "DPoP"}, "bad_response"),
        ({"token_type": None}, "bad_response"),
        ({"token_type": ["Bearer"]}, "bad_response"),
        ({"issued_token_type": None}, "bad_response"),
        ({"issued_token_type": "urn:ietf:params:oauth:token-type:txn_token"}, "bad_response"),
        ({"issued_token_type": "urn:ietf:params:oauth:token-type:id_token"}, "bad_response"),
        ({"issued_token_type": "urn:ietf:params:oauth:token-type:refresh_token"}, "bad_response"),
        ({"issued_token_type": [ACCESS_TOKEN]}, "bad_response"),
        ({"access_token": jwt(aud="orders-api")}, "wrong_audience"),
        ({"access_token": jwt(aud=["orders-api", 7, None])}, "wrong_audience"),
        ({"access_token": jwt(aud={"billing-api": 1})}, "wrong_audience"),
        ({"access_token": jwt(aud=7)}, "wrong_audience"),
        ({"access_token": jwt()}, "wrong_audience"),
        ({"access_token": jwt(aud="billing-api", cnf={"jkt": "x"})}, "bad_response"),
    ],
)
def test_any_other_response_is_not_used(changes: dict[str, Any], error: str) -> None:
    """A response with status 200 and invalid content is not used."""
    with pytest.raises(ExchangeFailed) as failed:
        read(GOOD | changes)

    assert failed.value.error == error
    assert not any(str(value) in str(failed.value) for value in changes.values() if isinstance(value, str) and value)


def test_a_result_may_have_an_expected_audience() -> None:
    """The configuration can specify the name that a server uses for a service in the audience."""
    request = Request(audience="billing-api", expected=("urn:billing",))

    assert read(GOOD | {"access_token": jwt(aud="urn:billing")}, request=request).token
    assert read(GOOD | {"access_token": jwt(aud="anything")}, request=Request(scope="a")).token


def test_entra_sends_no_issued_token_type() -> None:
    """Entra's responses contain no issued token type, but if there is one, it must be an access token."""
    members = {name: value for name, value in GOOD.items() if name != "issued_token_type"}

    assert read(members, request=ON_BEHALF).token == "issued-1"
    assert read(GOOD, request=ON_BEHALF).token == "issued-1"
    with pytest.raises(ExchangeFailed):
        read(members | {"issued_token_type": "x"}, request=ON_BEHALF)


@pytest.mark.parametrize(
    ("status", "members", "error"),
    [
        (400, {"error": "invalid_grant"}, "invalid_grant"),
        (400, {"error": "invalid_target"}, "invalid_target"),
        (400, {"error": "unsupported_grant_type"}, "unsupported_grant_type"),
        (400, {"error": "interaction_required", "claims": '{"access_token":{}}'}, "interaction_required"),
        (401, {"error": "invalid_client"}, "invalid_client"),
        (401, None, "invalid_client"),
        (401, {"error": "token_revoked"}, "invalid_grant"),
        (401, {"error": "invalid_token"}, "invalid_grant"),
        (401, {"error": "an_error_of_this_server"}, "bad_response"),
        (403, {"error": "insufficient_scope"}, "invalid_scope"),
        (403, {"error": "scope_escalation"}, "invalid_scope"),
        (403, {"error": "access_denied"}, "unauthorized_client"),
        (403, {"error": "made_up"}, "bad_response"),
        (400, {"error": ["invalid_grant"]}, "bad_response"),
        (400, None, "bad_response"),
        (302, {}, "bad_response"),
        (201, GOOD, "bad_response"),
        (429, {"error": "invalid_grant"}, "unavailable"),
        (503, None, "unavailable"),
        (500, {"error": "invalid_grant"}, "unavailable"),
        (400, {"error": "temporarily_unavailable"}, "unavailable"),
        (200, None, "bad_response"),
    ],
)
def test_a_refusal_has_one_of_a_closed_set_of_errors(status: int, members: Any, error: str) -> None:
    """Each error response is mapped to a defined error, and a server error does not mean that the token is rejected."""
    with pytest.raises(ExchangeFailed) as failed:
        read(members, status=status)

    assert failed.value.error == error
    assert failed.value.claims_challenge == (members or {}).get("claims")
    assert "access_token" not in str(failed.value)


@pytest.mark.parametrize("claims", ["", "a" * 5000, "a\nb", 7, None, {"a": 1}])
def test_a_claims_challenge_is_bounded_text(claims: Any) -> None:
    """A claims challenge, which the service returns to its caller, is limited to short printable text."""
    with pytest.raises(ExchangeFailed) as failed:
        read({"error": "interaction_required", "claims": claims}, status=400)

    assert failed.value.claims_challenge is None


@given(
    st.integers(0, 599), st.one_of(st.none(), st.dictionaries(st.sampled_from([*GOOD, "error", "claims"]), json_values))
)
def test_no_response_raises_another_error(status: int, members: Any) -> None:
    """Any response results in a token or `ExchangeFailed`."""
    try:
        read(members, status=status)
    except ExchangeFailed:
        return
    assert status == 200
