"""All supported algorithms are asymmetric and accept only the keys that their specifications define."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest
from jwt.algorithms import get_default_algorithms

from otel_token_relay.algorithms import ALGORITHMS, DEFAULT_ALGORITHMS, KEY_TYPES, PROFILES, Profile
from tests.support.tokens import public_jwk


@pytest.mark.parametrize("name", ["none", "HS256", "HS384", "HS512", "dir", "A128KW", "rs256", ""])
def test_no_algorithm_is_symmetric_or_unsigned(name: str) -> None:
    """No supported algorithm is symmetric or unsigned, so an attacker cannot sign with a public key, and names are
    case-sensitive.
    """
    assert name not in KEY_TYPES
    assert not any(kty == "oct" for key_types in KEY_TYPES.values() for kty, _ in key_types)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_each_algorithm_has_keys_of_its_type(name: str) -> None:
    """A real key for each algorithm has one of the listed types and curves."""
    jwk = public_jwk(name)

    assert (jwk["kty"], jwk.get("crv")) in KEY_TYPES[name]
    assert KEY_TYPES[name] <= {("RSA", None)} or all(curve for _, curve in KEY_TYPES[name])


def test_a_key_of_one_curve_does_not_fit_the_algorithm_of_another() -> None:
    """A key for one curve does not fit a different curve's algorithm (RFC 7518, section 3.4)."""
    elliptic = [KEY_TYPES[name] for name in ("ES256", "ES384", "ES512", "ES256K")]

    assert all(len(key_types) == 1 for key_types in elliptic)
    assert len(frozenset().union(*elliptic)) == 4
    assert KEY_TYPES["EdDSA"] - KEY_TYPES["Ed25519"] == {("OKP", public_jwk("Ed448")["crv"])}


def test_the_default_algorithms_are_supported() -> None:
    """The default algorithms are supported, and the signature library implements each of them."""
    assert set(DEFAULT_ALGORITHMS) < set(ALGORITHMS) == set(KEY_TYPES)
    assert set(ALGORITHMS) - {"Ed25519"} <= set(get_default_algorithms())


def test_the_profiles_are_those_of_the_type() -> None:
    """A type checker and the settings accept the same profiles."""
    assert get_args(Profile) == PROFILES


def test_the_table_needs_no_optional_dependency() -> None:
    """The table works without the optional `verify` dependencies, so settings can always be checked."""
    program = (
        "import sys; sys.modules.update(jwt=None, cryptography=None)\n"
        "import otel_token_relay.algorithms, otel_token_relay.settings\n"
        "otel_token_relay.settings.Settings(algorithms=('ES256',))"
    )

    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert (ran.returncode, ran.stderr) == (0, "")
