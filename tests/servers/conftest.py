"""Fixtures for servers that verify the tokens of an issuer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

# The imports are in the fixture because the oldest environment does not have all of these libraries.


@pytest.fixture
def forget() -> Iterator[None]:
    """Forget authenticators, which are shared by equal settings, and what earlier requests have reached."""
    from otel_token_relay.configured_authenticator import build_authenticator
    from tests.support.protected_servers import reached

    build_authenticator.cache_clear()
    reached.clear()
    yield
    build_authenticator.cache_clear()
