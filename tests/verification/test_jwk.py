"""A key set determines which keys are used for which algorithms and which keys are skipped."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.algorithms import ALGORITHMS, DEFAULT_ALGORITHMS
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.settings import Settings
from otel_token_relay.verification import TokenRejected, TokenVerifier
from otel_token_relay.verification.jwk import KeySet, check_algorithms
from tests.support.issuers import Issuer, issuing
from tests.support.json_values import json_values
from tests.support.tokens import AUDIENCE, b64, claims, make_token, private_key, public_jwk, rsa_key

VECTORS = json.loads((Path(__file__).parent / "vectors" / "rfc7515_rfc8037.json").read_text())["vectors"]
ASYMMETRIC = [vector for vector in VECTORS if vector["jwk"]["kty"] != "oct"]
ALL = check_algorithms([*DEFAULT_ALGORITHMS, "ES512"])


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing(public_jwk("RS256", "k1")) as running:
        yield running


def decode(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


@pytest.mark.parametrize("vector", ASYMMETRIC, ids=lambda vector: vector["name"])
def test_signature_of_the_rfc_verifies_under_its_key_and_no_other(vector: Any) -> None:
    """The RFC's signature verifies with its own key from a key set and with no other key."""
    signing_input, _, signature = vector["jws"].rpartition(".")
    (key,) = KeySet.parse({"keys": [vector["jwk"]]}, ALL).find(None, vector["alg"])

    assert key.verifies(signing_input.encode(), decode(signature))
    assert not key.verifies(signing_input.encode() + b"A", decode(signature))
    broken = bytearray(decode(signature))
    broken[10] ^= 1
    assert not key.verifies(signing_input.encode(), bytes(broken))


def test_symmetric_key_of_a_key_set_is_not_used() -> None:
    """A symmetric key in a key set is not used."""
    vector = VECTORS[0]

    assert len(KeySet.parse({"keys": [vector["jwk"], vector["jwk"] | {"alg": "RS256"}]}, ALL)) == 0


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
    """Any document from an issuer is read or rejected without an unexpected exception."""
    try:
        found = KeySet.parse({"keys": keys}, ALL)
    except ValueError:
        assert not isinstance(keys, list)
    else:
        assert len(found) >= 0


def test_settings_and_verifier_know_the_same_algorithms() -> None:
    """The settings and the verifier share one list of algorithms, which does not need PyJWT."""
    assert check_algorithms(ALGORITHMS) == set(ALGORITHMS)
    assert Settings().algorithms == DEFAULT_ALGORITHMS
    with pytest.raises(ConfigurationError):
        check_algorithms(["HS256"])


def test_two_keys_of_one_kid_verify_nothing(issuer: Issuer) -> None:
    """Two keys with the same `kid` verify no token, because it would be unclear which key a token refers to."""
    issuer.keys = [public_jwk("RS256", "k1"), public_jwk("RS256", "k1", name="second"), public_jwk("ES256", "e1")]
    verifier = TokenVerifier([issuer.url], AUDIENCE)

    for name in ("first", "second"):
        with pytest.raises(TokenRejected, match="unknown_key"):
            verifier.verify(make_token(claims(issuer.url), name=name))


def pad(text: str) -> str:
    return text + "=" * (-len(text) % 4)


