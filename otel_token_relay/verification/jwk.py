"""Keys as they are published, bound to what they may verify. No I/O.

A key verifies only what it is for: one issuer, one ``kid``, one algorithm of its own type and
curve. Which algorithm that is says the key and our list, never the token.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

try:
    from jwt.algorithms import Algorithm, get_default_algorithms
except ImportError as error:  # pragma: no cover - seen by a test in an interpreter without it
    raise ImportError(
        "verification needs PyJWT with cryptography: pip install 'otel-token-relay[verify]'", name=error.name
    ) from error

from otel_token_relay.errors import ConfigurationError

_logger = logging.getLogger(__name__)

# RFC 7518, section 3.1; RFC 8037, section 3.1; RFC 8812, section 3.2; RFC 9864, section 2.2.
# Algorithm -> the (kty, crv) of the keys that go with it.
_KEYS_OF: Final[Mapping[str, frozenset[tuple[str, str | None]]]] = {
    **{name: frozenset({("RSA", None)}) for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")},
    "ES256": frozenset({("EC", "P-256")}),
    "ES384": frozenset({("EC", "P-384")}),
    "ES512": frozenset({("EC", "P-521")}),
    "ES256K": frozenset({("EC", "secp256k1")}),
    "EdDSA": frozenset({("OKP", "Ed25519"), ("OKP", "Ed448")}),
    "Ed25519": frozenset({("OKP", "Ed25519")}),
}

DEFAULT_ALGORITHMS: Final = ("RS256", "PS256", "ES256", "EdDSA")

# RFC 7518, sections 6.2.1 and 6.3.1; RFC 8037, section 2. Private members are left out on
# purpose: a key set that publishes one is leaking, and PyJWT would build a private key of it.
_PUBLIC_MEMBERS: Final = {"RSA": ("kty", "n", "e"), "EC": ("kty", "crv", "x", "y"), "OKP": ("kty", "crv", "x")}

# Names of texts in a key that Python's decoder would read loosely: white space, junk.
_is_base64url = re.compile(r"[A-Za-z0-9_-]+", re.ASCII).fullmatch

# The largest RSA modulus that is worth the time, in characters of base64url: 8192 bits.
_MAX_MODULUS_LENGTH: Final = 1366


def check_algorithms(names: Sequence[str]) -> frozenset[str]:
    """Give the header values that the list admits.

    Raises:
        ConfigurationError: The list is empty or names what is symmetric or unknown.
    """
    if isinstance(names, str) or not names:
        raise ConfigurationError("algorithms", "this must be a list of names such as RS256")
    for name in names:
        if name not in _KEYS_OF:
            # A symmetric one among them would make every public key a secret that all know.
            raise ConfigurationError("algorithms", f"only these can be verified: {', '.join(_KEYS_OF)}")
    admitted = frozenset(names)
    # RFC 9864, section 4.1: Ed25519 is the new name of what EdDSA means on that curve.
    return admitted | {"Ed25519"} if "EdDSA" in admitted else admitted


class Key(NamedTuple):
    """A public key and the algorithm that it verifies, as PyJWT implements it."""

    algorithm: Algorithm
    material: Any

    def verifies(self, signing_input: bytes, signature: bytes) -> bool:
        """Whether the signature is by the holder of this key."""
        try:
            return self.algorithm.verify(signing_input, self.material, signature)
        except Exception:  # noqa: BLE001  # whatever a broken signature provokes in cryptography
            return False


class KeySet:
    """The usable keys of one issuer. Immutable; a set with other keys is another object."""

    __slots__ = ("_by_use", "_kids", "contents")

    def __init__(self, by_use: Mapping[tuple[str | None, str], tuple[Key, ...]], contents: frozenset[object]) -> None:
        self._by_use = by_use
        self._kids = frozenset(kid for kid, _ in by_use)
        self.contents = contents

    @classmethod
    def parse(cls, document: Mapping[str, Any], algorithms: frozenset[str]) -> KeySet:
        """Read a JWK set and leave out what cannot or must not verify a signature of ours.

        Left out are keys for encryption, keys for which no algorithm is on the list, short or
        broken keys, and all keys of a ``kid`` that two different keys share: which of the two is
        meant cannot be known.

        Raises:
            ValueError: This is no JWK set.

        Source: RFC 7517, sections 4 and 5.
        """
        members = document.get("keys")
        if not isinstance(members, list):
            raise ValueError("this is no JWK set")
        usable = [member for member in members if isinstance(member, dict) and _is_for_signatures(member)]
        by_kid: dict[str, set[object]] = {}
        for jwk in usable:
            if "kid" in jwk:
                by_kid.setdefault(jwk["kid"], set()).add(_identity(jwk))
        ambiguous = {kid for kid, identities in by_kid.items() if len(identities) > 1}
        if ambiguous:
            _logger.warning("%d kid(s) of a key set name several keys; none of these is used", len(ambiguous))
        by_use: dict[tuple[str | None, str], tuple[Key, ...]] = {}
        contents = set()
        for jwk in usable:
            if jwk.get("kid") in ambiguous:
                continue
            for name in _algorithms_of(jwk) & algorithms:
                key = _build(jwk, name)
                use = (jwk.get("kid"), name)
                if key is not None and (use, _identity(jwk)) not in contents:
                    contents.add((use, _identity(jwk)))
                    by_use[use] = (*by_use.get(use, ()), key)
        return cls(by_use, frozenset(contents))

    def find(self, kid: str | None, algorithm: str) -> tuple[Key, ...]:
        """Give the keys for a token's header; several only where keys carry no ``kid``."""
        return self._by_use.get((kid, algorithm), ())

    def knows(self, kid: str | None) -> bool:
        """Whether there is a key of that name, whatever it is for."""
        return kid in self._kids

    def __len__(self) -> int:
        return len(self.contents)


