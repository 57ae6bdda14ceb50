"""Fixtures: a listed server that responds with the token it received, and the relay switched on for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from otel_token_relay import Settings, install, uninstall


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    """The only listed server."""
    # Imported here because the oldest environment does not have all of these libraries.
    from tests.support.carrying import echo_server

    with echo_server() as url:
        yield url


@pytest.fixture
def settings(echo: str) -> Iterator[Settings]:
    """Switch the relay on for that server."""
    settings = Settings(destinations=(echo,))
    install(settings)
    yield settings
    uninstall()
