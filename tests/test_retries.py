"""Only some responses permit a request to be repeated."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.retries import METHODS, Rejection, read_rejection

INVALID = 'Bearer error="invalid_token"'
# The two alphabets differ in the encoding of the last member.
CLAIMS = '{"access_token":{"acrs":{"essential":true,"value":"cp1"}},"x":"~~~???>>>"}'
ENCODED = base64.b64encode(CLAIMS.encode()).decode()
# Python's parser accepts these texts, although they are not JSON.
NAN, INFINITY = b'{"a": NaN}', b'{"a": [-Infinity]}'


@pytest.mark.parametrize(
    "values",
    [
        [INVALID],
        ["bearer error=invalid_token"],
        ['BEARER realm="a, b", Error = "invalid_token" , error_description="Bearer error=\\"x\\""'],
        ['Bearer error="invalid\\_token"'],
        ['Basic realm="x", Bearer error="invalid_token"'],
        ['Negotiate YII=, Bearer realm="r", error="invalid_token", scope="a b", NTLM'],
        ["NTLM", 'DPoP algs="ES256", error="invalid_token"', INVALID],
        ["Bearer", INVALID],
        [", ,Bearer realm=x,, error=invalid_token,"],
        ["???", INVALID],
    ],
)
def test_a_rejected_token_is_recognized(values: list[str]) -> None:
    """A rejected token is recognized in one or more header lines, among other schemes (RFC 9110, section 11.6.1)."""
    assert read_rejection(values) == Rejection()


@pytest.mark.parametrize(
    "values",
    [
        [],
        [""],
        ["Bearer"],
        ["invalid_token"],
        ['error="invalid_token"'],
        ['Basic error="invalid_token"'],
        ['DPoP error="invalid_token"'],
        ['Bearer error="insufficient_scope"'],
        ['Bearer error="INVALID_TOKEN"'],
        ['Bearer error_description="invalid_token"'],
        ['Bearer error="invalid_token'],
        ['Bearer error="invalid_token" realm="x"'],
        ['Bearer error="invalid_token", error="invalid_token"'],
        ['Bearer error="invalid_request", error="invalid_token"'],
        ['Bearer realm="error=invalid_token"'],
        ['Bearer error="invalid_token", \x00'],
        ['Bearer error="invalid_token", a="' + "x" * 20_000 + '"'],
        [f'Bearer error="insufficient_claims", claims="{ENCODED}", claims="{ENCODED}"'],
        ['Bearer error="insufficient_claims"'],
        ['Bearer error="insufficient_claims", claims=""'],
        ['Bearer error="insufficient_claims", claims="!!!"'],
        ['Bearer error="insufficient_claims", claims="eyJ"'],
        [f'Bearer error="insufficient_claims", claims="{base64.b64encode(b"[1]").decode()}"'],
        [f'Bearer error="insufficient_claims", claims="{base64.b64encode(b"[" * 3000).decode()}"'],
        [f'Bearer error="insufficient_claims", claims="{base64.b64encode(b"{}" + b" " * 4000).decode()}"'],
        [f'Bearer error="insufficient_claims", claims="{base64.b64encode(NAN).decode()}"'],
        [f'Bearer error="insufficient_claims", claims="{base64.b64encode(INFINITY).decode()}"'],
        [f'Bearer claims="{ENCODED}"'],
    ],
)
def test_any_other_response_is_not_a_rejected_token(values: list[str]) -> None:
    """A challenge with invalid syntax or a different error does not indicate a rejected token."""
    assert read_rejection(values) is None


@pytest.mark.parametrize(
    "encoded",
    [ENCODED, ENCODED.rstrip("="), base64.urlsafe_b64encode(CLAIMS.encode()).decode()],
    ids=["base64", "without padding", "base64url"],
)
def test_a_claims_challenge_is_decoded(encoded: str) -> None:
    """A claims challenge, as Microsoft Entra sends it, is decoded in either alphabet, with or without padding."""
    rejection = read_rejection([f'Bearer realm="", error="insufficient_claims", claims="{encoded}"'])

    assert rejection == Rejection(CLAIMS, needs_claims=True)
    assert "acrs" not in repr(rejection)
    assert json.loads(rejection.claims or "") == json.loads(CLAIMS)


def test_an_invalid_token_may_have_claims_too() -> None:
    """An `invalid_token` challenge can also contain claims, which a new token might not need."""
    assert read_rejection([f'Bearer error="invalid_token", claims="{ENCODED}"']) == Rejection(CLAIMS)
    assert read_rejection(['Bearer error="invalid_token", claims="!"']) == Rejection()


def test_only_idempotent_methods_are_repeated() -> None:
    """Only idempotent methods except TRACE are repeated (RFC 9110, section 9.2.2)."""
    assert {"GET", "HEAD", "OPTIONS", "PUT", "DELETE"} == METHODS


@given(st.lists(st.one_of(st.text(), st.text(alphabet='Bearer error="invalid_token",\\= '))))
def test_reading_never_raises(values: list[str]) -> None:
    """Reading a challenge, whose text the server chooses, never raises an error."""
    read_rejection(values)


def test_hostile_challenges_are_read_in_linear_time() -> None:
    """A hostile challenge, which could cause regular expressions to backtrack, is read in linear time."""
    for hostile in ('Bearer a="' + "\\" * 16_000, "Bearer " + "a" * 16_000, "Bearer " + "a, " * 5_000, "," * 16_000):
        read_rejection([hostile] * 20)