def _is_for_signatures(jwk: Mapping[str, Any]) -> bool:
    operations = jwk.get("key_ops", ["verify"])
    return (
        isinstance(jwk.get("kid", ""), str)
        and all(isinstance(jwk.get(name, ""), str) for name in ("kty", "crv", "alg"))
        and jwk.get("kty") in _PUBLIC_MEMBERS
        and jwk.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
    )


def _identity(jwk: Mapping[str, Any]) -> object:
    """Give what makes a key this key (RFC 7638, section 3.2)."""
    return tuple(str(jwk.get(name)) for name in _PUBLIC_MEMBERS[jwk["kty"]])


def _algorithms_of(jwk: Mapping[str, Any]) -> frozenset[str]:
    """Give what a key may verify: its ``alg``, or all that its type and curve allow."""
    kind = (jwk["kty"], None if jwk["kty"] == "RSA" else jwk.get("crv"))
    fitting = frozenset(name for name, kinds in _KEYS_OF.items() if kind in kinds)
    if "alg" not in jwk:
        return fitting
    same = {"EdDSA", "Ed25519"} if jwk["alg"] in ("EdDSA", "Ed25519") else {jwk["alg"]}
    return fitting & same


def _build(jwk: Mapping[str, Any], name: str) -> Key | None:
    public = {member: jwk.get(member) for member in _PUBLIC_MEMBERS[jwk["kty"]]}
    texts = [public[member] for member in ("n", "e", "x", "y") if member in public]
    if not all(isinstance(text, str) and len(text) <= _MAX_MODULUS_LENGTH and _is_base64url(text) for text in texts):
        return None
    # PyJWT does not know the name Ed25519; the algorithm is the one that it calls EdDSA.
    algorithm = get_default_algorithms()["EdDSA" if name == "Ed25519" else name]
    try:
        material = algorithm.from_jwk(public)
        if algorithm.check_key_length(material) is not None:
            return None
    except Exception:  # noqa: BLE001  # a key that cannot be used is left out, whatever is wrong with it
        _logger.debug("a key of a key set cannot be used")
        return None
    return Key(algorithm, material)
