"""A verifier for the tokens of a test's issuer."""

from __future__ import annotations

import pytest

from otel_token_relay.verification import TokenVerifier
from tests.support.issuers import Issuer
from tests.support.tokens import AUDIENCE


@pytest.fixture(scope="module")
def verifier(issuer: Issuer) -> TokenVerifier:
    """Return a verifier with the keys of the module's issuer."""
    return TokenVerifier([issuer.url], AUDIENCE)
