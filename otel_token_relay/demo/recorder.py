"""Record every request that a service receives, without changing the service.

A note contains each token's subject, audience, and SHA-256 digest, but never the token itself.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from uvicorn.importer import import_from_string

from otel_token_relay.servers.asgi import App, Message, Receive, Scope, Send

APP_VARIABLE = "DEMO_APP"
NAME_VARIABLE = "DEMO_RECEIVER"
NOTES_VARIABLE = "DEMO_NOTES"

# This pattern matches a signed JWT. The "eyJ" prefix is the base64url encoding of {" in the JWT header.
find_tokens: Callable[[bytes], list[bytes]] = re.compile(rb"eyJ[\w-]+\.[\w-]+\.[\w-]+").findall
_read_traceparent = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}").match


class SeenToken(NamedTuple):
    """The information that a note contains about an unverified token.

    Attributes:
        digest: See `digest`.
        subject: The ``sub`` claim, or ``?`` if the claim cannot be read.
        audience: The ``aud`` claim as comma-separated names, or ``?`` if the claim cannot be read.
    """

    digest: str
    subject: str
    audience: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A note about a received request.

    Attributes:
        receiver: The service that received the request.
        trace_id: The trace ID in hexadecimal; empty if the request has no ``traceparent`` header.
        span_id: The sender's span ID in hexadecimal; empty if the request has no ``traceparent`` header.
        client: The first word of the ``User-Agent`` header, such as ``python-httpx/0.28.1``.
        credentials: The number of ``Authorization`` header lines.
        tokens: All tokens in the request's target, headers, and body.
    """

    receiver: str
    trace_id: str
    span_id: str
    client: str
    credentials: int
    tokens: tuple[SeenToken, ...]

    @classmethod
    def from_json(cls, line: str) -> Note:
        values = json.loads(line)
        values["tokens"] = tuple(SeenToken(*token) for token in values["tokens"])
        return cls(**values)


class Recorder:
    """ASGI middleware that appends a line of JSON to a file for each request."""

    def __init__(self, app: App, receiver: str, path: str) -> None:
        self._app = app
        self._receiver = receiver
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        messages = [await receive()]
        while messages[-1].get("more_body"):
            messages.append(await receive())
        note = take_note(self._receiver, scope, b"".join(message.get("body", b"") for message in messages))
        # A single short write in append mode prevents lines from different processes from being interleaved.
        with open(self._path, "a", encoding="utf-8", buffering=1) as notes:
            notes.write(json.dumps(asdict(note)) + "\n")

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)


def take_note(receiver: str, scope: Scope, body: bytes) -> Note:
    """Search every part of a request for tokens, and return a note about the request."""
    headers: list[tuple[bytes, bytes]] = list(scope["headers"])
    first = {name: value.decode("latin-1") for name, value in reversed(headers)}
    trace = _read_traceparent(first.get(b"traceparent", ""))
    wire = [scope["raw_path"], scope["query_string"], *(part for header in headers for part in header), body]
    return Note(
        receiver=receiver,
        trace_id=trace[1] if trace else "",
        span_id=trace[2] if trace else "",
        client=first.get(b"user-agent", "").partition(" ")[0],
        credentials=sum(name == b"authorization" for name, _ in headers),
        tokens=tuple(read_token(token) for part in wire for token in find_tokens(part)),
    )


def digest(token: bytes) -> str:
    """Return a token's SHA-256 digest, which identifies the token without revealing it."""
    return hashlib.sha256(token).hexdigest()


def read_token(token: bytes) -> SeenToken:
    """Return a token's digest, subject, and audience without verifying the token."""
    claims: Any = None
    try:
        payload = token.split(b".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))
    except ValueError:
        pass
    claims = claims if isinstance(claims, dict) else {}
    audience = claims.get("aud", "?")
    names = audience if isinstance(audience, list) else [audience]
    return SeenToken(digest(token), str(claims.get("sub", "?")), ", ".join(map(str, names)))


def build() -> Recorder:
    """Return a recorder that wraps the application specified by `APP_VARIABLE`, for use with ``uvicorn --factory``."""
    app = import_from_string(os.environ[APP_VARIABLE])
    return Recorder(app, os.environ[NAME_VARIABLE], os.environ[NOTES_VARIABLE])
