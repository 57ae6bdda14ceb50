"""What each receiver was really sent, noted in front of it, so that its own code stays as it is.

A note says who a token names and which one it is (a SHA-256), never the token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict, dataclass
from typing import Any

from uvicorn.importer import import_from_string

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

APP_VARIABLE = "DEMO_APP"
NAME_VARIABLE = "DEMO_RECEIVER"
NOTES_VARIABLE = "DEMO_NOTES"

# A signed JWT, wherever it stands: its header begins with {" in base64url.
_find_tokens = re.compile(rb"eyJ[\w-]+\.[\w-]+\.[\w-]+").findall
_read_traceparent = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}").match


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One request as it came in.

    Attributes:
        receiver: Whose note this is.
        trace_id: 32 hexadecimal digits, empty where the request named no trace.
        span_id: The sender's span, 16 hexadecimal digits.
        client: The first word of the User-Agent, ``python-httpx/0.28.1``.
        credentials: How many Authorization lines there were.
        tokens: Each token found in the target, the headers or the body, and whom it names.
    """

    receiver: str
    trace_id: str
    span_id: str
    client: str
    credentials: int
    tokens: tuple[tuple[str, str], ...]

    @classmethod
    def from_json(cls, line: str) -> Note:
        values = json.loads(line)
        values["tokens"] = tuple((digest, subject) for digest, subject in values["tokens"])
        return cls(**values)


class Witness:
    """An ASGI application in front of another one, which appends a line of JSON for each request."""

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
        # One short write to a file that is opened for appending: no other process comes in between.
        with open(self._path, "a", encoding="utf-8", buffering=1) as notes:
            notes.write(json.dumps(asdict(note)) + "\n")

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)


def take_note(receiver: str, scope: Scope, body: bytes) -> Note:
    """Look through everything that a request brought."""
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
        tokens=tuple((digest(token), _subject(token)) for part in wire for token in _find_tokens(part)),
    )


def digest(token: bytes) -> str:
    """Name a token without giving it away."""
    return hashlib.sha256(token).hexdigest()


def _subject(token: bytes) -> str:
    """Read whom a token names. Whether to believe it is up to the receiver."""
    try:
        payload = token.split(b".")[1]
        return str(json.loads(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))["sub"])
    except (ValueError, KeyError, TypeError):
        return "?"


def build() -> Witness:
    """Put a witness in front of the application that the environment names, for ``uvicorn --factory``."""
    app = import_from_string(os.environ[APP_VARIABLE])
    return Witness(app, os.environ[NAME_VARIABLE], os.environ[NOTES_VARIABLE])
