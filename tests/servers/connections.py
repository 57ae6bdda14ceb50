"""Checks that apply to the connections of every server, regardless of how its boundary is installed."""

from __future__ import annotations

from otel_token_relay import uninstall
from tests.support.apps import NONE
from tests.support.servers import Server, served

A, B = "token-of-a", "token-of-b"


def check_each_request_has_its_own_token(server: Server) -> None:
    """Check that two users and anonymous clients that share a connection see only their own tokens, also in streams."""
    with served(server) as one, one.connection() as connection:
        for user in (A, None, B, None):
            assert connection.call("/token", user).text == (user or NONE)
            assert connection.call("/stream", user).text.split() == [user or NONE] * 3


def check_an_open_connection_binds_no_token_after_uninstall(server: Server) -> None:
    """Check that a connection that was accepted before `uninstall` binds no token after it."""
    with served(server) as one, one.connection() as connection:
        assert connection.call("/token", A).text == A
        uninstall()
        assert connection.call("/token", A).text == NONE
