"""Published keys, each restricted to a single algorithm.

A `Key` is used for only one issuer, one ``kid``, and one algorithm, which must be compatible with the key's type and
curve. The algorithm depends on the key and on the configured list, and never on the token.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

try:
    from jwt.algorithms import Algorithm, get_default_algorithms
except ImportError as _import_error:  # pragma: no cover - tested in an interpreter without PyJWT
    raise ImportError(
        "verification requires PyJWT with cryptography: pip install 'otel-token-relay[verify]'", name=_import_error.name
    ) from _import_error

from otel_token_relay.algorithms import KEY_TYPES
from otel_token_relay.errors import ConfigurationError

# RFC 7518, sections 6.2.1 and 6.3.1; RFC 8037, section 2. Private members are deliberately omitted, because PyJWT would
# build a private key from them.
_PUBLIC_MEMBERS: Final = {"RSA": ("kty", "n", "e"), "EC": ("kty", "crv", "x", "y"), "OKP": ("kty", "crv", "x")}

# The problem that is reported for a key with a purpose other than signatures, such as encryption. If all unusable keys
# have this problem, no warning is logged.
NOT_FOR_SIGNATURES: Final = "not for signatures"

# Check the characters, because Python's decoder accepts invalid characters, such as whitespace.
_is_base64url = re.compile(r"[A-Za-z0-9_-]+", re.ASCII).fullmatch

# The maximum length, in base64url characters, of an RSA modulus (8192 bits). Verification with a longer modulus takes
# too long.
_MAX_MODULUS_LENGTH: Final = 1366


def check_algorithms(names: Sequence[str]) -> frozenset[str]:
    """Check the algorithm names and return the accepted ``alg`` values.

    Raises:
        ConfigurationError: The list is empty or contains a symmetric or unknown algorithm.
    """
    if isinstance(names, str) or not names:
        raise ConfigurationError("algorithms", "expected a list of names such as RS256")
    for name in names:
        if name not in KEY_TYPES:
            # With a symmetric algorithm, the public key would be the secret, so an attacker could sign tokens.
            raise ConfigurationError("algorithms", f"unsupported algorithm; expected one of {', '.join(KEY_TYPES)}")
    allowed = frozenset(names)
    # Ed25519 is the new name for EdDSA with the Ed25519 curve (RFC 9864, section 4.1).
    return allowed | {"Ed25519"} if "EdDSA" in allowed else allowed


class Key(NamedTuple):
    """A public key and PyJWT's implementation of the key's algorithm.

    Attributes:
        issuer: The value of the key's ``issuer`` member, which Microsoft Entra uses, or ``None`` if the key does not
            have this member.
    """

    algorithm: Algorithm
    material: Any
    issuer: str | None = None

    def verifies(self, signing_input: bytes, signature: bytes) -> bool:
        """Return whether the signature is valid for this key."""
        try:
            return self.algorithm.verify(signing_input, self.material, signature)
        except Exception:  # cryptography raises various errors for malformed signatures
            return False


class KeyUse(NamedTuple):
    """The ``kid`` and ``alg`` of the tokens that can be verified with a key. The ``kid`` can be ``None``."""

    kid: str | None
    algorithm: str


class SkippedKey(NamedTuple):
    """An unusable key in a key set. The problem is one of several fixed strings."""

    kid: str | None
    problem: str


class KeySet:
    """One issuer's usable keys. Instances are immutable. If the issuer's keys change, a new instance is created.

    Attributes:
        contents: A value that identifies the keys. Key sets with equal contents are interchangeable.
        skipped: The keys that cannot be used to verify tokens.
    """

    __slots__ = ("_by_use", "_kids", "contents", "skipped")

    def __init__(
        self,
        by_use: Mapping[tuple[str | None, str], tuple[Key, ...]],
        contents: frozenset[object],
        skipped: Sequence[SkippedKey] = (),
    ) -> None:
        self._by_use = by_use
        self._kids = frozenset(kid for kid, _ in by_use)
        self.contents: frozenset[object] = contents
        self.skipped: tuple[SkippedKey, ...] = tuple(skipped)

    @property
    def uses(self) -> tuple[KeyUse, ...]:
        """The permitted uses of the keys, in the same order as in the key set."""
        return tuple(KeyUse(kid, algorithm) for kid, algorithm in self._by_use)

    @classmethod
    def parse(cls, document: Mapping[str, Any], algorithms: frozenset[str]) -> KeySet:
        """Parse a JWK set and skip keys that cannot or must not be used to verify tokens.

        The skipped keys are encryption keys, keys that do not match a configured algorithm, keys that are too short or
        malformed, and keys with an ambiguous ``kid``. A ``kid`` is ambiguous if two or more different keys share it.

        Raises:
            ValueError: The document is not a JWK set.

        Source: RFC 7517, sections 4 and 5.
        """
        members = document.get("keys")
        if not isinstance(members, list):
            raise ValueError("expected a JWK set")
        usable, skipped = _split([_normalize(member) for member in members])
        by_kid: dict[str, set[object]] = {}
        for jwk in usable:
            if "kid" in jwk:
                by_kid.setdefault(jwk["kid"], set()).add(_identity(jwk))
        ambiguous = {kid for kid, identities in by_kid.items() if len(identities) > 1}
        by_use: dict[tuple[str | None, str], tuple[Key, ...]] = {}
        contents = set()
        for jwk in usable:
            kid = jwk.get("kid")
            if kid in ambiguous:
                skipped.append(SkippedKey(kid, "duplicate kid"))
                continue
            names = _algorithms_of(jwk) & algorithms
            problem = None if names else "not for an accepted algorithm"
            for name in sorted(names):
                key = _build(jwk, name)
                use = (kid, name)
                if isinstance(key, str):
                    problem = key
                elif (use, _identity(jwk), key.issuer) not in contents:
                    contents.add((use, _identity(jwk), key.issuer))
                    by_use[use] = (*by_use.get(use, ()), key)
            if problem is not None:
                skipped.append(SkippedKey(kid, problem))
        return cls(by_use, frozenset(contents), skipped)

    def find(self, kid: str | None, algorithm: str) -> tuple[Key, ...]:
        """Return the keys that match a token header. Different public keys can match only if *kid* is ``None``."""
        return self._by_use.get((kid, algorithm), ())

    def knows(self, kid: str | None) -> bool:
        """Return whether the key set contains a key with this ``kid`` for any algorithm."""
        return kid in self._kids

    def describe_skipped(self) -> str:
        """Return each problem and the number of affected keys, or an empty string if all keys are usable."""
        counts = Counter(problem for _, problem in self.skipped)
        return ", ".join(f"{count} {problem}" for problem, count in counts.items())

    def __len__(self) -> int:
        return len(self.contents)


# The length, in octets, of a coordinate on each curve (RFC 7518, section 6.2.1.2).
_COORDINATES: Final = {"P-256": 32, "P-384": 48, "P-521": 66, "secp256k1": 32}
_NUMBERS: Final = ("n", "e", "x", "y")


def _normalize(jwk: object) -> object:
    """Convert a nonconforming but unambiguous key to the format that RFC 7518 requires.

    Some issuers send empty values or null instead of omitting members, add padding to base64url values, use the base64
    alphabet, add leading zero octets to the numbers in RSA keys, or omit leading zero octets from coordinates.
    """
    if not isinstance(jwk, dict):
        return jwk
    found = {name: value for name, value in jwk.items() if value is not None and value not in ("", [])}
    for name in _NUMBERS:
        if isinstance(found.get(name), str):
            found[name] = _normalize_number(found[name], name, jwk)
    return found


def _normalize_number(text: str, name: str, jwk: Mapping[str, Any]) -> str:
    plain = text.rstrip("=").replace("+", "-").replace("/", "_")
    if not _is_base64url(plain) or len(plain) > _MAX_MODULUS_LENGTH + 8 or len(plain) % 4 == 1:
        return text
    octets = base64.urlsafe_b64decode(plain + "==")
    if name in ("n", "e"):
        octets = octets.lstrip(b"\0")
    elif jwk.get("kty") == "EC" and isinstance(jwk.get("crv"), str):
        length = _COORDINATES.get(jwk["crv"], len(octets))
        octets = octets.lstrip(b"\0").rjust(length, b"\0")
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")


def _split(members: Sequence[Any]) -> tuple[list[Mapping[str, Any]], list[SkippedKey]]:
    """Separate public keys for signatures from all other entries in the key set."""
    usable, skipped = [], []
    for member in members:
        problem = _problem_with(member)
        if problem is None:
            usable.append(member)
        else:
            kid = member.get("kid") if isinstance(member, dict) else None
            skipped.append(SkippedKey(kid if isinstance(kid, str) else None, problem))
    return usable, skipped


def _problem_with(jwk: object) -> str | None:
    names = ("kid", "kty", "crv", "alg")
    if not isinstance(jwk, dict) or not all(isinstance(jwk.get(name, ""), str) for name in names):
        return "malformed"
    if jwk.get("kty") not in _PUBLIC_MEMBERS:
        return "not an RSA, EC, or OKP key"
    operations = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return NOT_FOR_SIGNATURES
    return None


def _identity(jwk: Mapping[str, Any]) -> object:
    """Return the members that identify a key (RFC 7638, section 3.2)."""
    return tuple(str(jwk.get(name)) for name in _PUBLIC_MEMBERS[jwk["kty"]])


def _algorithms_of(jwk: Mapping[str, Any]) -> frozenset[str]:
    """Return the algorithms that the key's type, curve, and ``alg`` allow."""
    kind = (jwk["kty"], None if jwk["kty"] == "RSA" else jwk.get("crv"))
    fitting = frozenset(name for name, kinds in KEY_TYPES.items() if kind in kinds)
    if "alg" not in jwk:
        return fitting
    same = {"EdDSA", "Ed25519"} if jwk["alg"] in ("EdDSA", "Ed25519") else {jwk["alg"]}
    return fitting & same


def _build(jwk: Mapping[str, Any], name: str) -> Key | str:
    """Build the key for the *name* algorithm, or return the reason why the key cannot be used."""
    public = {member: jwk.get(member) for member in _PUBLIC_MEMBERS[jwk["kty"]]}
    values = [public[member] for member in ("n", "e", "x", "y") if member in public]
    if not all(
        isinstance(value, str) and len(value) <= _MAX_MODULUS_LENGTH and _is_base64url(value) for value in values
    ):
        return "malformed"
    # PyJWT supports only the name EdDSA, not Ed25519.
    algorithm = get_default_algorithms()["EdDSA" if name == "Ed25519" else name]
    try:
        material = algorithm.from_jwk(public)
        if algorithm.check_key_length(material) is not None:
            return "too short"
    except Exception:  # skip the key if any error occurs
        return "malformed"
    issuer = jwk.get("issuer")
    return Key(algorithm, material, issuer if isinstance(issuer, str) else None)
