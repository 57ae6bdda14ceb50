"""Fixtures for servers that verify the tokens of an issuer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.issuers import Issuer

# The imports are in the fixtures because the oldest environment does not have all of these libraries.


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    """An issuer with one key."""
    from tests.support.issuers import issuing
    from tests.support.tokens import public_jwk

    with issuing(public_jwk("RS256", "k1")) as running:
        yield running


@pytest.fixture
def forget() -> Iterator[None]:
    """Forget authenticators, which are shared by equal settings, and what earlier requests have reached."""
    from otel_token_relay.configured_authenticator import build_authenticator
    from tests.support.protected_servers import reached

    build_authenticator.cache_clear()
    reached.clear()
    yield
    build_authenticator.cache_clear()
