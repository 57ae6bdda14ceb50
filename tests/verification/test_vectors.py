"""The examples of the RFCs, and fuzzing: any input raises `TokenRejected` or nothing."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_token_relay.algorithms import DEFAULT_ALGORITHMS
from otel_token_relay.credentials import parse_credentials
from otel_token_relay.errors import TokenRejected
from otel_token_relay.reasons import Reason
from otel_token_relay.verification import TokenVerifier
from otel_token_relay.verification.jwk import KeySet, check_algorithms
from otel_token_relay.verification.jws import looks_like_jws, parse_jws, parse_object
from otel_token_relay.verification.metadata import fresh_seconds, read_metadata
from tests.support.issuers import Issuer, issuing
from tests.support.tokens import AUDIENCE, b64, claims, make_token, public_jwk, sign_raw

VECTORS = json.loads((Path(__file__).parent / "vectors" / "rfc7515_rfc8037.json").read_text())["vectors"]
ASYMMETRIC = [vector for vector in VECTORS if vector["jwk"]["kty"] != "oct"]
ALL = check_algorithms([*DEFAULT_ALGORITHMS, "ES512"])
FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def decode(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


@pytest.mark.parametrize("vector", ASYMMETRIC, ids=lambda vector: vector["name"])
def test_signature_of_the_rfc_verifies_under_its_key_and_no_other(vector: Any) -> None:
    """A key from a key set agrees with the RFC, down to the bit."""
    signing_input, _, signature = vector["jws"].rpartition(".")
    (key,) = KeySet.parse({"keys": [vector["jwk"]]}, ALL).find(None, vector["alg"])

    assert key.verifies(signing_input.encode(), decode(signature))
    assert not key.verifies(signing_input.encode() + b"A", decode(signature))
    broken = bytearray(decode(signature))
    broken[10] ^= 1
    assert not key.verifies(signing_input.encode(), bytes(broken))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_example_of_the_rfc_is_no_access_token(vector: Any) -> None:
    """No verifier accepts any of the examples, least of all the unsecured and the symmetric one."""
    with issuing(vector["jwk"]) as issuer, pytest.raises(TokenRejected):
        TokenVerifier([issuer.url], AUDIENCE).verify(vector["jws"])


def test_symmetric_key_of_a_key_set_is_not_used() -> None:
    """A key set with a secret contains no key that could verify a token."""
    vector = VECTORS[0]

    assert len(KeySet.parse({"keys": [vector["jwk"], vector["jwk"] | {"alg": "RS256"}]}, ALL)) == 0


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


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=10,
)


@FUZZ
@given(text=st.text() | st.from_regex(r"[A-Za-z0-9_-]*(\.[A-Za-z0-9_-]*){0,4}", fullmatch=True))
def test_any_text_is_refused(verifier: TokenVerifier, text: str) -> None:
    """Only tokens are accepted, and no text raises another error."""
    with pytest.raises(TokenRejected):
        verifier.verify(text)


@FUZZ
@given(header=st.binary(max_size=60), payload=st.binary(max_size=60), signature=st.binary(max_size=70))
def test_any_segments_are_refused(verifier: TokenVerifier, header: bytes, payload: bytes, signature: bytes) -> None:
    """Well-formed base64url of anything."""
    with pytest.raises(TokenRejected):
        verifier.verify(".".join(map(b64, (header, payload, signature))))


@FUZZ
@given(data=st.data())
def test_no_change_of_a_token_survives(issuer: Issuer, verifier: TokenVerifier, data: st.DataObject) -> None:
    """A token with a replaced, inserted or removed character is another token, and invalid."""
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
    """The issuer itself may send nonsense: it is accepted or rejected, never an error."""
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
    """A header of any form, with a valid signature."""
    token = sign_raw(b64(header), b64(claims(issuer.url)), "ES256")

    with pytest.raises(TokenRejected):
        verifier.verify(token)


@FUZZ
@given(
    keys=json_values
    | st.lists(
        st.dictionaries(
            st.sampled_from(["kty", "kid", "alg", "crv", "use", "key_ops", "n", "e", "x", "y", "d", "k"]),
            json_values
            | st.sampled_from(["RSA", "EC", "OKP", "oct", "P-256", "Ed25519", "RS256", "ES256", "sig", "AQAB", "a"]),
        )
    )
)
def test_any_key_set_is_read_or_refused(keys: object) -> None:
    """An issuer may publish nonsense: it contains no key and raises no other exception."""
    try:
        found = KeySet.parse({"keys": keys}, ALL)
    except ValueError:
        assert not isinstance(keys, list)
    else:
        assert len(found) >= 0


@FUZZ
@given(document=st.dictionaries(st.sampled_from(["issuer", "jwks_uri"]), json_values), control=st.text())
def test_any_metadata_is_read_or_not_believed(document: dict[str, Any], control: str) -> None:
    """Metadata and headers of any form."""
    assert read_metadata(document, "https://idp.example") is None
    assert 30.0 <= fresh_seconds({"cache-control": control, "age": control}) <= 86400.0


@FUZZ
@given(data=st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_strict_json_never_says_other_than_json(data: bytes) -> None:
    """The standard parser reads every text that the strict parser accepts in the same way."""
    try:
        value = parse_object(data)
    except ValueError:
        return
    assert value == json.loads(data)


@FUZZ
@given(text=st.text())
def test_reading_a_token_agrees_with_itself(text: str) -> None:
    """Every text that can be parsed as a JWS looks like one."""
    try:
        parse_jws(text, max_length=16384)
    except TokenRejected:
        return
    assert looks_like_jws(text)


@FUZZ
@given(values=st.lists(st.text() | st.from_regex(r"(?i:bearer) +[a-z.=, ]*", fullmatch=True), max_size=2))
def test_any_header_is_read_or_given_a_reason(values: list[str]) -> None:
    """Parsing returns a b64token from one unambiguous line, or the reason why there is none."""
    found = parse_credentials(values)

    if isinstance(found, Reason):
        assert found in (Reason.ABSENT, Reason.MALFORMED, Reason.AMBIGUOUS, Reason.TOO_LONG)
    else:
        assert len(values) == 1
        assert values[0].strip(" \t").lower().startswith("bearer ")
        assert values[0].strip(" \t").endswith(found)
        assert not set(found) & set(' \t,;"')