@pytest.mark.parametrize(
    ("alg", "change"),
    [
        pytest.param("RS256", lambda k: {"n": pad(k["n"]), "e": pad(k["e"])}, id="padding"),
        pytest.param("RS256", lambda k: {"n": k["n"].replace("-", "+").replace("_", "/")}, id="base64"),
        pytest.param("RS256", lambda k: {"n": b64(b"\0" + decode(k["n"]))}, id="leading zero"),
        pytest.param("RS256", lambda k: {"e": "AAEAAQ"}, id="leading zero of the exponent"),
        pytest.param("ES256", lambda k: {"x": pad(k["x"]), "y": pad(k["y"])}, id="padded coordinates"),
        pytest.param("ES256", lambda k: {"x": b64(b"\0" + decode(k["x"]))}, id="longer coordinate"),
        pytest.param("EdDSA", lambda k: {"x": pad(k["x"])}, id="padded Ed25519"),
        pytest.param("RS256", lambda k: {"use": "", "alg": "", "key_ops": []}, id="empty members"),
        pytest.param("RS256", lambda k: {"use": None, "alg": None, "key_ops": None, "x5c": None}, id="null"),
    ],
)
def test_a_readable_key_is_used_however_it_is_written(
    issuer: Issuer, alg: str, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    """An unambiguous key is used regardless of its encoding, for example, with the padding that Firebase used."""
    plain = public_jwk(alg, "k1")
    issuer.keys = [plain | change(plain)]
    verifier = TokenVerifier([issuer.url], AUDIENCE)

    assert verifier.verify(make_token(claims(issuer.url), alg)).subject == "alice"
    assert len(KeySet.parse({"keys": [plain, plain | change(plain)]}, check_algorithms([alg]))) >= 1


def test_a_short_coordinate_is_filled_up() -> None:
    """A short coordinate is padded, because some issuers omit the leading zero octets that RFC 7518, section 6.2.1.2,
    requires.
    """
    key = next(k for k in (ec.generate_private_key(ec.SECP256R1()) for _ in range(5000)) if _starts_with_zero(k))
    jwk = public_jwk("ES256", "k1", key=key)
    short = jwk | {name: b64(decode(jwk[name]).lstrip(b"\0")) for name in ("x", "y")}

    assert short != jwk
    assert len(KeySet.parse({"keys": [short]}, ALL)) == 1
    assert KeySet.parse({"keys": [short]}, ALL).contents == KeySet.parse({"keys": [jwk]}, ALL).contents


def _starts_with_zero(key: ec.EllipticCurvePrivateKey) -> bool:
    return key.public_key().public_numbers().x < 2**248


def test_an_empty_kid_is_no_kid(issuer: Issuer) -> None:
    """A key's empty or null `kid` is treated as missing, and a token without `kid` is not verified by a key that has
    one.
    """
    for kid in ("", None):
        issuer.keys = [public_jwk("RS256") | {"kid": kid}]
        token = make_token(claims(issuer.url), kid=None)
        assert TokenVerifier([issuer.url], AUDIENCE).verify(token).subject == "alice"

    issuer.keys = [public_jwk("RS256", "k1")]
    with pytest.raises(TokenRejected, match=r"unknown_key \(kid\)"):
        TokenVerifier([issuer.url], AUDIENCE).verify(make_token(claims(issuer.url), kid=None))


def test_duplicate_key_verifies(issuer: Issuer) -> None:
    """The same key for two algorithms is not ambiguous."""
    issuer.keys = [public_jwk("RS256", "k1"), public_jwk("RS256", "k1", alg="PS256"), public_jwk("RS256", "k1")]
    verifier = TokenVerifier([issuer.url], AUDIENCE)

    for alg in ("RS256", "PS256"):
        assert verifier.verify(make_token(claims(issuer.url), alg)).subject == "alice"


@pytest.mark.parametrize("names", [[], "RS256", ["RS256", "HS256"], ["none"], ["rs256"], ["Ed448"]], ids=repr)
def test_an_algorithm_that_is_not_asymmetric_is_an_error(names: Any) -> None:
    """A symmetric algorithm is an error, because every client could sign tokens with the public key."""
    with pytest.raises(ConfigurationError) as rejected:
        check_algorithms(names)

    assert rejected.value.setting == "algorithms"


def test_eddsa_and_ed25519_are_one_algorithm() -> None:
    """RFC 9864 renames EdDSA with the Ed25519 curve, and the new name does not allow the Ed448 curve."""
    assert check_algorithms(["EdDSA"]) == {"EdDSA", "Ed25519"}
    assert check_algorithms(["Ed25519"]) == {"Ed25519"}
    keys = KeySet.parse(
        {"keys": [public_jwk("Ed25519", "a"), public_jwk("Ed448", "b", alg="EdDSA")]}, check_algorithms(["EdDSA"])
    )

    assert [len(keys.find(kid, alg)) for kid in ("a", "b") for alg in ("EdDSA", "Ed25519")] == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("build", "usable_for"),
    [
        pytest.param(lambda: public_jwk("RS256", "k"), {"RS256"}, id="RSA for one algorithm"),
        pytest.param(lambda: public_jwk("RS256", "k", alg=None), {"RS256", "PS256"}, id="RSA for any"),
        pytest.param(lambda: public_jwk("ES256", "k", alg=None, use=None), {"ES256"}, id="EC for its curve"),
        pytest.param(lambda: public_jwk("ES512", "k"), {"ES512"}, id="P-521"),
        pytest.param(lambda: public_jwk("RS256", "k", use=None, key_ops=["verify"]), {"RS256"}, id="for verifying"),
        pytest.param(
            lambda: public_jwk("RS256", "k", x5c=["MIIB"], d="AQAB", p="AQAB"), {"RS256"}, id="private members"
        ),
        pytest.param(lambda: public_jwk("RS256", "k", use="enc"), set(), id="for encryption"),
        pytest.param(lambda: public_jwk("RS256", "k", use=None, key_ops=["sign"]), set(), id="for signing"),
        pytest.param(lambda: public_jwk("RS256", "k", use=None, key_ops="verify"), set(), id="operations as text"),
        pytest.param(lambda: public_jwk("RS512", "k"), set(), id="an algorithm that is not allowed"),
        pytest.param(lambda: public_jwk("ES256", "k", alg="ES384"), set(), id="the algorithm of another curve"),
        pytest.param(lambda: public_jwk("ES256", "k", alg="RS256"), set(), id="the algorithm of another type"),
        pytest.param(lambda: public_jwk("ES256K", "k", alg=None), set(), id="a curve that is not allowed"),
        pytest.param(lambda: public_jwk("RS256", "k", key=rsa_key(1024)), set(), id="too short"),
        pytest.param(lambda: public_jwk("RS256", "k", n="A" * 1367), set(), id="too long"),
        pytest.param(lambda: public_jwk("RS256", "k") | {"e": "AQ AB"}, set(), id="white space"),
        pytest.param(lambda: public_jwk("RS256", "k") | {"n": ""}, set(), id="empty modulus"),
        pytest.param(lambda: public_jwk("RS256", "k") | {"n": 3}, set(), id="modulus a number"),
        pytest.param(lambda: public_jwk("RS256", "k", e=None), set(), id="no exponent"),
        pytest.param(lambda: public_jwk("ES256", "k") | {"x": "AAAA"}, set(), id="not on the curve"),
        pytest.param(lambda: public_jwk("RS256", "k") | {"kid": 1}, set(), id="kid a number"),
        pytest.param(lambda: public_jwk("ES256", "k") | {"crv": ["P-256"]}, set(), id="curve a list"),
        pytest.param(lambda: {"kty": "oct", "kid": "k", "k": b64(bytes(32)), "alg": "RS256"}, set(), id="symmetric"),
        pytest.param(lambda: "k", set(), id="no object"),
    ],
)
def test_a_key_verifies_only_what_it_is_published_for(build: Callable[[], Any], usable_for: set[str]) -> None:
    """A key that is broken, weak, or published for a different purpose is skipped, and the other keys are used."""
    keys = KeySet.parse({"keys": [build(), public_jwk("EdDSA", "other")]}, ALL)

    assert {name for name in ALGORITHMS if keys.find("k", name)} == usable_for
    assert keys.knows("k") is bool(usable_for)
    assert len(keys.find("other", "EdDSA")) == 1
    assert not keys.find(None, "EdDSA")
    assert not keys.knows(None)


