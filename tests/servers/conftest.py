"""Fixtures for servers that verify an issuer's tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

# The fixture contains the imports because the oldest environment does not have all of these libraries.


@pytest.fixture
def forget() -> Iterator[None]:
    """Forget the authenticators that equal settings share, and the records of earlier requests."""
    from otel_token_relay.configured_authenticator import build_authenticator
    from tests.support.protected_servers import reached

    build_authenticator.cache_clear()
    reached.clear()
    yield
    build_authenticator.cache_clear()
