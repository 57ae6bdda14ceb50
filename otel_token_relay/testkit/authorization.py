"""Run the authorization server of the demo for tests, in a process of its own.

It would otherwise be served in the process in which the relay is installed, and would have to verify the requests for
the keys with which it verifies them.
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

# What the server imports, and what verifies its tokens.
_NEEDED: Final = ("authlib", "cryptography", "flask", "joserfc", "jwt", "urllib3")


class AuthorizationServer:
    """A real authorization server on loopback, with two users and three services.

    It issues access tokens (RFC 9068, RS256), publishes its keys, introspects, revokes and exchanges tokens (RFC 8693).

    Attributes:
        issuer: Its URL, ``http://127.0.0.1:port``.
        users: The users: ``alice`` and ``bob``.
        services: The services, which have credentials and for which tokens can be exchanged: ``user-service``,
            ``profile-service`` and ``billing-service``.
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
            scope: Any of ``profile`` and ``email``, separated by spaces.

        Raises:
            ValueError: The user does not exist.
        """
        if user not in self.users:
            raise ValueError(f"expected one of the users {' and '.join(self.users)}")
        return BearerToken(sign_in(self.issuer, user, scope=scope, resource=audience))

    def verifying(self, audience: str = "profile-service") -> dict[str, Any]:
        """Return the fields of `Settings` with which a service accepts only tokens of this server for *audience*."""
        return {"verify": "enforce", "issuers": (self.issuer,), "audience": (audience,)}

    def exchanging(self, service: str = "profile-service") -> dict[str, Any]:
        """Return the fields of `Settings` with which a service verifies tokens and exchanges them at this server.

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
    """Run the server on a free port of loopback until the block ends.

    The process ends with this one, even if this one is killed.

    Raises:
        ModuleNotFoundError: A package of the ``demo`` extra is missing.
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
    # The tests' settings of OpenTelemetry, and of this package, are not meant for this server.
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
