"""Fixtures for a listed server that responds with the token it received, and for a relay that is enabled for the
server.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from otel_token_relay import Settings, install, uninstall


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    """The only listed server."""
    # Imported here because the oldest environment lacks some of these libraries.
    from tests.support.carrying import echo_server

    with echo_server() as url:
        yield url


@pytest.fixture
def settings(echo: str) -> Iterator[Settings]:
    """Enable the relay for the echo server."""
    settings = Settings(destinations=(echo,))
    install(settings)
    yield settings
    uninstall()
