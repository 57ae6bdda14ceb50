"""Check that the verifier rejects every token in the attack corpus, raises no other exception, and accepts valid
tokens.

This module creates the keys, the tokens, and the issuer. Each case uses a verifier that fetched its keys over HTTP,
as in production.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from otel_token_relay.verification import TokenRejected, TokenVerifier
from tests.support.issuers import Issuer, issuing
from tests.support.tokens import (
    AUDIENCE,
    b64,
    claims,
    hmac_token,
    make_token,
    private_key,
    public_jwk,
    rsa_key,
    sign_raw,
    unsigned,
)

NOW = int(time.time())
Case = Callable[["World"], str]


class World:
    """An issuer with keys of every kind, and the verifiers that trust the issuer."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        algorithms = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "ES512", "ES256K", "EdDSA")
        self.rfc9068 = TokenVerifier([issuer.url], AUDIENCE, algorithms, cooldown=3600.0)
        self.generic = TokenVerifier([issuer.url], AUDIENCE, algorithms, "generic", cooldown=3600.0)
        self.default = TokenVerifier([issuer.url, "https://other.example"], AUDIENCE, cooldown=3600.0)

    def claims(self, **changes: Any) -> dict[str, Any]:
        return claims(self.issuer.url, **changes)

    def token(self, alg: str = "RS256", **members: Any) -> str:
        return make_token(self.claims(), alg, **members)

    def saying(self, **changes: Any) -> str:
        """Return a correctly signed token with changed claims; ``...`` removes a claim."""
        return make_token(self.claims(**changes))

    def raw(self, payload: str | bytes) -> str:
        """Return a correctly signed token with this payload."""
        return make_token(payload)

    def with_member(self, text: str) -> str:
        """Return a correctly signed token whose payload ends with *text*, verbatim."""
        return make_token(json.dumps(self.claims())[:-1] + f", {text}}}")

    def instead(self, name: str, text: str) -> str:
        """Return a correctly signed token in which the value of one claim is *text*, verbatim."""
        return make_token(json.dumps(self.claims(**{name: ...}))[:-1] + f', "{name}": {text}}}')


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    keys = [
        public_jwk("RS256", "k1", alg=None),
        public_jwk("ES256", "e1"),
        public_jwk("ES384", "e3"),
        public_jwk("ES512", "e5"),
        public_jwk("ES256K", "ek"),
        public_jwk("EdDSA", "d1"),
        public_jwk("Ed25519", "d2", key=private_key("EdDSA", "second")),
        public_jwk("Ed448", "d4", alg="EdDSA"),
        public_jwk("RS256", "enc", name="second", use="enc"),
        public_jwk("RS256", "signs", name="second", use=None, key_ops=["sign"]),
        public_jwk("RS256", "only512", name="second", alg="RS512"),
        public_jwk("RS256", "short", key=rsa_key(1024)),
        public_jwk("RS256", "twice", name="first"),
        public_jwk("RS256", "twice", name="second"),
        {"kty": "oct", "kid": "oct", "k": b64(b"a secret of more than 32 bytes, in a public place"), "alg": "HS256"},
        public_jwk("RS256", "leaks", name="second", d="AQAB", p="AQAB"),
        {"kty": "RSA", "kid": "broken", "n": "", "e": "AQAB"},
        "not even an object",
    ]
    with issuing(*keys) as issuer:  # type: ignore[arg-type]
        found = World(issuer)
        for verifier in (found.rfc9068, found.generic, found.default):
            verifier.verify(found.token())
        yield found


def der_of(alg: str, kid: str) -> Case:
    def case(world: World) -> str:
        header, payload, signature = make_token(world.claims(), alg, kid=kid).split(".")
        raw = base64.urlsafe_b64decode(signature + "==")
        half = len(raw) // 2
        der = encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))
        return f"{header}.{payload}.{b64(der)}"

    return case


def cut(world: World, *, segment: int, by: int) -> str:
    parts = world.token().split(".")
    parts[segment] = parts[segment][:-by]
    return ".".join(parts)


def flip(world: World, *, segment: int) -> str:
    """Change one character in the middle of a segment, so that it remains base64url."""
    parts = world.token().split(".")
    middle = len(parts[segment]) // 2
    other = "A" if parts[segment][middle] != "A" else "B"
    parts[segment] = parts[segment][:middle] + other + parts[segment][middle + 1 :]
    return ".".join(parts)


def swap_payload(world: World, **changes: Any) -> str:
    header, _, signature = world.token().split(".")
    return f"{header}.{b64(world.claims(**changes))}.{signature}"


def pem(format: serialization.PublicFormat, encoding: serialization.Encoding) -> bytes:
    return private_key("RS256").public_key().public_bytes(encoding, format)


def confused(alg: str, secret: Callable[[World], bytes], **members: Any) -> Case:
    def case(world: World) -> str:
        header = {"alg": alg, "typ": "at+jwt", "kid": "k1"} | members
        return hmac_token(header, world.claims(), secret(world))

    return case


