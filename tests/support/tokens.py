"""Keys and tokens for tests: one call creates a well-formed token, and malformed tokens are built from bytes."""

from __future__ import annotations

import base64
import json
import time
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import get_default_algorithms

AUDIENCE = "profile-service"


def b64(data: bytes | str | dict[str, Any]) -> str:
    """Encode a value as base64url without padding; a dict is first encoded as JSON."""
    if isinstance(data, dict):
        data = json.dumps(data)
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogatepass")
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


@cache
def private_key(alg: str, name: str = "first") -> Any:
    """Return the key for the specified algorithm and name, which is created only once."""
    curves = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1, "ES256K": ec.SECP256K1}
    if alg in curves:
        return ec.generate_private_key(curves[alg]())
    if alg in ("EdDSA", "Ed25519"):
        return ed25519.Ed25519PrivateKey.generate()
    if alg == "Ed448":
        return ed448.Ed448PrivateKey.generate()
    return rsa_key(2048, name)


@cache
def rsa_key(bits: int, name: str = "first") -> rsa.RSAPrivateKey:
    """Return an RSA key. All RSA algorithms share one key, because creating a key is slow."""
    return rsa.generate_private_key(65537, bits)


def public_jwk(
    alg: str, kid: str | None = None, /, *, name: str = "first", key: Any = None, **members: Any
) -> dict[str, Any]:
    """Return the key's public JWK, with ``use`` and ``alg`` unless they are changed (``alg=None``)."""
    key = key or private_key(alg, name)
    implementation = get_default_algorithms()["EdDSA" if alg in ("Ed25519", "Ed448") else alg]
    jwk = {"use": "sig", "alg": alg, **implementation.to_jwk(key.public_key(), as_dict=True)}
    if kid is not None:
        jwk["kid"] = kid
    jwk.pop("key_ops", None)
    return {member: value for member, value in (jwk | members).items() if value is not None}


def claims(issuer: str, **changes: Any) -> dict[str, Any]:
    """Return claims that follow RFC 9068; a change to ``...`` removes the claim."""
    now = int(time.time())
    found = {
        "iss": issuer,
        "aud": AUDIENCE,
        "sub": "alice",
        "client_id": "web",
        "iat": now,
        "exp": now + 600,
        "jti": "j-1",
        "scope": "profiles:read profiles:write",
    }
    return {name: value for name, value in (found | changes).items() if value is not ...}


def sign_raw(header: str, payload: str, alg: str = "RS256", *, key: Any = None, name: str = "first") -> str:
    """Sign two segments without changing them."""
    implementation = get_default_algorithms()["EdDSA" if alg in ("Ed25519", "Ed448") else alg]
    signing_input = f"{header}.{payload}"
    signature = implementation.sign(signing_input.encode("ascii"), key or private_key(alg, name))
    return f"{signing_input}.{b64(signature)}"


def make_token(
    payload: dict[str, Any] | bytes | str,
    alg: str = "RS256",
    *,
    header: dict[str, Any] | bytes | str | None = None,
    key: Any = None,
    name: str = "first",
    kid: str | None = "k1",
    **members: Any,
) -> str:
    """Sign claims; *members* change the header, a value of ``...`` removes a member, and *header* replaces the
    header.
    """
    if header is None:
        header = {"alg": alg, "typ": "at+jwt", "kid": kid if kid is not None else ...} | members
        header = {member: value for member, value in header.items() if value is not ...}
    return sign_raw(b64(header), b64(payload), alg, key=key, name=name)


def unsigned(header: dict[str, Any], payload: dict[str, Any], signature: str = "") -> str:
    """Return a token with the given third segment."""
    return f"{b64(header)}.{b64(payload)}.{signature}"


def hmac_token(header: dict[str, Any], payload: dict[str, Any], secret: bytes) -> str:
    """Return a token with an HMAC for any secret, including secrets that PyJWT rejects."""
    import hashlib
    import hmac

    digest = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}[header["alg"]]
    signing_input = f"{b64(header)}.{b64(payload)}"
    return f"{signing_input}.{b64(hmac.new(secret, signing_input.encode(), digest).digest())}"


__all__ = [
    "AUDIENCE",
    "b64",
    "claims",
    "hmac_token",
    "make_token",
    "private_key",
    "public_jwk",
    "rsa_key",
    "sign_raw",
    "unsigned",
]
