"""Run a listed destination whose responses depend on the token."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from otel_token_relay import Settings, install, uninstall
from tests.support.caches import Server, personal_server


@pytest.fixture
def server() -> Iterator[Server]:
    with personal_server() as running:
        install(Settings(destinations=(running.url,)))
        yield running
        uninstall()
