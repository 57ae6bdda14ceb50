"""The signature algorithms and token profiles that the verifier supports.

This module has no dependencies, so settings can be checked even if the ``verify`` extra is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

Profile = Literal["rfc9068", "generic", "id-token"]
PROFILES: Final[tuple[Profile, ...]] = ("rfc9068", "generic", "id-token")

# RFC 7518, section 3.1; RFC 8037, section 3.1; RFC 8812, section 3.2; RFC 9864, section 2.2.
KEY_TYPES: Final[Mapping[str, frozenset[tuple[str, str | None]]]] = {
    **{name: frozenset({("RSA", None)}) for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")},
    "ES256": frozenset({("EC", "P-256")}),
    "ES384": frozenset({("EC", "P-384")}),
    "ES512": frozenset({("EC", "P-521")}),
    "ES256K": frozenset({("EC", "secp256k1")}),
    "EdDSA": frozenset({("OKP", "Ed25519"), ("OKP", "Ed448")}),
    "Ed25519": frozenset({("OKP", "Ed25519")}),
}
"""The valid ``kty`` and ``crv`` values for each algorithm. All algorithms are asymmetric (RFC 8725, section 3.1)."""

ALGORITHMS: Final = tuple(KEY_TYPES)
DEFAULT_ALGORITHMS: Final = ("RS256", "PS256", "ES256", "EdDSA")
