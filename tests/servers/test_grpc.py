"""Behavior of the gRPC boundary that HTTP servers do not have."""

from __future__ import annotations

import pytest

from tests.support.apps import NONE
from tests.support.servers import SERVERS, GrpcServed, served

A, B = "token-of-a", "token-of-b"

GRPC_SERVERS = [server for server in SERVERS if server.reach is GrpcServed]


@pytest.mark.parametrize("server", GRPC_SERVERS, ids=lambda server: server.name)
def test_streamed_requests_are_read_with_the_token_of_their_call(server):
    """The call's token is bound while each request message of a stream is read."""
    with served(server) as one, one.connection() as connection:
        assert connection.call("/upload", A).text.split() == [A] * 3
        assert connection.call("/upload").text.split() == [NONE] * 3


@pytest.mark.parametrize("server", GRPC_SERVERS, ids=lambda server: server.name)
def test_two_authorization_entries_are_ambiguous(server):
    """Two `authorization` entries bind no token, because using the last one could serve A's call with B's token."""
    entries = [("authorization", f"Bearer {A}"), ("authorization", f"Bearer {B}")]
    with served(server) as one:
        assert one.get("/token", headers=entries).text == NONE
        assert one.get("/token", B).text == B
