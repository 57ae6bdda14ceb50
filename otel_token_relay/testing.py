"""Test helpers for installing the relay, recording its decisions, creating callers, and detecting leaked tokens.

    with third_party() as outsider:
        call_the_application_that_calls(outsider.url)

    outsider.assert_saw_no("eyJ…")
    assert_never_leaked("eyJ…", exporter.get_finished_spans(), caplog.text)

The third party is a real HTTP server on the loopback interface. Failure messages never contain the token.
"""

from __future__ import annotations

import json
import logging
import threading
import traceback
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from otel_token_relay.testkit.authorization import AuthorizationServer, running_authorization_server
from otel_token_relay.testkit.callers import Caller, CallerRefused
from otel_token_relay.testkit.decision_records import (
    RecordedDecision,
    RecordedDecisions,
    RecordedVerification,
    recording,
)
from otel_token_relay.testkit.installations import InstalledRelay, installed_relay

__all__ = [
    "AuthorizationServer",
    "Caller",
    "CallerRefused",
    "InstalledRelay",
    "RecordedDecision",
    "RecordedDecisions",
    "RecordedVerification",
    "SeenRequest",
    "ThirdParty",
    "assert_never_leaked",
    "installed_relay",
    "recording",
    "running_authorization_server",
    "third_party",
]


class SeenRequest:
    """A request, exactly as the server received it.

    Attributes:
        method: The method in the request line.
        target: The request target, which is the path and query or, for CONNECT, ``host:port``.
        body: The request body, with any chunked transfer coding removed.
    """

    __slots__ = ("_headers", "body", "method", "target")

    def __init__(self, method: str, target: str, headers: list[tuple[str, str]], body: bytes) -> None:
        self.method: str = method
        self.target: str = target
        self.body: bytes = body
        self._headers = headers

    def header_lines(self, name: str) -> list[str]:
        """Return the values of all header lines with the given name, in order. Header names are not case-sensitive."""
        return [value for key, value in self._headers if key.lower() == name.lower()]

    @property
    def authorization(self) -> str | None:
        """The value of the ``Authorization`` header; ``None`` if the request has no such header.

        Raises:
            AssertionError: The request has multiple ``Authorization`` header lines.
        """
        __tracebackhide__ = True  # keeps this frame's local variables out of pytest's traceback
        lines = self.header_lines("authorization")
        if len(lines) > 1:
            raise AssertionError(f"expected at most one Authorization line, received {len(lines)}")
        return lines[0] if lines else None

    def holds(self, token: str) -> bool:
        """Return whether any part of the request contains the token, either unencoded or percent-encoded."""
        wire = [self.target, *(text for pair in self._headers for text in pair), self.body.decode("latin-1")]
        return any(form in text for form in {token, quote(token, safe="")} for text in wire)

    def __repr__(self) -> str:
        return f"<SeenRequest {self.method} with {len(self._headers)} headers>"


class ThirdParty:
    """A server that records every request it receives.

    Attributes:
        url: The server's URL, in the format ``http://127.0.0.1:port``.
        requests: All requests received so far, from oldest to newest.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[SeenRequest] = []

    def redirecting_to(self, url: str, *, status: int = 302) -> str:
        """Return a URL on this server that redirects to *url*."""
        return f"{self.url}/redirect?status={status}&to={quote(url, safe='')}"

    def assert_saw_no(self, token: str) -> None:
        """Raise `AssertionError` if any recorded request contains the token."""
        __tracebackhide__ = True  # keeps this frame's arguments out of pytest's traceback
        leaks = sum(request.holds(token) for request in self.requests)
        if leaks:
            raise AssertionError(f"{leaks} of {len(self.requests)} requests contained the token")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    party: ThirdParty

    def _respond(self) -> None:
        body = self._read_body()
        self.party.requests.append(SeenRequest(self.command, self.path, self.headers.items(), body))
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        redirects = parts.path == "/redirect" and "to" in query
        response = b"" if redirects else b"{}"
        self.send_response(int(query.get("status", ["302"])[0]) if redirects else 200)
        if redirects:
            self.send_header("Location", query["to"][0])
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(response)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_CONNECT(self) -> None:
        """Record and reject a CONNECT request, because this server is not a proxy."""
        self.party.requests.append(SeenRequest(self.command, self.path, self.headers.items(), b""))
        self.send_error(405)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _respond

    def log_message(self, format: str, *args: Any) -> None:
        """Discard the message, because a request line can contain the token."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore the error, which usually means that the client has disconnected."""


@contextmanager
def third_party() -> Generator[ThirdParty, None, None]:
    """Run a third-party server on a free loopback port until the ``with`` block ends.

    The third-party server must not be listed as a destination.
    """
    handler = type("_BoundHandler", (_Handler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    handler.party = party = ThirdParty(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield party
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def assert_never_leaked(token: str, *places: object) -> None:
    """Raise `AssertionError` if any of the objects contains the token.

    Args:
        token: The token's value, without the ``Bearer`` prefix.
        places: The objects to search, which can be strings, bytes, mappings, iterables, exceptions and their causes,
            log records and their arguments, or spans and metrics from the OpenTelemetry SDK. For an object of any other
            type, the result of ``repr`` is searched.
    """
    __tracebackhide__ = True  # keeps this frame's arguments out of pytest's traceback
    for number, place in enumerate(places):
        if any(token in text for text in _texts(place, {})):
            raise AssertionError(f"token found in argument {number} ({type(place).__name__})")


def _texts(place: object, seen: dict[int, object]) -> Iterator[str]:
    """Yield every string within *place*.

    The *seen* mapping prevents infinite recursion if an object contains itself. The mapping also keeps its objects
    alive, so no two objects in the search can have the same ``id``.
    """
    if isinstance(place, str):
        yield place
    elif isinstance(place, (bytes, bytearray, memoryview)):
        yield bytes(place).decode("latin-1")
    elif id(place) not in seen:
        seen[id(place)] = place
        for text in _target_of(place):
            yield from _texts(text, seen)


def _target_of(place: object) -> Iterator[object]:
    if isinstance(place, Mapping):
        yield from place.keys()
        yield from place.values()
        return
    yield repr(place)
    if isinstance(place, BaseException):
        yield from traceback.format_exception(place)
    elif isinstance(place, logging.LogRecord):
        yield place.getMessage()
        yield from vars(place).values()
    elif callable(to_json := getattr(place, "to_json", None)):  # the SDK's spans, log records, and metrics
        yield json.dumps(json.loads(str(to_json())), ensure_ascii=False)
    elif isinstance(place, Iterable):
        yield from place
    yield from (value for value in getattr(place, "__dict__", {}).values() if isinstance(value, (str, bytes)))
