"""Run the demo's authorization server for tests, in a separate process.

If it ran in the process in which the relay is installed, the relay would have to verify the requests for the very keys
that it needs for verification.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any, Final

from otel_token_relay.demo.lifeline import tie
from otel_token_relay.demo.sign_in import sign_in, sign_out
from otel_token_relay.token import BearerToken

# The packages that the server needs, and the packages that are needed to verify its tokens.
_NEEDED: Final = ("authlib", "cryptography", "flask", "joserfc", "jwt", "urllib3")


class AuthorizationServer:
    """A real authorization server on loopback, with two users and three services.

    It issues access tokens (RFC 9068, RS256), publishes its keys, and introspects, revokes, and exchanges tokens
    (RFC 8693).

    Attributes:
        issuer: The server's URL, ``http://127.0.0.1:port``.
        users: The users: ``alice`` and ``bob``.
        services: The services, which have credentials and can be the audience of exchanged tokens: ``user-service``,
            ``profile-service``, and ``billing-service``.
    """

    users: Final = ("alice", "bob")
    services: Final = ("user-service", "profile-service", "billing-service")

    def __init__(self, issuer: str) -> None:
        self.issuer: str = issuer

    def token_for(
        self, user: str, *, audience: str | Sequence[str] = "profile-service", scope: str = "profile"
    ) -> BearerToken:
        """Sign a user in, and return a new access token.

        Args:
            user: One of *users*.
            audience: The service or services that the token is for. Any name is accepted.
            scope: ``profile``, ``email``, or both, separated by a space.

        Raises:
            ValueError: The user does not exist.
        """
        if user not in self.users:
            raise ValueError(f"expected one of the users {' and '.join(self.users)}")
        return BearerToken(sign_in(self.issuer, user, scope=scope, resource=audience))

    def verifying(self, audience: str = "profile-service") -> dict[str, Any]:
        """Return the `Settings` fields for a service that accepts only this server's tokens for *audience*."""
        return {"verify": "enforce", "issuers": (self.issuer,), "audience": (audience,)}

    def exchanging(self, service: str = "profile-service") -> dict[str, Any]:
        """Return the `Settings` fields for a service that verifies tokens and exchanges them at this server.

        Args:
            service: One of *services*.

        Raises:
            ValueError: The service does not exist.
        """
        if service not in self.services:
            raise ValueError(f"expected one of the services {', '.join(self.services)}")
        return {**self.verifying(service), "client_id": service, "client_secret": f"{service}-secret"}

    def revoke(self, token: BearerToken) -> None:
        """Revoke an access token (RFC 7009), which introspection then reports as inactive."""
        sign_out(self.issuer, token.reveal())

    def __repr__(self) -> str:
        return f"<AuthorizationServer {self.issuer}>"


@contextmanager
def running_authorization_server() -> Generator[AuthorizationServer, None, None]:
    """Run the server on a free loopback port until the block ends.

    The server's process ends with this one, even if this one is killed.

    Raises:
        ModuleNotFoundError: A package from the ``demo`` extra is missing.
        RuntimeError: The server did not start.
    """
    for name in _NEEDED:
        if find_spec(name) is None:
            raise ModuleNotFoundError(
                "the authorization server requires the 'demo' extra: pip install 'otel-token-relay[demo]'"
                f" ({name} is missing)",
                name=name,
            )
    lifeline, our_end = os.pipe()
    program = [sys.executable, "-W", "ignore", "-m", "otel_token_relay.demo.authorization_server"]
    # The tests' settings for OpenTelemetry and for this package must not affect the server.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    process = subprocess.Popen(  # noqa: S603  # a fixed command
        tie(program, lifeline),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=(lifeline,),
        start_new_session=True,
        text=True,
    )
    try:
        if process.stdout is None:
            raise RuntimeError("the authorization server has no output")
        ready, _, issuer = process.stdout.readline().strip().partition(" ")
        if ready != "ready":
            raise RuntimeError("the authorization server did not start: run otel-token-relay demo to see why")
        yield AuthorizationServer(issuer)
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        os.close(lifeline)
        os.close(our_end)
