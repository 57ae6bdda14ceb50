"""The demo's recorder notes the tokens in a request and passes the request on unchanged."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from otel_token_relay.demo import recorder
from otel_token_relay.demo.recorder import Note, Recorder, build, digest, read_token, take_note
from tests.support.servers import serve_asgi


@pytest.mark.parametrize("place", ["header", "other header", "path", "query", "body"])
def test_recorder_finds_a_token_in_every_part_of_a_request(place):
    """The recorder finds a token in any part of a request, and its note contains only the subject and the digest."""
    token = b"eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.c2ln"
    headers = {"header": [(b"authorization", b"Bearer " + token)], "other header": [(b"x-copy", b"=" + token)]}
    scope = {
        "raw_path": b"/" + token if place == "path" else b"/",
        "query_string": b"t=" + token if place == "query" else b"",
        "headers": headers.get(place, []),
    }

    note = take_note("third-party", scope, b'{"t": "' + token + b'"}' if place == "body" else b"")

    assert note.tokens == ((digest(token), "alice", "?"),)
    assert token.decode() not in repr(note)


def token_of(payload: bytes) -> bytes:
    """Return an unsigned token with the given payload."""
    return b"eyJhbGciOiJub25lIn0." + base64.urlsafe_b64encode(payload).rstrip(b"=") + b".c2ln"


@pytest.mark.parametrize(
    "payload", [b"{}", b"[]", b"1", b"null", b"not JSON", b"\xff\xfe", b'{"sub"'], ids=lambda payload: repr(payload)
)
def test_a_token_without_a_readable_subject_is_noted(payload: bytes) -> None:
    """A token without a readable subject is noted, because a service must not receive it either."""
    token = token_of(payload)
    scope = {"raw_path": b"/", "query_string": b"", "headers": [(b"authorization", b"Bearer " + token)]}

    assert take_note("third-party", scope, b"").tokens == ((digest(token), "?", "?"),)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"sub": "alice", "aud": "billing-service"}', ("alice", "billing-service")),
        (b'{"sub": "alice", "aud": ["user-service", "profile-service"]}', ("alice", "user-service, profile-service")),
        (b'{"sub": 1, "aud": [{}]}', ("1", "{}")),
        (b'{"aud": []}', ("?", "")),
    ],
    ids=["one audience", "two audiences", "not strings", "no audience"],
)
def test_the_note_has_the_subject_and_the_audience_of_a_token(payload: bytes, expected: tuple[str, str]) -> None:
    """The note contains the subject and the audience of the unverified token."""
    assert read_token(token_of(payload))[1:] == expected


@pytest.mark.parametrize(
    ("traceparent", "expected"),
    [
        (b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", ("a" * 32, "b" * 16)),
        (b"00-" + b"A" * 32 + b"-" + b"b" * 16 + b"-01", ("", "")),
        (b"\xff", ("", "")),
        (None, ("", "")),
    ],
    ids=["valid", "upper case", "not ASCII", "none"],
)
def test_the_note_has_the_trace_and_the_client_of_the_request(
    traceparent: bytes | None, expected: tuple[str, str]
) -> None:
    """The note contains the trace and the number of Authorization lines, even without a token."""
    headers = [(b"user-agent", b"python-httpx/0 x"), (b"authorization", b"a"), (b"authorization", b"b")]
    headers += [] if traceparent is None else [(b"traceparent", traceparent)]
    note = take_note("third-party", {"raw_path": b"/", "query_string": b"", "headers": headers}, b"")

    assert (note.trace_id, note.span_id) == expected
    assert note.client == "python-httpx/0"
    assert note.credentials == 2
    assert note.tokens == ()


async def repeat(scope: Any, receive: Any, send: Any) -> None:
    """Respond with the body of the request."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Return the recorder that uvicorn creates from the environment."""
    monkeypatch.setenv(recorder.APP_VARIABLE, f"{__name__}:repeat")
    monkeypatch.setenv(recorder.NAME_VARIABLE, "third-party")
    monkeypatch.setenv(recorder.NOTES_VARIABLE, str(tmp_path / "notes"))
    return build()


def test_each_request_is_noted_and_passed_on(built: Recorder, tmp_path: Path) -> None:
    """Each request is noted without its token, and its complete body is passed on."""
    token = token_of(b'{"sub": "alice"}')
    body = b"first " * 50_000 + token
    with serve_asgi(built) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        assert client.post("/", content=iter([body[:100_000], body[100_000:]])).content == body
        assert client.get("/", headers={"x-copy": token.decode()}).content == b""

    lines = (tmp_path / "notes").read_text().splitlines()
    notes = [Note.from_json(line) for line in lines]
    assert [(note.receiver, note.tokens) for note in notes] == [("third-party", ((digest(token), "alice", "?"),))] * 2
    assert all(hash(note) for note in notes)
    assert not any(token.decode() in line for line in lines)


def test_messages_after_the_request_reach_the_service(tmp_path: Path) -> None:
    """A service that waits for the client to disconnect receives the disconnect message."""
    received: list[Any] = []
    sent = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.request", "body": b"b"}]
    messages = iter([*sent, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        received.extend([await receive() for _ in range(3)])

    scope = {"type": "http", "raw_path": b"/", "query_string": b"", "headers": []}
    asyncio.run(Recorder(app, "third-party", str(tmp_path / "notes"))(scope, receive, None))  # type: ignore[arg-type]

    assert received == [*sent, {"type": "http.disconnect"}]
    assert json.loads((tmp_path / "notes").read_text())["tokens"] == []


def test_other_scopes_are_not_recorded(tmp_path: Path) -> None:
    """Only HTTP requests are recorded."""
    seen: list[Any] = []

    async def app(*arguments: Any) -> None:
        seen.append(arguments)

    call = ({"type": "lifespan"}, object(), object())
    asyncio.run(Recorder(app, "third-party", str(tmp_path / "notes"))(*call))  # type: ignore[arg-type]

    assert seen == [call]
    assert not (tmp_path / "notes").exists()
