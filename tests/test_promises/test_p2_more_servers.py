"""P2, one request, one token, for the servers with a boundary of their own."""

from __future__ import annotations

import warnings
from contextlib import contextmanager

import pytest

from otel_token_relay import Settings, install, uninstall
from tests.support.more_servers import FAILED, GRPC_ROWS, NOTHING, ROWS

ALICE = "alice-token-0001"
BOB = "bob-token-0000001"


@contextmanager
def running(server, is_instrumented):
    """Serve, with contrib's instrumentation or without."""
    if not server.is_by_hand:
        install(Settings())
    instrumentor = server.instrumentor() if is_instrumented else None
    if instrumentor is not None:
        with warnings.catch_warnings():
            # aiohttp's, for instrumentation that derives from its Application.
            warnings.simplefilter("ignore", DeprecationWarning)
            instrumentor.instrument()
    try:
        with server.serve() as call:
            yield call
    finally:
        if instrumentor is not None:
            instrumentor.uninstrument()
        uninstall()


SERVERS = [
    pytest.param((server, is_instrumented), id=f"{server.name}{', instrumented' if is_instrumented else ''}")
    for server in ROWS
    for is_instrumented in (False, True)
    if server.instrumentor is not None or not is_instrumented
]


@pytest.fixture(params=SERVERS)
def call(request):
    """One server after the other, and one connection to it."""
    with running(*request.param) as call:
        yield call


def bearer(token):
    return f"Bearer {token}"


def test_each_request_of_a_connection_has_its_own_token(call):
    """Or none, also after another user's and after a failure."""
    assert call("/token", bearer(ALICE)) == ALICE
    assert call("/token", bearer(BOB)) == BOB
    assert call("/token") == NOTHING
    assert call("/boom", bearer(ALICE)) == FAILED
    assert call("/token") == NOTHING
    assert call("/token", bearer(BOB)) == BOB


def test_the_body_has_the_token_while_it_is_made(call):
    """Every piece of it."""
    assert call("/stream", bearer(ALICE)).split() == [ALICE] * 3
    assert call("/stream").split() == [NOTHING] * 3


def test_the_lease_ends_with_the_request(call):
    """Whoever still holds the context has nothing, also of a request that failed."""
    call("/kept")

    assert call("/keep", bearer(ALICE)) == ALICE
    assert call("/boom", bearer(BOB)) == FAILED
    assert call("/keep") == NOTHING

    assert call("/kept", bearer(ALICE)) == " ".join([NOTHING] * 3)


@pytest.mark.parametrize(
    "credentials",
    [
        pytest.param((bearer(ALICE), bearer(BOB)), id="two"),
        pytest.param((bearer(ALICE), bearer(ALICE)), id="the same twice"),
        pytest.param((f"{bearer(ALICE)}, {bearer(BOB)}",), id="a comma"),
        pytest.param(("Basic YWxpY2U6c2VjcmV0",), id="another scheme"),
        pytest.param((bearer("a b"),), id="malformed"),
    ],
)
def test_credentials_that_are_no_token_are_refused(call, credentials):
    """Instrumentation that reads one of two lines does not change that."""
    assert call("/token", *credentials) == NOTHING
    assert call("/token", bearer(BOB)) == BOB


@pytest.mark.parametrize("server", GRPC_ROWS, ids=lambda server: server.name)
def test_requests_that_stream_in_belong_to_their_call(server):
    """Each of them is read under its token."""
    with running(server, server.instrumentor is not None) as call:
        assert call("/upload", bearer(ALICE)).split() == [ALICE] * 3
        assert call("/upload").split() == [NOTHING] * 3


@pytest.mark.parametrize("server", [row for row in ROWS if not row.is_by_hand], ids=lambda server: server.name)
def test_nothing_is_bound_without_install(server):
    """The boundary is a hook's doing, and goes with it."""
    with server.serve() as call:
        assert call("/token", bearer(ALICE)) == NOTHING

    install(Settings())
    with server.serve() as call:
        assert call("/token", bearer(ALICE)) == ALICE
        uninstall()
        assert call("/token", bearer(ALICE)) == NOTHING
