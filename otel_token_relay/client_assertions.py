"""Sign the assertions that this service uses to authenticate itself (RFC 7523, section 2.2).

The key determines the signature algorithm. PyJWT and cryptography are imported when the first key is read so that
settings can be loaded without the extra that installs these packages.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib
import json
import re
import uuid
from typing import Any, Final, NamedTuple

from otel_token_relay.credential_files import CredentialUnavailable, FileUnusable

ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

# Authorization servers reject an `exp` that is too far in the future. Auth0 allows 5 minutes, and Keycloak allows
# 1 minute after `iat`.
LIFETIME_SECONDS: Final = 60
_MIN_RSA_BITS: Final = 2048

_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_RSA_ALGORITHMS: Final = ("PS256", "PS384", "PS512", "RS256", "RS384", "RS512")

_NOT_A_KEY: Final = "is not a private key in PEM or JWK format"

_find_private_key = re.compile(rb"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL).search
_find_certificate = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL).search


class SigningKey(NamedTuple):
    """A private key and its properties.

    Attributes:
        key: The key object from the cryptography package.
        algorithm: The name of the signature algorithm.
        key_id: The key's ``kid``; ``None`` if the key has no ``kid``.
        public: The public key in DER format.
    """

    key: Any
    algorithm: str
    key_id: str | None
    public: bytes

    def __repr__(self) -> str:
        return f"SigningKey({self.algorithm})"


class Certificate(NamedTuple):
    """A certificate's thumbprint and public key.

    Attributes:
        thumbprint: The value of ``x5t#S256`` (RFC 7515, section 4.1.8).
        public: The certificate's public key in DER format.
    """

    thumbprint: str
    public: bytes


def parse_private_key(content: bytes) -> SigningKey:
    """Parse a private key in PEM or JWK format (RFC 7517). A PEM file can also contain text before or after the key.

    Raises:
        FileUnusable: The content is not a private key, or the key cannot be used to sign assertions.
        CredentialUnavailable: A required package is not installed.
    """
    check_packages()
    if content.lstrip().startswith(b"{"):
        return _parse_jwk(content)
    return _signing_key(_parse_pem(content))


def parse_certificate(content: bytes) -> Certificate:
    """Parse the first certificate in a PEM file.

    Raises:
        FileUnusable: The content does not contain a valid certificate.
        CredentialUnavailable: A required package is not installed.
    """
    check_packages()
    from cryptography import x509

    match = _find_certificate(content)
    if match is None:
        raise FileUnusable("does not contain a certificate in PEM format")
    try:
        encoded = binascii.a2b_base64(match[1])
        public = _public_bytes(x509.load_der_x509_certificate(encoded).public_key())
    except Exception:  # the exception type depends on the package version, and the message might quote the content
        raise FileUnusable("contains a certificate that cannot be read") from None
    thumbprint = base64.urlsafe_b64encode(hashlib.sha256(encoded).digest()).rstrip(b"=").decode("ascii")
    return Certificate(thumbprint, public)


def sign_assertion(
    key: SigningKey,
    client_id: str,
    audience: str,
    *,
    now: float,
    is_rfc7523: bool,
    key_id: str | None = None,
    thumbprint: str | None = None,
) -> str:
    """Create and sign a single-use assertion.

    Args:
        key: The key that signs the assertion.
        client_id: The client ID, used as both the issuer and the subject.
        audience: The value of ``aud``.
        now: The current time, as seconds since the epoch.
        is_rfc7523: Whether to follow RFC 7523 and include ``nbf``, as Microsoft Entra expects. Otherwise, the assertion
            follows draft-ietf-oauth-rfc7523bis.
        key_id: The value of ``kid``; ``None`` to use the key's own ``kid``.
        thumbprint: The value of ``x5t#S256``; ``None`` to omit it.
    """
    import jwt

    issued_at = int(now)
    claims: dict[str, Any] = {
        "iss": client_id,
        "sub": client_id,
        "aud": audience,
        "jti": str(uuid.uuid4()),
        "iat": issued_at,
        "exp": issued_at + LIFETIME_SECONDS,
    }
    header = {"typ": "JWT" if is_rfc7523 else "client-authentication+jwt"}
    if is_rfc7523:
        claims["nbf"] = issued_at
    for name, value in (("kid", key_id or key.key_id), ("x5t#S256", thumbprint)):
        if value is not None:
            header[name] = value
    return jwt.encode(claims, key.key, key.algorithm, header)


def check_packages() -> None:
    """Check that PyJWT and cryptography can be imported.

    Raises:
        CredentialUnavailable: One of the packages is not installed. The message explains how to install both packages.
    """
    try:
        for name in ("cryptography.x509", "jwt.algorithms"):
            importlib.import_module(name)
    except ImportError:
        raise CredentialUnavailable(
            "client assertions require PyJWT and cryptography: pip install 'otel-token-relay[verify]'"
        ) from None


def _parse_pem(content: bytes) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    match = _find_private_key(content)
    if match is None:
        has_public = b"-----BEGIN PUBLIC KEY" in content or b"-----BEGIN RSA PUBLIC KEY" in content
        raise FileUnusable("contains only a public key" if has_public else _NOT_A_KEY)
    if b"ENCRYPTED" in match[0]:
        raise FileUnusable("contains a password-protected private key, which is not supported")
    try:
        return load_pem_private_key(match[0], None)
    except Exception:  # the exception type depends on the package version, and the message might quote the content
        raise FileUnusable("contains a private key that cannot be read") from None


def _parse_jwk(content: bytes) -> SigningKey:
    from jwt.algorithms import get_default_algorithms

    try:
        jwk = json.loads(content)
    except (ValueError, RecursionError):
        raise FileUnusable(_NOT_A_KEY) from None
    name = {"RSA": "PS256", "EC": "ES256", "OKP": "EdDSA"}.get(str(jwk.get("kty")))
    if name is None:
        raise FileUnusable(_NOT_A_KEY)
    if not isinstance(jwk.get("d"), str):
        raise FileUnusable("contains only a public key")
    if jwk.get("use", "sig") != "sig":
        raise FileUnusable("contains a key that is not intended for signing")
    kid = jwk.get("kid")
    try:
        # PyJWT reads the curve from the key, so one algorithm from each family can load all keys in that family.
        found = _signing_key(get_default_algorithms()[name].from_jwk(jwk))
    except FileUnusable:
        raise
    except Exception:  # the exception type depends on the package version, and the message might quote the content
        raise FileUnusable("contains a private key that cannot be read") from None
    algorithm = jwk.get("alg", found.algorithm)
    usable = _RSA_ALGORITHMS if found.algorithm in _RSA_ALGORITHMS else (found.algorithm,)
    if algorithm == "Ed25519":  # RFC 9864 uses this name for EdDSA with Ed25519
        algorithm = "EdDSA"
    if algorithm not in usable:
        raise FileUnusable("contains a key with an unsupported alg")
    return found._replace(algorithm=algorithm, key_id=kid if isinstance(kid, str) and kid else None)


def _signing_key(key: Any) -> SigningKey:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < _MIN_RSA_BITS:  # RFC 7518, section 3.5
            raise FileUnusable(f"contains an RSA key with fewer than {_MIN_RSA_BITS} bits")
        algorithm: str | None = "PS256"
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm = _CURVES.get(key.curve.name)
    else:
        algorithm = "EdDSA" if isinstance(key, ed25519.Ed25519PrivateKey) else None
    if algorithm is None:
        raise FileUnusable("contains an unsupported type of key: expected RSA, P-256, P-384, P-521, or Ed25519")
    return SigningKey(key, algorithm, None, _public_bytes(key.public_key()))


def _public_bytes(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    found: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return found
