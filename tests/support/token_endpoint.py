"""A loopback token endpoint whose responses a test chooses, and tokens that are considered verified."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from otel_token_relay.exchange import TokenExchanger
from otel_token_relay.token import BearerToken, Lease

ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
SECRET = "the-secret-of-the-service"

Response = tuple[int, Any]


class Verified:
    """A verification that can be withdrawn."""

    def __init__(self) -> None:
        self.claims: dict[str, object] = {}
        self.expires_at: float | None = None
        self.is_valid = True

    def is_still_valid(self) -> bool:
        return self.is_valid


def verified(value: str, lease: Lease | None = None) -> BearerToken:
    token = BearerToken(value, lease=lease)
    token.mark_verified(Verified())
    return token


def unsigned_jwt(**claims: Any) -> str:
    parts = (json.dumps(part).encode() for part in ({"alg": "none"}, claims))
    return ".".join([*(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts), "c2ln"])


class Endpoint:
    """A token endpoint that counts its requests. *respond* returns the status and the body of a response."""

    def __init__(self) -> None:
        self.forms: list[dict[str, str]] = []
        self.authorizations: list[str | None] = []
        self.running = self.most = 0
        self.lock = threading.Lock()
        self.respond: Callable[[dict[str, str]], Response] = self.issue
        self.url = ""

    def issue(self, form: dict[str, str]) -> Response:
        subject = form.get("subject_token", "service")
        token = f"{subject}.for.{form.get('audience', 'any')}"
        return 200, {
            "access_token": token,
            "issued_token_type": ACCESS_TOKEN,
            "token_type": "Bearer",
            "expires_in": 300,
        }

    def issue_numbered(self, form: dict[str, str]) -> Response:
        """Issue a new token for each request: the subject token, a period, and the number of the request."""
        status, document = self.issue(form)
        return status, document | {"access_token": f"{form.get('subject_token', 'service')}.{len(self.forms)}"}

    def handle(self, form: dict[str, str], authorization: str | None) -> Response:
        with self.lock:
            self.forms.append(form)
            self.authorizations.append(authorization)
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            return self.respond(form)
        finally:
            with self.lock:
                self.running -= 1

    def exchanger(self, kind: type[Any] = TokenExchanger, **options: Any) -> Any:
        return kind(token_endpoint=self.url, client_id="user-service", client_secret=SECRET, **options)


@contextmanager
def serving() -> Iterator[Endpoint]:
    endpoint = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            form = {name: values[0] for name, values in parse_qs(body).items()}
            status, document = endpoint.handle(form, self.headers["Authorization"])
            content = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with suppress(BrokenPipeError):  # the client has disconnected
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128  # with the default of 5, many simultaneous callers cause connection resets

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_port}/token"
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
