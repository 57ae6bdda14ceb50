"""A real HTTP server that acts as an issuer, with metadata, keys, introspection, and injectable faults."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from tests.support.tokens import claims, make_token


class Issuer:
    """The server's responses and the requests that it received.

    Attributes:
        url: The issuer, ``http://127.0.0.1:port``.
        keys: The keys in the key set.
        hits: The requested paths, oldest first.
        seen: All received headers and bodies, as text.
        behave: A function that receives the handler and the path, and returns ``True`` if it sent its own response.
        introspect: A function that returns the introspection response for a token.
    """

    def __init__(self, url: str, keys: list[dict[str, Any]]) -> None:
        self.url = url
        self.keys: Any = keys
        self.hits: list[str] = []
        self.seen: list[str] = []
        self.headers: dict[str, str] = {}
        self.metadata: dict[str, Any] = {"issuer": url, "jwks_uri": f"{url}/jwks"}
        self.metadata_path = "/.well-known/openid-configuration"
        self.behave: Callable[[BaseHTTPRequestHandler, str], bool] | None = None
        self.introspect: Callable[[str], Any] = lambda token: {"active": False}
        self.released = threading.Event()

    @property
    def fetches(self) -> int:
        """Return the number of requests for the key set."""
        return self.hits.count("/jwks")

    def hang(self, handler: BaseHTTPRequestHandler, path: str) -> bool:
        """Do not respond until the test ends."""
        self.released.wait(20)
        return True

    def fail(self, handler: BaseHTTPRequestHandler, path: str) -> bool:
        """Respond with status 503."""
        handler.send_response(503)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == self.metadata_path:
            return 200, self.metadata
        if path == "/jwks":
            return 200, {"keys": self.keys}
        if path == "/introspect":
            return 200, self.introspect(parse_qs(body.decode())["token"][0])
        return 404, {}


@contextmanager
def issuing(*keys: dict[str, Any], tls: bool = False) -> Iterator[Issuer]:
    """Run an issuer on a free loopback port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            issuer.hits.append(path)
            issuer.seen.append(f"{self.headers}\n{body.decode()}")
            try:
                if issuer.behave is not None and issuer.behave(self, path):
                    return
                status, document = issuer.answer(path, body)
                text = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                for name, value in issuer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)
            except OSError:
                pass  # the client has disconnected, as it should when the response is too large

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: object, client_address: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    if tls:
        from tests.support.loopback import serving_context  # the oldest environment lacks gRPC

        server.socket = serving_context().wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    issuer = Issuer(f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}", list(keys))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield issuer
    finally:
        issuer.released.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


def bearer(issuer: Issuer, **changes: Any) -> dict[str, str]:
    """Return the Authorization header with a token from *issuer*; *changes* are changed claims."""
    return {"Authorization": f"Bearer {make_token(claims(issuer.url, **changes))}"}


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for a condition that a different thread fulfills.

    Raises:
        AssertionError: The condition was not fulfilled in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("it has not happened in time")
        time.sleep(0.01)