def set_unused_bits(token: str, segment: int) -> str:
    """Encode the same bytes differently by setting the unused bits of the last character."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    parts = token.split(".")
    assert len(parts[segment]) % 4, "this segment has no unused bits"
    parts[segment] = parts[segment][:-1] + alphabet[alphabet.index(parts[segment][-1]) | 1]
    return ".".join(parts)


def resigned(header: str, payload: str) -> str:
    return sign_raw(header, payload)


_PEM = serialization.Encoding.PEM
_DER = serialization.Encoding.DER
_SPKI = serialization.PublicFormat.SubjectPublicKeyInfo
_PKCS1 = serialization.PublicFormat.PKCS1
GOOD_HEADER = {"alg": "RS256", "typ": "at+jwt", "kid": "k1"}

NO_SIGNATURE: dict[str, Case] = {
    **{
        f"alg {name!r} without a signature": lambda w, name=name: unsigned(GOOD_HEADER | {"alg": name}, w.claims())
        for name in ("none", "None", "NONE", "nOnE", "", " none", "none ")
    },
    **{
        f"alg {name!r} with the signature of another token": lambda w, name=name: unsigned(
            GOOD_HEADER | {"alg": name}, w.claims(), w.token().split(".")[2]
        )
        for name in ("none", "NONE")
    },
    "alg null": lambda w: unsigned(GOOD_HEADER | {"alg": None}, w.claims(), "AAAA"),
    "alg missing": lambda w: make_token(w.claims(), header={"typ": "at+jwt", "kid": "k1"}),
    "alg a list": lambda w: make_token(w.claims(), alg="RS256", header=GOOD_HEADER | {"alg": ["RS256"]}),
    "alg a number": lambda w: make_token(w.claims(), header=GOOD_HEADER | {"alg": 256}),
    "alg an object": lambda w: make_token(w.claims(), header=GOOD_HEADER | {"alg": {"RS256": 1}}),
    "alg in lower case": lambda w: make_token(w.claims(), header=GOOD_HEADER | {"alg": "rs256"}),
    "alg with a NUL": lambda w: make_token(w.claims(), header=GOOD_HEADER | {"alg": "RS256\0"}),
    "alg unknown": lambda w: make_token(w.claims(), header=GOOD_HEADER | {"alg": "RS1024"}),
    "empty signature": lambda w: ".".join([*w.token().split(".")[:2], ""]),
    "signature of zeros": lambda w: unsigned(GOOD_HEADER, w.claims(), b64(bytes(256))),
    "signature of one byte": lambda w: unsigned(GOOD_HEADER, w.claims(), b64(b"\1")),
    "no signature segment": lambda w: w.token().rpartition(".")[0],
}

CONFUSION: dict[str, Case] = {
    **{
        f"{alg} under the PEM of the RSA key": confused(alg, lambda w: pem(_SPKI, _PEM))
        for alg in ("HS256", "HS384", "HS512")
    },
    "HS256 under the PEM without its last line break": confused("HS256", lambda w: pem(_SPKI, _PEM).rstrip()),
    "HS256 under the PKCS#1 PEM": confused("HS256", lambda w: pem(_PKCS1, _PEM)),
    "HS256 under the DER": confused("HS256", lambda w: pem(_SPKI, _DER)),
    "HS256 under the modulus as text": confused("HS256", lambda w: public_jwk("RS256")["n"].encode()),
    "HS256 under the modulus as bytes": confused(
        "HS256", lambda w: base64.urlsafe_b64decode(public_jwk("RS256")["n"] + "==")
    ),
    "HS256 under the JWK": confused("HS256", lambda w: json.dumps(public_jwk("RS256", "k1")).encode()),
    "HS256 under the key set": confused("HS256", lambda w: json.dumps({"keys": [public_jwk("RS256", "k1")]}).encode()),
    "HS256 under an empty secret": confused("HS256", lambda w: b""),
    "HS256 under a secret that the key set publishes": confused(
        "HS256", lambda w: b"a secret of more than 32 bytes, in a public place", kid="oct"
    ),
    "RS256 in the header, HMAC in the signature": lambda w: hmac_as_rs256(w),
    "ES256 with the kid of an RSA key": lambda w: make_token(w.claims(), "ES256", kid="k1"),
    "RS256 with the kid of an EC key": lambda w: make_token(w.claims(), "RS256", kid="e1"),
    "EdDSA with the kid of an EC key": lambda w: make_token(w.claims(), "EdDSA", kid="e1"),
    "ES256 in the header, key on P-384": lambda w: make_token(w.claims(), "ES256", kid="e3", key=private_key("ES384")),
    "ES384 with the kid of a P-256 key": lambda w: make_token(w.claims(), "ES384", kid="e1"),
    "ES256K with the kid of a P-256 key": lambda w: make_token(w.claims(), "ES256K", kid="e1"),
    "RS256 by a key that is for RS512": lambda w: make_token(w.claims(), "RS256", kid="only512", name="second"),
    "PS384, which is not on the list": lambda w: make_token(w.claims(), "PS384"),
    "PS256 in the header, PKCS#1 v1.5 in the signature": lambda w: make_token(
        w.claims(), header=GOOD_HEADER | {"alg": "PS256"}
    ),
    "RS256 in the header, PSS in the signature": lambda w: make_token(w.claims(), "PS256", header=GOOD_HEADER),
    "RS512 in the header, SHA-256 in the signature": lambda w: make_token(
        w.claims(), header=GOOD_HEADER | {"alg": "RS512"}
    ),
    "Ed448 in the header": lambda w: make_token(w.claims(), "Ed448", kid="d4"),
    "Ed25519 in the header, key on Ed448": lambda w: make_token(
        w.claims(), "Ed448", header=GOOD_HEADER | {"alg": "Ed25519", "kid": "d4"}
    ),
}


def hmac_as_rs256(world: World) -> str:
    _, payload, signature = hmac_token(
        {"alg": "HS256", "typ": "at+jwt", "kid": "k1"}, world.claims(), pem(_SPKI, _PEM)
    ).split(".")
    return f"{b64(GOOD_HEADER)}.{payload}.{signature}"


KEY_NAMES: dict[str, Case] = {
    **{
        f"kid {text!r}"[:60]: lambda w, text=text: w.token(kid=text)
        for text in (
            "",
            "unknown",
            "../../../../dev/null",
            "k1' OR '1'='1",
            "k1\0",
            "k1\n",
            "K1",
            " k1",
            "http://evil.example/jwks",
            "x" * 8000,
            "\uff4b1",
        )
    },
    "kid null": lambda w: make_token(w.claims(), header=GOOD_HEADER | {"kid": None}),
    "kid a list": lambda w: make_token(w.claims(), header=GOOD_HEADER | {"kid": ["k1"]}),
    "kid a number": lambda w: make_token(w.claims(), header=GOOD_HEADER | {"kid": 1}),
    "kid an object": lambda w: make_token(w.claims(), header=GOOD_HEADER | {"kid": {"k1": 1}}),
    "kid missing where keys have one": lambda w: w.token(kid=None),
    "kid of a key for encryption": lambda w: w.token(kid="enc", name="second"),
    "kid of a key that is not for verifying": lambda w: w.token(kid="signs", name="second"),
    "kid of a key that is too short": lambda w: w.token(kid="short", key=rsa_key(1024)),
    "kid that two keys share, the first": lambda w: w.token(kid="twice", name="first"),
    "kid that two keys share, the second": lambda w: w.token(kid="twice", name="second"),
    "kid of a broken key": lambda w: w.token(kid="broken"),
    "kid of another key": lambda w: w.token(kid="leaks"),
}

OWN_KEYS: dict[str, Case] = {
    "jwk of the attacker": lambda w: w.token(name="evil", jwk=public_jwk("RS256", "k1", name="evil")),
    "jwk of the attacker and no kid": lambda w: w.token(name="evil", kid=None, jwk=public_jwk("RS256", name="evil")),
    "jku of the attacker": lambda w: w.token(name="evil", jku="https://evil.example/jwks"),
    "jku on our own host": lambda w: w.token(name="evil", jku=f"{w.issuer.url}/uploads/jwks"),
    "x5u of the attacker": lambda w: w.token(name="evil", x5u="https://evil.example/cert"),
    "x5c of the attacker": lambda w: w.token(name="evil", x5c=["MIIB"]),
    "x5t of the attacker": lambda w: w.token(name="evil", x5t="AAAA"),
    "key of the attacker under our kid": lambda w: w.token(name="evil"),
}

SIGNATURES: dict[str, Case] = {
    "psychic: r = s = 0": lambda w: unsigned(GOOD_HEADER | {"alg": "ES256", "kid": "e1"}, w.claims(), b64(bytes(64))),
    "psychic: r = s = order of the curve": lambda w: unsigned(
        GOOD_HEADER | {"alg": "ES256", "kid": "e1"},
        w.claims(),
        b64(bytes.fromhex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551") * 2),
    ),
    "psychic on P-384": lambda w: unsigned(GOOD_HEADER | {"alg": "ES384", "kid": "e3"}, w.claims(), b64(bytes(96))),
    "DER instead of raw, P-256": der_of("ES256", "e1"),
    "DER instead of raw, P-521": der_of("ES512", "e5"),
    "raw signature with a zero in front": lambda w: _pad_halves(make_token(w.claims(), "ES256", kid="e1")),
    "EC signature cut": lambda w: make_token(w.claims(), "ES256", kid="e1")[:-4],
    "EdDSA signature of zeros": lambda w: unsigned(
        GOOD_HEADER | {"alg": "EdDSA", "kid": "d1"}, w.claims(), b64(bytes(64))
    ),
    "EdDSA signature of 63 bytes": lambda w: _resize(make_token(w.claims(), "EdDSA", kid="d1"), -1),
    "EdDSA signature of 65 bytes": lambda w: _resize(make_token(w.claims(), "EdDSA", kid="d1"), 1),
    "RSA signature with a zero in front": lambda w: _resize(w.token(), 1, front=True),
    "RSA signature cut": lambda w: _resize(w.token(), -1),
    "a bit of the signature": lambda w: flip(w, segment=2),
    "a bit of the payload": lambda w: flip(w, segment=1),
    "a bit of the header": lambda w: flip(w, segment=0),
    "another payload, the same signature": lambda w: swap_payload(w, sub="admin"),
    "later exp, the same signature": lambda w: swap_payload(w, exp=NOW + 99999),
    "header and payload swapped": lambda w: ".".join([w.token().split(".")[i] for i in (1, 0, 2)]),
}


def _resize(token: str, by: int, *, front: bool = False) -> str:
    start, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    raw = raw[:by] if by < 0 else (bytes(by) + raw if front else raw + bytes(by))
    return f"{start}.{b64(raw)}"


def _pad_halves(token: str) -> str:
    start, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    return f"{start}.{b64(bytes(1) + raw[:32] + bytes(1) + raw[32:])}"


EXTENSIONS: dict[str, Case] = {
    "crit names exp": lambda w: w.token(crit=["exp"], exp=NOW + 600),
    "crit names an unknown member": lambda w: w.token(crit=["urn:example"], **{"urn:example": 1}),
    "crit empty": lambda w: w.token(crit=[]),
    "crit null": lambda w: make_token(w.claims(), header=GOOD_HEADER | {"crit": None}),
    "crit a text": lambda w: w.token(crit="exp"),
    "crit names alg": lambda w: w.token(crit=["alg"]),
    "crit names b64, which is true": lambda w: w.token(crit=["b64"], b64=True),
    "b64 false and critical": lambda w: w.token(crit=["b64"], b64=False),
    "b64 false": lambda w: w.token(b64=False),
}

TYPES: dict[str, Case] = {
    **{
        f"typ {text!r}": lambda w, text=text: w.token(typ=text)
        for text in ("JWT", "jwt", "dpop+jwt", "logout+jwt", "secevent+jwt", "token-introspection+jwt", "", " at+jwt")
    },
    "typ at+jwt\\0": lambda w: w.token(typ="at+jwt\0"),
    "typ missing": lambda w: w.token(typ=...),
    "typ null": lambda w: make_token(w.claims(), header=GOOD_HEADER | {"typ": None}),
    "typ a list": lambda w: w.token(typ=["at+jwt"]),
    "typ a number": lambda w: w.token(typ=1),
    "typ at+jwt in Turkish": lambda w: w.token(typ="at+ĵwt"),
}

JSON: dict[str, Case] = {
    "two alg, none last": lambda w: make_token(
        w.claims(), header='{"alg":"RS256","typ":"at+jwt","kid":"k1","alg":"none"}'
    ),
    "two alg, RS256 last": lambda w: make_token(
        w.claims(), header='{"alg":"none","typ":"at+jwt","kid":"k1","alg":"RS256"}'
    ),
    "two kid": lambda w: make_token(w.claims(), header='{"alg":"RS256","typ":"at+jwt","kid":"k2","kid":"k1"}'),
    "two sub": lambda w: w.with_member('"sub": "admin"'),
    "two sub, one with an escape": lambda w: w.with_member('"s\\u0075b": "admin"'),
    "two aud": lambda w: w.with_member('"aud": "profile-service"'),
    "two exp": lambda w: w.with_member(f'"exp": {NOW + 99999}'),
    "two members within a claim": lambda w: w.with_member('"act": {"sub": "a", "sub": "b"}'),
    "header with a BOM": lambda w: make_token(w.claims(), header=b"\xef\xbb\xbf" + json.dumps(GOOD_HEADER).encode()),
    "payload with a BOM": lambda w: w.raw(b"\xef\xbb\xbf" + json.dumps(w.claims()).encode()),
    "payload in UTF-16": lambda w: w.raw(json.dumps(w.claims()).encode("utf-16")),
    "payload in UTF-16LE": lambda w: w.raw(json.dumps(w.claims()).encode("utf-16-le")),
    "payload in UTF-32": lambda w: w.raw(json.dumps(w.claims()).encode("utf-32")),
    "header in UTF-16": lambda w: make_token(w.claims(), header=json.dumps(GOOD_HEADER).encode("utf-16-be")),
    "payload in Latin-1": lambda w: w.raw(json.dumps(w.claims(sub="é"), ensure_ascii=False).encode("latin-1")),
    "overlong UTF-8": lambda w: w.raw(json.dumps(w.claims()).encode().replace(b"alice", b"a\xc0\xaflice")),
    "surrogate as UTF-8": lambda w: w.raw(json.dumps(w.claims()).encode().replace(b"alice", b"a\xed\xa0\x80lice")),
    "lone surrogate in sub": lambda w: w.instead("sub", '"alice\\ud800"'),
    "lone surrogate elsewhere": lambda w: w.with_member('"name": ["\\udfff"]'),
    "lone surrogate in a name": lambda w: w.with_member('"\\ud800": 1'),
    "NaN": lambda w: w.with_member('"x": NaN'),
    "Infinity": lambda w: w.with_member('"x": Infinity'),
    "-Infinity": lambda w: w.with_member('"x": -Infinity'),
    "1e400": lambda w: w.with_member('"x": 1e400'),
    "an integer of 400 digits": lambda w: w.with_member('"x": ' + "9" * 400),
    "an integer of 5000 digits": lambda w: w.with_member('"x": ' + "9" * 5000),
    "comment": lambda w: w.with_member('"x": 1 /* no */'),
    "comma at the end": lambda w: w.raw(json.dumps(w.claims())[:-1] + ",}"),
    "single quotes": lambda w: w.raw(json.dumps(w.claims()).replace('"', "'")),
    "raw control character in a text": lambda w: w.with_member('"x": "a\nb"'),
    "something after the object": lambda w: w.raw(json.dumps(w.claims()) + "{}"),
    "NUL after the object": lambda w: w.raw(json.dumps(w.claims()) + "\0"),
    "payload a list": lambda w: w.raw(json.dumps([w.claims()])),
    "payload a text": lambda w: w.raw('"claims"'),
    "payload null": lambda w: w.raw("null"),
    "payload a number": lambda w: w.raw("1"),
    "payload no JSON": lambda w: w.raw(b"\x80\x81\x82"),
    "payload empty object": lambda w: w.raw("{}"),
    "header a list": lambda w: make_token(w.claims(), header='["RS256"]'),
    "header null": lambda w: make_token(w.claims(), header="null"),
    "header no JSON": lambda w: make_token(w.claims(), header="alg: RS256"),
    "33 deep": lambda w: w.with_member('"x": ' + "[" * 33 + "]" * 33),
    "5000 deep": lambda w: w.with_member('"x": ' + "[" * 5000 + "]" * 5000),
    "5000 deep and never closed": lambda w: w.raw("[" * 5000),
    "5000 objects deep": lambda w: w.raw('{"a":' * 1500 + "1" + "}" * 1500),
    "header 3000 deep": lambda w: make_token(w.claims(), header='{"alg":"RS256","x":' + "[" * 3000 + "]" * 3000 + "}"),
}

SIZES: dict[str, Case] = {
    "one character too long": lambda w: w.token() + "A" * (16385 - len(w.token())),
    "1 MB of payload": lambda w: w.saying(x="A" * 1_000_000),
    "8 MB of signature": lambda w: w.token() + "A" * 8_000_000,
    "1 MB of dots": lambda w: "." * 1_000_000,
    "10 000 dots": lambda w: "a." * 5000,
    "1 MB deep": lambda w: b64("[" * 1_000_000) + ".e30.AA",
    "100 kB of kid": lambda w: w.token(kid="k" * 100_000),
}

SPELLINGS: dict[str, Case] = {
    "padding": lambda w: w.token() + "==",
    "padding within": lambda w: w.token().replace(".", "=.", 1),
    "base64 instead of base64url": lambda w: w.token().replace("-", "+").replace("_", "/").replace(".", ".//", 1),
    "line break at the end": lambda w: w.token() + "\n",
    "space at the end": lambda w: w.token() + " ",
    "space in front": lambda w: " " + w.token(),
    "space within": lambda w: w.token().replace(".", ". ", 1),
    "line break within": lambda w: w.token()[:40] + "\n" + w.token()[40:],
    "NUL within": lambda w: w.token()[:40] + "\0" + w.token()[40:],
    "junk within": lambda w: w.token()[:40] + "!" + w.token()[40:],
    "full-width letter": lambda w: w.token()[:40] + "\uff21" + w.token()[40:],
    "surrogate within": lambda w: w.token()[:40] + "\ud800" + w.token()[40:],
    "unused bits of the signature": lambda w: set_unused_bits(w.token(), 2),
    "unused bits of the payload": lambda w: _unused_bits_resigned(w),
    "one character of payload": lambda w: resigned(b64(GOOD_HEADER), b64(w.claims()) + "A"),
    "cut by one": lambda w: cut(w, segment=2, by=1),
    "four segments": lambda w: w.token() + ".AAAA",
    "five segments, as encrypted": lambda w: w.token() + ".AAAA.AAAA",
    "two segments": lambda w: ".".join(w.token().split(".")[:2]),
    "empty header": lambda w: "." + ".".join(w.token().split(".")[1:]),
    "empty payload": lambda w: resigned(b64(GOOD_HEADER), ""),
    "empty": lambda w: "",
    "two dots": lambda w: "..",
    "JSON serialisation, flattened": lambda w: json.dumps(
        dict(zip(("protected", "payload", "signature"), w.token().split("."), strict=True))
    ),
    "JSON serialisation, general": lambda w: json.dumps({"payload": "e30", "signatures": []}),
    "with its scheme": lambda w: "Bearer " + w.token(),
    "two tokens": lambda w: w.token() + "," + w.token(),
    "base64 of a token": lambda w: b64(w.token()),
    "opaque": lambda w: "2YotnFZFEjr1zCsicMWpAA",
}


def _unused_bits_resigned(world: World) -> str:
    """The signature covers the unusual encoding, so only the parser can reject it."""
    payload = json.dumps(world.claims())
    payload += " " * (1 + (-len(payload)) % 3)
    token = set_unused_bits(f"{b64(GOOD_HEADER)}.{b64(payload)}.x", 1)
    header, odd, _ = token.split(".")
    return resigned(header, odd)


TIMES: dict[str, Case] = {
    "expired": lambda w: w.saying(exp=NOW - 3600),
    "expired by the leeway": lambda w: w.saying(exp=int(time.time()) - 30),
    "nbf in the future": lambda w: w.saying(nbf=NOW + 3600),
    "iat in the future": lambda w: w.saying(iat=NOW + 3600),
    **{
        f"{name} {text}": lambda w, name=name, text=text: w.instead(name, text)
        for name in ("exp", "nbf", "iat")
        for text in ('"9999999999"', "true", "[9999999999]", "-1", "1e300", "1099511627776")
    },
    # A null value for one of these claims is equivalent to a missing claim; null is accepted for the optional nbf
    # claim.
    "exp null": lambda w: w.instead("exp", "null"),
    "iat null": lambda w: w.instead("iat", "null"),
    "exp 0": lambda w: w.saying(exp=0),
    "exp with spaces": lambda w: w.instead("exp", '" 9999999999 "'),
    "exp with an underscore": lambda w: w.instead("exp", '"9_999_999_999"'),
    "exp in Arabic digits": lambda w: w.instead("exp", '"٩٩٩٩٩٩٩٩٩٩"'),
    "exp false": lambda w: w.instead("exp", "false"),
    "exp an object": lambda w: w.instead("exp", '{"$date": 9999999999}'),
    "exp a date": lambda w: w.instead("exp", '"2099-01-01T00:00:00Z"'),
}

# JSON escapes for the line breaks that terminals, log viewers, and `str.splitlines` recognize.
_LINE_BREAKERS = ("\\u0000", "\\n", "\\u0085", "\\u2028", "\\u2029")

SHAPES: dict[str, Case] = {
    **{
        f"{name} missing": lambda w, name=name: w.saying(**{name: ...})
        for name in ("iss", "exp", "aud", "sub", "client_id", "iat", "jti")
    },
    **{
        f"{name} {text}": lambda w, name=name, text=text: w.instead(name, text)
        for name in ("iss", "sub", "client_id", "jti")
        for text in ("null", '""', "1", "[]", '["alice"]', "{}", *map('"a{}b"'.format, _LINE_BREAKERS))
    },
    "iss of another issuer": lambda w: w.saying(iss="https://evil.example"),
    "iss with a slash": lambda w: w.saying(iss=w.issuer.url + "/"),
    "iss in upper case": lambda w: w.saying(iss=w.issuer.url.upper()),
    "iss as a part of ours": lambda w: w.saying(iss=w.issuer.url[:-1]),
    "iss with ours in front": lambda w: w.saying(iss=w.issuer.url + ".evil.example"),
    "iss with ours as user": lambda w: w.saying(iss=w.issuer.url + "@evil.example"),
    "iss in a list": lambda w: w.saying(iss=[w.issuer.url]),
    "aud of another service": lambda w: w.saying(aud="billing-service"),
    "aud empty": lambda w: w.saying(aud=""),
    "aud empty list": lambda w: w.saying(aud=[]),
    "aud null": lambda w: w.saying(aud=None),
    "aud a number": lambda w: w.saying(aud=1),
    "aud an object": lambda w: w.saying(aud={AUDIENCE: True}),
    "aud with a number in it": lambda w: w.saying(aud=[AUDIENCE, 1]),
    "aud with null in it": lambda w: w.saying(aud=[None, AUDIENCE]),
    "aud nested": lambda w: w.saying(aud=[[AUDIENCE]]),
    "aud as a part of ours": lambda w: w.saying(aud=AUDIENCE[:-1]),
    "aud with ours in front": lambda w: w.saying(aud=AUDIENCE + "-admin"),
    "aud in upper case": lambda w: w.saying(aud=AUDIENCE.upper()),
    "aud with spaces": lambda w: w.saying(aud=f"{AUDIENCE} billing-service"),
    "aud with commas": lambda w: w.saying(aud=f"{AUDIENCE},billing-service"),
    "aud a wildcard": lambda w: w.saying(aud="*"),
    "scope a number": lambda w: w.saying(scope=1),
    "scope an object": lambda w: w.saying(scope={"profiles:read": True}),
    "scope with a list in it": lambda w: w.saying(scope=[["profiles:read"]]),
    "scope with a line break": lambda w: w.saying(scope="profiles:read\nadmin"),
    "bound to a DPoP key": lambda w: w.saying(cnf={"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}),
    "bound to a certificate": lambda w: w.saying(cnf={"x5t#S256": "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"}),
    "bound to nothing that can be read": lambda w: w.saying(cnf=[]),
    "azp an object": lambda w: w.saying(azp={}),
}

REFUSED = {
    f"{group}: {name}": case
    for group, cases in {
        "no signature": NO_SIGNATURE,
        "confusion": CONFUSION,
        "kid": KEY_NAMES,
        "own key": OWN_KEYS,
        "signature": SIGNATURES,
        "extension": EXTENSIONS,
        "type": TYPES,
        "JSON": JSON,
        "size": SIZES,
        "spelling": SPELLINGS,
        "time": TIMES,
        "shape": SHAPES,
    }.items()
    for name, case in cases.items()
}

ACCEPTED: dict[str, Case] = {
    **{f"{alg}": lambda w, alg=alg: make_token(w.claims(), alg) for alg in ("RS256", "RS384", "RS512", "PS256")},
    "ES256": lambda w: make_token(w.claims(), "ES256", kid="e1"),
    "ES384": lambda w: make_token(w.claims(), "ES384", kid="e3"),
    "ES512": lambda w: make_token(w.claims(), "ES512", kid="e5"),
    "ES256K": lambda w: make_token(w.claims(), "ES256K", kid="ek"),
    "EdDSA": lambda w: make_token(w.claims(), "EdDSA", kid="d1"),
    "Ed25519, key says EdDSA": lambda w: make_token(
        w.claims(), "EdDSA", header=GOOD_HEADER | {"alg": "Ed25519", "kid": "d1"}
    ),
    "Ed25519, key says Ed25519": lambda w: make_token(
        w.claims(), "EdDSA", name="second", header=GOOD_HEADER | {"alg": "Ed25519", "kid": "d2"}
    ),
    "EdDSA on Ed448": lambda w: make_token(w.claims(), "Ed448", header=GOOD_HEADER | {"alg": "EdDSA", "kid": "d4"}),
    "key whose private part leaked": lambda w: w.token(kid="leaks", name="second"),
    "typ in upper case": lambda w: w.token(typ="AT+JWT"),
    "typ with application/": lambda w: w.token(typ="application/at+jwt"),
    "unused header members": lambda w: w.token(cty="JWT", x="y", zip="DEF"),
    "jku that is never looked at": lambda w: w.token(jku="https://evil.example/jwks"),
    "aud in a list": lambda w: w.saying(aud=["billing-service", AUDIENCE]),
    "exp with a fraction": lambda w: w.saying(exp=time.time() + 60.5),
    "exp a moment ago, within the leeway": lambda w: w.saying(exp=int(time.time()) - 5),
    "nbf in a moment, within the leeway": lambda w: w.saying(nbf=int(time.time()) + 5),
    "iat in a moment, within the leeway": lambda w: w.saying(iat=int(time.time()) + 5),
    "exp as 1e10": lambda w: w.instead("exp", "1e10"),
    "no scope": lambda w: w.saying(scope=...),
    "scope in a list": lambda w: w.saying(scope=["profiles:read"]),
    "scp": lambda w: w.saying(scope=..., scp="profiles:read"),
    "sub beyond ASCII": lambda w: w.saying(sub="Åsa 漢字 🎈"),
    "sub beyond ASCII, escaped": lambda w: w.instead("sub", '"\\u00c5sa \\ud83c\\udf88"'),
    "32 deep": lambda w: w.with_member('"x": ' + "[" * 31 + "]" * 31),
    "many brackets in a text": lambda w: w.saying(x="[{" * 200),
    "other claims of any kind": lambda w: w.saying(
        realm_access={"roles": ["a"]}, n=None, t=True, f=1.5, act={"sub": "b"}
    ),
    "nonce, which RFC 9068 does not mind": lambda w: w.saying(nonce="n"),
    "of the greatest length": lambda w: _of_length(w, 16384),
    "white space in the JSON": lambda w: w.raw(json.dumps(w.claims(), indent=2)),
}


def _of_length(world: World, length: int) -> str:
    for size in range(11000, 13000):
        token = world.saying(x="A" * size)
        if len(token) >= length:
            return token if len(token) == length else world.saying(x="A" * (size - 1))
    raise AssertionError("no such size")


def test_the_corpus_is_large_enough() -> None:
    """The corpus has at least 120 cases, and all of them have different names."""
    assert len(REFUSED) + len(ACCEPTED) >= 120


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_attack_is_refused(world: World, case: Case) -> None:
    """Every attack token is rejected with `TokenRejected`."""
    token = case(world)

    with pytest.raises(TokenRejected) as refused:
        world.rfc9068.verify(token)
    assert token == "" or token not in repr(refused.value)


@pytest.mark.parametrize("case", ACCEPTED.values(), ids=ACCEPTED)
def test_valid_token_is_accepted(world: World, case: Case) -> None:
    """A valid token is accepted after verification and again from the cache."""
    token = case(world)

    assert world.rfc9068.verify(token).issuer == world.issuer.url
    assert world.rfc9068.verify(token).claims == world.rfc9068.verify(token).claims


GENERIC_REFUSED: dict[str, Case] = {
    **{
        f"typ {text!r}": lambda w, text=text: w.token(typ=text)
        for text in ("dpop+jwt", "logout+jwt", "secevent+jwt", "JOSE", "")
    },
    "nonce, as in an ID token": lambda w: make_token(w.claims(nonce="n"), typ="JWT"),
    "at_hash, as in an ID token": lambda w: make_token(w.claims(at_hash="h"), typ="JWT"),
    "c_hash, as in an ID token": lambda w: make_token(w.claims(c_hash="h"), typ="JWT"),
    **{
        f"Keycloak's {kind}": lambda w, kind=kind: make_token(w.claims(typ=kind), typ="JWT")
        for kind in ("ID", "Refresh", "Offline", "Logout", "DPoP", "", 1)
    },
    "client_id a number": lambda w: make_token(w.claims(client_id=1), typ="JWT"),
    "jti a number": lambda w: make_token(w.claims(jti=1), typ="JWT"),
    "neither sub nor a client": lambda w: make_token(w.claims(sub=..., client_id=...), typ="JWT"),
    "nothing that says what it is": lambda w: make_token(w.claims(scope=..., client_id=...), typ="JWT"),
    "Cognito's ID token": lambda w: make_token(w.claims(token_use="id"), typ="JWT"),
    "a refresh token of flask-jwt-extended": lambda w: make_token(w.claims(type="refresh"), typ="JWT"),
    "a refresh token of Casdoor": lambda w: make_token(w.claims(tokenType="refresh-token"), typ="JWT"),
    "no exp": lambda w: make_token(w.claims(exp=...), typ="JWT"),
    "no aud": lambda w: make_token(w.claims(aud=...), typ="JWT"),
    "no iss": lambda w: make_token(w.claims(iss=...), typ="JWT"),
    "expired": lambda w: make_token(w.claims(exp=NOW - 3600), typ="JWT"),
    "bound to a key": lambda w: make_token(w.claims(cnf={"jkt": "x"}), typ="JWT"),
}

GENERIC_ACCEPTED: dict[str, Case] = {
    "null for what the issuer does not have": lambda w: make_token(
        w.claims(nonce=None, at_hash=None, cnf=None, nbf=None, typ=None, client_id=None, events=None), typ="JWT"
    ),
    "typ JWT": lambda w: w.token(typ="JWT"),
    "typ jwt": lambda w: w.token(typ="jwt"),
    "typ at+jwt": lambda w: w.token(),
    "typ absent": lambda w: w.token(typ=...),
    "no jti, client_id and iat": lambda w: make_token(w.claims(jti=..., client_id=..., iat=...), typ="JWT"),
    "Keycloak's Bearer": lambda w: make_token(w.claims(typ="Bearer", azp="web", client_id=...), typ="JWT"),
    "RS512 by a key without alg": lambda w: w.token("RS512", typ="JWT"),
}


@pytest.mark.parametrize("case", GENERIC_REFUSED.values(), ids=GENERIC_REFUSED)
def test_generic_profile_refuses_other_kinds_of_tokens(world: World, case: Case) -> None:
    """The profile that accepts types other than at+jwt still rejects ID tokens and refresh tokens."""
    with pytest.raises(TokenRejected):
        world.generic.verify(case(world))


@pytest.mark.parametrize("case", GENERIC_ACCEPTED.values(), ids=GENERIC_ACCEPTED)
def test_generic_profile_accepts_what_common_issuers_send(world: World, case: Case) -> None:
    """Access tokens from issuers that do not follow RFC 9068 are valid with the generic profile."""
    assert world.generic.verify(case(world)).subject == "alice"


@pytest.mark.parametrize("value", [None, 1, b"bytes", ["list"], bytearray(b"x")], ids=repr)
def test_what_is_no_text_is_refused(world: World, value: object) -> None:
    """An argument of the wrong type raises the same exception."""
    with pytest.raises(TokenRejected, match="malformed"):
        world.rfc9068.verify(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("alg", ["RS384", "RS512", "ES384", "ES512", "ES256K"])
def test_algorithm_off_the_default_list_is_refused(world: World, alg: str) -> None:
    """By default, only four algorithms are accepted, even if the key set contains keys for more."""
    kid = {"ES384": "e3", "ES512": "e5", "ES256K": "ek"}.get(alg, "k1")

    with pytest.raises(TokenRejected, match="algorithm_not_allowed"):
        world.default.verify(make_token(world.claims(), alg, kid=kid))


def test_flood_of_attacks_does_not_reach_the_issuer(world: World) -> None:
    """Forged key IDs cost the issuer one fetch for each cooldown and verifier."""
    for case in REFUSED.values():
        with pytest.raises(TokenRejected):
            world.rfc9068.verify(case(world))

    assert world.issuer.fetches <= 2 * 3


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda size: "{" * 40 + '"' + '\\"' * (size // 2), id="in a string"),
        pytest.param(lambda size: "{" * 40 + '\\"' * (size // 2), id="outside of one"),
        pytest.param(lambda size: "{" * 40 + "\\" * size, id="backslashes alone"),
        pytest.param(lambda size: '{"a":' * 33 + "[" * size, id="open brackets"),
        pytest.param(lambda size: '{"a":[' + "[]," * (size // 3) + "[]]}", id="many brackets"),
        pytest.param(
            lambda size: "{" + ",".join(f'"{number}":1' for number in range(size // 9)) + "}", id="many members"
        ),
    ],
)
def test_work_grows_no_faster_than_a_hostile_token(world: World, build: Callable[[int], str]) -> None:
    """The time to read a long hostile token, which needs no signature, does not grow quadratically with its length."""
    header = b64({"alg": "RS256", "typ": "at+jwt", "kid": "k1"})

    def work(size: int) -> float:
        payload = b64(build(size))
        tokens = (f"{header}.{payload}.AAAA", f"{payload}.{b64('{}')}.AAAA")
        return sum(min(_work(world, token) for _ in range(5)) for token in tokens)

    # A token that is eight times longer can take eight times longer; quadratic work takes 64 times longer. The test
    # compares the minimum of several measurements of this thread's processor time, so a busy machine affects both
    # lengths equally.
    assert work(11600) < 24 * work(11600 // 8)


def _work(world: World, token: str) -> float:
    assert len(token) <= 16384
    started = time.thread_time()
    with pytest.raises(TokenRejected):
        world.rfc9068.verify(token)
    return time.thread_time() - started