@pytest.mark.parametrize("document", [{}, {"keys": None}, {"keys": {}}, {"keys": "k1"}], ids=repr)
def test_a_document_without_a_list_of_keys_is_an_error(document: dict[str, Any]) -> None:
    """A document without a list of keys is an error, because an empty key set would withdraw the current keys."""
    with pytest.raises(ValueError, match="expected a JWK set"):
        KeySet.parse(document, ALL)
    assert len(KeySet.parse({"keys": []}, ALL)) == 0


def test_equal_key_sets_have_equal_contents() -> None:
    """Key sets with the same keys and key IDs are equal, regardless of the order and of other members."""
    one, two = public_jwk("RS256", "k1"), public_jwk("ES256", "e1")
    contents = KeySet.parse({"keys": [one, two]}, ALL).contents

    assert KeySet.parse({"keys": [two | {"x5t": "AAAA"}, one, one]}, ALL).contents == contents
    assert len(contents) == 2
    for changed in ([one], [one, two | {"kid": "e2"}], [public_jwk("RS256", "k1", name="second"), two]):
        assert KeySet.parse({"keys": changed}, ALL).contents != contents


def test_a_key_that_raises_verifies_nothing() -> None:
    """A signature of the wrong length or type, for which a key raises an error, is invalid."""
    keys = KeySet.parse({"keys": [public_jwk("ES256", "e1"), public_jwk("EdDSA", "d1")]}, ALL)
    signature = private_key("EdDSA", "first").sign(b"signed")

    assert keys.find("d1", "EdDSA")[0].verifies(b"signed", signature)
    for key in (*keys.find("e1", "ES256"), *keys.find("d1", "EdDSA")):
        for broken in (b"", b"\0", bytes(64), signature + b"\0", signature[:-1], None):
            assert not key.verifies(b"signed", broken)  # type: ignore[arg-type]
