"""The demo's authorization server in a separate process, with injectable faults, and its client."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from otel_token_relay.demo.sign_in import sign_in, sign_out

AUDIENCE = "profile-service"
# Basic credentials must encode the special characters of this secret (RFC 6749, section 2.3.1).
INTROSPECTS = ("profile-service", "s3cret & more: 100%")


class AuthorizationServer:
    """A client for the tests."""

    def __init__(self, issuer: str) -> None:
        self.issuer = issuer
        self._http = httpx.Client(base_url=issuer, trust_env=False)

    def log_in(self, user: str, scope: str = "profile", *, opaque: bool = False, audience: str | None = None) -> str:
        """Sign in with the authorization code flow and PKCE, and return the access token."""
        client_id = "opaque" if opaque else "web"
        return sign_in(self.issuer, user, client_id=client_id, scope=scope, resource=audience or ())

    def revoke(self, token: str) -> None:
        """Revoke a token (RFC 7009)."""
        sign_out(self.issuer, token, client_id="web" if "." in token else "opaque")

    def rotate(self, *, keep: bool) -> None:
        """Sign with a new key, and keep the old key published only if *keep* is set."""
        self._http.post("/keys/rotate", data={"keep": "true" if keep else "false"}).raise_for_status()

    @contextmanager
    def failing(self, path: str = "", *, status: int | None = 503, delay: float = 0) -> Iterator[None]:
        """Respond to requests for *path*, or for all paths, after *delay* seconds; ``None`` as *status* sends the
        real response.
        """
        self._http.post("/fault", json={"path": path, "status": status, "delay": delay}).raise_for_status()
        try:
            yield
        finally:
            self._http.delete("/fault").raise_for_status()

    def count(self, path: str) -> int:
        """Return the number of requests for *path*."""
        hits: list[str] = self._http.get("/hits").json()
        return hits.count(path)

    def close(self) -> None:
        self._http.close()


@contextmanager
def authorizing() -> Iterator[AuthorizationServer]:
    """Run the server on a free loopback port until the block ends."""
    from tests.support.processes import end, start  # imported here because the server runs this file as a script

    process = start(
        [sys.executable, "-W", "ignore", __file__], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        ready, _, issuer = process.stdout.readline().strip().partition(" ")
        assert ready == "ready", "the authorization server did not start"
        server = AuthorizationServer(issuer)
        yield server
        server.close()
    finally:
        end(process)
        if process.stdout is not None:
            process.stdout.close()


class Faults:
    """A WSGI application that wraps the server, counts requests, and can respond in the server's place."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._hits: list[str] = []
        self._fault: dict[str, Any] | None = None
        self._is_over = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path == "/hits":
            return self._answer(start_response, 200, self._hits)
        if path == "/fault":
            self._is_over.set()
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            self._fault, self._is_over = json.loads(body) if method == "POST" else None, threading.Event()
            return self._answer(start_response, 200, {})
        self._hits.append(path)
        fault, is_over = self._fault, self._is_over
        if fault is None or fault["path"] not in ("", path):
            return self._app(environ, start_response)
        is_over.wait(fault["delay"])
        if fault["status"] is None:
            return self._app(environ, start_response)
        return self._answer(start_response, fault["status"], {})

    @staticmethod
    def _answer(start_response: Any, status: int, document: Any) -> list[bytes]:
        start_response(f"{status} .", [("Content-Type", "application/json")])
        return [json.dumps(document).encode()]


def build(issuer: str) -> Faults:
    """Return the demo's server with additional clients and the fault injector."""
    from otel_token_relay.demo import token_exchange
    from otel_token_relay.demo.authorization_server import CLIENTS, Client, Server, Tokens, create_app

    class WithOpaque(Tokens):
        def access_token_generator(self, client: Client, grant_type: str, user: Any, scope: str) -> str:
            if client.client_id == "opaque":
                return secrets.token_urlsafe(40)
            return str(super().access_token_generator(client, grant_type, user, scope))

    name, secret = INTROSPECTS
    more = (
        Client("opaque", ("authorization_code", "refresh_token")),
        Client(name, ("client_credentials", token_exchange.GRANT_TYPE), secret),
        Client("billing-service", ("client_credentials",), "billing-service-secret"),
        Client("billing-api", (), "billing-api-secret"),
    )
    server = Server(issuer, clients=CLIENTS | {client.client_id: client for client in more})
    server.register_token_generator("default", WithOpaque(issuer, server.keys, 300))
    return Faults(create_app(server))


if __name__ == "__main__":
    from otel_token_relay.demo.authorization_server import serve

    serve(build)
