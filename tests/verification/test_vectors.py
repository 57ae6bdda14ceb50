"""The examples of the RFCs and random input raise only `TokenRejected`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_token_relay.credentials import parse_credentials
from otel_token_relay.errors import TokenRejected
from otel_token_relay.reasons import Reason
from otel_token_relay.verification import TokenVerifier
from tests.support.issuers import Issuer, issuing
from tests.support.json_values import json_values
from tests.support.tokens import AUDIENCE, b64, claims, make_token, public_jwk, sign_raw

VECTORS = json.loads((Path(__file__).parent / "vectors" / "rfc7515_rfc8037.json").read_text())["vectors"]
FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_example_of_the_rfc_is_no_access_token(vector: Any) -> None:
    """No verifier accepts any of the RFC examples, including the unsecured and the symmetric one."""
    with issuing(vector["jwk"]) as issuer, pytest.raises(TokenRejected):
        TokenVerifier([issuer.url], AUDIENCE).verify(vector["jws"])


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with issuing(public_jwk("ES256", "e1")) as running:
        yield running


@pytest.fixture(scope="module")
def verifier(issuer: Issuer) -> TokenVerifier:
    found = TokenVerifier([issuer.url], AUDIENCE, cooldown=1e6)
    found.verify(valid(issuer))
    return found


def valid(issuer: Issuer) -> str:
    return make_token(claims(issuer.url), "ES256", kid="e1")


@FUZZ
@given(text=st.text() | st.from_regex(r"[A-Za-z0-9_-]*(\.[A-Za-z0-9_-]*){0,4}", fullmatch=True))
def test_any_text_is_refused(verifier: TokenVerifier, text: str) -> None:
    """No random text is accepted or raises an unexpected error."""
    with pytest.raises(TokenRejected):
        verifier.verify(text)


@FUZZ
@given(header=st.binary(max_size=60), payload=st.binary(max_size=60), signature=st.binary(max_size=70))
def test_any_segments_are_refused(verifier: TokenVerifier, header: bytes, payload: bytes, signature: bytes) -> None:
    """Segments of well-formed random base64url are rejected."""
    with pytest.raises(TokenRejected):
        verifier.verify(".".join(map(b64, (header, payload, signature))))


@FUZZ
@given(data=st.data())
def test_no_change_of_a_token_survives(issuer: Issuer, verifier: TokenVerifier, data: st.DataObject) -> None:
    """A token with a replaced, inserted, or removed character is rejected."""
    token = valid(issuer)
    at = data.draw(st.integers(0, len(token) - 1))
    new = data.draw(st.text(max_size=3))
    length = data.draw(st.integers(0, 3))
    changed = token[:at] + new + token[at + length :]
    if changed == token:
        assert verifier.verify(changed).subject == "alice"
        return

    with pytest.raises(TokenRejected):
        verifier.verify(changed)


@FUZZ
@given(
    name=st.sampled_from(["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "client_id", "scope", "x"]),
    value=json_values,
)
def test_any_value_of_a_signed_claim_is_judged(
    issuer: Issuer, verifier: TokenVerifier, name: str, value: object
) -> None:
    """Any value of a signed claim is accepted or rejected without an unexpected error."""
    token = make_token(claims(issuer.url, **{name: value}), "ES256", kid="e1")

    try:
        verified = verifier.verify(token)
    except TokenRejected:
        return
    assert verified.subject
    assert verified.issuer == issuer.url
    assert verified.expires_at is not None
    assert verified.expires_at + 30 > time.time()


@FUZZ
@given(header=st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jwk", "x"]), json_values))
def test_any_signed_header_is_judged(issuer: Issuer, verifier: TokenVerifier, header: dict[str, Any]) -> None:
    """Any header with a valid signature is accepted or rejected without an unexpected error."""
    token = sign_raw(b64(header), b64(claims(issuer.url)), "ES256")

    with pytest.raises(TokenRejected):
        verifier.verify(token)


@FUZZ
@given(values=st.lists(st.text() | st.from_regex(r"(?i:bearer) +[a-z.=, ]*", fullmatch=True), max_size=2))
def test_any_header_is_read_or_given_a_reason(values: list[str]) -> None:
    """Parsing a header returns a b64token from one unambiguous line, or the reason for its absence."""
    found = parse_credentials(values)

    if isinstance(found, Reason):
        assert found in (Reason.ABSENT, Reason.MALFORMED, Reason.AMBIGUOUS, Reason.TOO_LONG)
    else:
        assert len(values) == 1
        assert values[0].strip(" \t").lower().startswith("bearer ")
        assert values[0].strip(" \t").endswith(found)
        assert not set(found) & set(' \t,;"')
