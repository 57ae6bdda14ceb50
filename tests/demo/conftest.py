"""Fixtures for the tests of the demo's authorization server and of programs that use the server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.processes import end, start


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    """Start an authorization server in its own process and return its URL."""
    process = start(
        [sys.executable, "-m", "otel_token_relay.demo.authorization_server", "--lifetime", "120"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        ready, url = process.stdout.readline().split()
        assert ready == "ready"
        yield url
    finally:
        end(process)
        process.stdout.close()
