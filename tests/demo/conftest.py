"""The authorization server of the demo, for the tests of its parts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.processes import end, start


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    """The URL of an authorization server in its own process."""
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
