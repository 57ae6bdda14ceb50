"""Shared fixtures, and the check that each test leaves nothing installed."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import certifi
import hypothesis
import pytest
from opentelemetry.propagate import get_global_textmap, set_global_textmap

from otel_token_relay.installation import hook_states, uninstall
from tests.support.echo import echo, settings

if TYPE_CHECKING:
    from tests.support.issuers import Issuer
    from tests.support.loopback import Party
    from tests.support.real_servers import RealServers
    from tests.support.token_endpoint import Endpoint

__all__ = ["clean_process", "echo", "endpoint", "issuer", "one", "real_servers", "serving_process", "settings"]

# The `benchmarks` and `tools` packages are not installed. Appending the checkout to the path keeps it from
# shadowing an installed wheel.
sys.path.append(str(Path(__file__).parents[1]))

# Importing the instrumentation of these libraries takes half of each start, and launched programs do not need it.
_UNUSED = "aiobotocore,botocore,celery,kafka"
if not os.environ.get("FULL_MATRIX"):
    _UNUSED += ",aiohttp-client,aiohttp-server,falcon,grpc_aio_client,grpc_aio_server,grpc_client,grpc_server,tornado"
os.environ.setdefault("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", _UNUSED)

# Without this authority, each client and each launched program would read 140 certificates, which takes longer than
# many tests. No test connects to a server whose certificate one of them has signed.
_AUTHORITY = str(Path(__file__).parent / "support" / "authority.pem")
os.environ["SSL_CERT_FILE"] = _AUTHORITY
certifi.where = lambda: _AUTHORITY

# Hypothesis deadlines are off because test machines can be slow and no test measures time.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    """Exclude modules and tests from garbage collection, which would spend half a second on them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def clean_process():
    """Check that nothing is installed before the test, and uninstall everything after it."""
    assert hook_states() == {}, "the previous test did not uninstall"
    textmap = get_global_textmap()
    servers = _grpc_servers()
    yield
    uninstall()
    set_global_textmap(textmap)
    if servers:
        assert _grpc_servers() == servers, "the test left a wrapper around grpc.server"


def _grpc_servers() -> list[object]:
    """Return the functions that create gRPC servers, if gRPC is imported."""
    return [module.server for module in map(sys.modules.get, ("grpc", "grpc.aio")) if module is not None]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """A token endpoint whose responses the test chooses."""
    from tests.support.token_endpoint import serving  # the oldest environment lacks its dependencies

    with serving() as running:
        yield running


@pytest.fixture
def numbered(endpoint: Endpoint) -> Endpoint:
    """A token endpoint that issues a new token for each request."""
    endpoint.respond = endpoint.issue_numbered
    return endpoint


@pytest.fixture
def serving_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Simulate a process that has served a request but has not exchanged a token."""
    from otel_token_relay import context
    from otel_token_relay.configured_exchange import build_token_source

    build_token_source.cache_clear()
    monkeypatch.setattr(context, "has_served", True)
    yield
    build_token_source.cache_clear()


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    """An issuer with one key."""
    from tests.support.issuers import issuing  # the oldest environment lacks its dependencies
    from tests.support.tokens import public_jwk

    with issuing(public_jwk("RS256", "k1")) as running:
        yield running


@pytest.fixture(scope="session")
def real_servers() -> Iterator[RealServers]:
    """The demo's authorization server and those of other projects, each started when a test first needs it."""
    from tests.support.real_servers import RealServers  # the oldest environment lacks its dependencies

    servers = RealServers()
    yield servers
    servers.close()


@pytest.fixture
def one(request: pytest.FixtureRequest) -> Iterator[Party]:
    """A server that speaks the protocol of the test's client."""
    from tests.support.loopback import party

    row = next((request.getfixturevalue(name) for name in ("client", "form") if name in request.fixturenames), None)
    with (party if row is None else row.party)() as server:
        yield server
