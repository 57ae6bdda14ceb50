"""The gRPC boundary: what servers of HTTP do not have. The rest is in their table."""

from __future__ import annotations

import pytest

from tests.support.apps import NONE
from tests.support.servers import SERVERS, GrpcServed, served

A, B = "token-of-a", "token-of-b"

GRPC_SERVERS = [server for server in SERVERS if server.reach is GrpcServed]


@pytest.mark.parametrize("server", GRPC_SERVERS, ids=lambda server: server.name)
def test_requests_that_stream_in_belong_to_their_call(server):
    """Each of them is read under its token."""
    with served(server) as one, one.connection() as connection:
        assert connection.call("/upload", A).text.split() == [A] * 3
        assert connection.call("/upload").text.split() == [NONE] * 3


@pytest.mark.parametrize("server", GRPC_SERVERS, ids=lambda server: server.name)
def test_two_authorization_entries_are_ambiguous(server):
    """Metadata may hold a key twice; instrumentation would take the last, and so hand A's call to B."""
    entries = [("authorization", f"Bearer {A}"), ("authorization", f"Bearer {B}")]
    with served(server) as one:
        assert one.get("/token", headers=entries).text == NONE
        assert one.get("/token", B).text == B
