"""What holds for the connections of every server, however its boundary is made."""

from __future__ import annotations

from otel_token_relay import uninstall
from tests.support.apps import NONE
from tests.support.servers import Server, served

A, B = "token-of-a", "token-of-b"


def check_each_request_has_its_own_token(server: Server) -> None:
    """Send requests of two users and anonymous ones over one connection; their streams see the same tokens."""
    with served(server) as one, one.connection() as connection:
        for user in (A, None, B, None):
            assert connection.call("/token", user).text == (user or NONE)
            assert connection.call("/stream", user).text.split() == [user or NONE] * 3


def check_an_open_connection_binds_no_token_after_uninstall(server: Server) -> None:
    """Use a connection that was accepted while the boundary was installed."""
    with served(server) as one, one.connection() as connection:
        assert connection.call("/token", A).text == A
        uninstall()
        assert connection.call("/token", A).text == NONE
