"""Run the demo's authorization server in a separate process for tests.

A separate process is necessary because a relay in the server's process would also verify the requests for the server's
signing keys. To verify such a request, the relay would need the requested keys.
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

# These packages are required to run the server and to verify its tokens.
_NEEDED: Final = ("authlib", "cryptography", "flask", "joserfc", "jwt", "urllib3")


class AuthorizationServer:
    """A real authorization server on the loopback interface, with two users and three services.

    The server issues access tokens (RFC 9068, RS256) and publishes its keys. The server also introspects, revokes, and
    exchanges tokens (RFC 8693).

    Attributes:
        issuer: The server's URL, ``http://127.0.0.1:port``.
        users: The users' names, which are ``alice`` and ``bob``.
        services: The services' names, which are ``user-service``, ``profile-service``, and ``billing-service``. Each
            service has credentials and can be the audience of an exchanged token.
    """

    users: Final = ("alice", "bob")
    services: Final = ("user-service", "profile-service", "billing-service")

    def __init__(self, issuer: str) -> None:
        self.issuer: str = issuer

    def token_for(
        self, user: str, *, audience: str | Sequence[str] = "profile-service", scope: str = "profile"
    ) -> BearerToken:
        """Sign in a user, and return a new access token.

        Args:
            user: A name from *users*.
            audience: The token's audience, which can be any name or sequence of names.
            scope: ``profile``, ``email``, or a space-separated list of both.

        Raises:
            ValueError: The user does not exist.
        """
        if user not in self.users:
            raise ValueError(f"unknown user; expected {' or '.join(self.users)}")
        return BearerToken(sign_in(self.issuer, user, scope=scope, resource=audience))

    def verifying(self, audience: str = "profile-service") -> dict[str, Any]:
        """Return the `Settings` fields for a service that accepts only this server's tokens for *audience*."""
        return {"verify": "enforce", "issuers": (self.issuer,), "audience": (audience,)}

    def exchanging(self, service: str = "profile-service") -> dict[str, Any]:
        """Return the `Settings` fields for a service that verifies tokens and exchanges them at this server.

        Args:
            service: A name from *services*.

        Raises:
            ValueError: The service does not exist.
        """
        if service not in self.services:
            raise ValueError(f"unknown service; expected one of {', '.join(self.services)}")
        return {**self.verifying(service), "client_id": service, "client_secret": f"{service}-secret"}

    def revoke(self, token: BearerToken) -> None:
        """Revoke an access token (RFC 7009). Introspection then reports the token as inactive."""
        sign_out(self.issuer, token.reveal())

    def __repr__(self) -> str:
        return f"<AuthorizationServer {self.issuer}>"


@contextmanager
def running_authorization_server() -> Generator[AuthorizationServer, None, None]:
    """Run the server on a free loopback port until the block ends.

    The server also stops if the current process exits or is killed.

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
    # The tests' OpenTelemetry and token relay settings must not affect the server.
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
