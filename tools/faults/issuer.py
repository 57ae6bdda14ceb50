"""A small loopback issuer with metadata, a key set, and signed access tokens (RFC 9068)."""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

LIFETIME_SECONDS = 3600


class Issuer:
    """An issuer that serves its keys from `start` to `stop`. Its port is reserved from the beginning.

    Args:
        clock_error: The number of seconds by which the issuer's clock is ahead.
        token_type: The ``typ`` header of the issuer's tokens.
    """

    def __init__(self, *, clock_error: int = 0, token_type: str = "at+jwt") -> None:
        self.clock_error = clock_error
        self.token_type = token_type
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._kid = secrets.token_hex(4)
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))  # without listen(), connections are refused
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Serve until `stop`."""
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                document = issuer._documents().get(self.path)
                body = json.dumps(document or {}).encode()
                self.send_response(200 if document else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def date_time_string(self, timestamp: float | None = None) -> str:
                return formatdate(issuer._now(), usegmt=True)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(self._socket.getsockname(), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = self._socket
        self._server.server_activate()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Close the port."""
        if self._server is not None:
            self._server.shutdown()
        self._socket.close()

    def issue(self, user: str, audience: str) -> str:
        """Return a new access token."""
        now = int(self._now())
        claims = {
            "iss": self.url,
            "aud": audience,
            "sub": user,
            "client_id": "web",
            "iat": now,
            "exp": now + LIFETIME_SECONDS,
            "jti": secrets.token_hex(8),
        }
        return jwt.encode(claims, self._key, "ES256", headers={"typ": self.token_type, "kid": self._kid})

    def _now(self) -> float:
        return time.time() + self.clock_error

    def _documents(self) -> dict[str, Any]:
        key = ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return {
            "/.well-known/openid-configuration": {"issuer": self.url, "jwks_uri": f"{self.url}/jwks"},
            "/jwks": {"keys": [key | {"kid": self._kid, "use": "sig", "alg": "ES256"}]},
        }
