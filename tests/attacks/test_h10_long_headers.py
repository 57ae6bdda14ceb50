"""h10: oversized header lines are not parsed, and inner boundaries do not scan the headers again.

The tests count method calls on the header values instead of measuring time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry.instrumentation.asgi import asgi_getter
from opentelemetry.propagators.textmap import default_getter

from otel_token_relay import Settings, current_token, install
from otel_token_relay.authentication import ErrorResponse
from otel_token_relay.boundary import Boundary
from otel_token_relay.context import current_token as token_in
from otel_token_relay.context import unused_watchers
from otel_token_relay.credentials import locate, parse_credentials
from otel_token_relay.propagator import TokenRelayPropagator
from otel_token_relay.reasons import Reason
from otel_token_relay.runtime import Terms
from otel_token_relay.servers import asgi, wsgi
from tests.support import apps
from tests.support.servers import get, serve_asgi

MAX = 100
ROOM = len("Bearer ")
SETTINGS = Settings(max_length=MAX)
TOKEN = "h10-callers-token"

calls: list[str] = []


@pytest.fixture(autouse=True)
def _no_calls() -> Iterator[None]:
    """Clear the recorded calls, and disable redaction, which reads up to 16 KiB of unused credentials."""
    watchers = unused_watchers.copy()
    unused_watchers.clear()
    calls.clear()
    yield
    # Keep the watcher that the test has installed, because it is uninstalled later.
    unused_watchers.extend(watch for watch in watchers if watch not in unused_watchers)


def _recording(kind: type) -> Any:
    """Return a subclass of *kind* that records every method call except ``len`` and calls by Python itself."""
    silent = {"__len__", "__new__", "__init__", "__class__", "__getattribute__", "__init_subclass__", "__del__"}

    def recording(name: str) -> Callable[..., Any]:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return getattr(kind, name)(self, *args, **kwargs)

        return method

    names = [name for name in dir(kind) if callable(getattr(kind, name)) and name not in silent]
    return type(f"Recording{kind.__name__}", (kind,), {name: recording(name) for name in names})


RecordingStr = _recording(str)
RecordingBytes = _recording(bytes)

LONG = {
    "bearer": "Bearer " + "a" * 1000,
    "parameters": "Digest " + ", ".join(['a="b"'] * 1000),
    "open quote": 'Digest a="' + '\\"' * 1000,
    "another scheme": "Negotiate " + "a" * 1000,
    "leading spaces": " " * 1000 + "Bearer abc",
    "spaces inside": "Bearer" + " " * 1000 + "abc",
    "trailing white space": "Bearer abc" + " \t" * 1000,
    "commas": "," * 1000,
    "padding": "Bearer a" + "=" * 1000,
    "no scheme": "a" * 1000,
    "one character too many": "Bearer " + "a" * (MAX + 1),
    "not ASCII": "Bearer " + "\xff" * 1000,
}
every_long_line = pytest.mark.parametrize("line", LONG.values(), ids=LONG)


@every_long_line
@pytest.mark.parametrize("bare", [False, True], ids=["authorization", "other header"])
@pytest.mark.parametrize("kind", [RecordingStr, RecordingBytes], ids=["text", "bytes"])
def test_h10_a_long_line_is_rejected_without_reading_it(line: str, bare: bool, kind: Any) -> None:
    """An oversized line is rejected without reading its content."""
    value = kind(line) if kind is RecordingStr else kind(line.encode("latin-1"))
    calls.clear()

    assert parse_credentials([value], max_length=MAX, bare=bare) is Reason.TOO_LONG
    assert calls == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Bearer " + "a" * MAX, "a" * MAX),
        ("Bearer   " + "a" * (MAX - 2), "a" * (MAX - 2)),
        ("Bearer " + "a" * (MAX + 1), Reason.TOO_LONG),
        ("Bearer  " + "a" * MAX, Reason.TOO_LONG),
        ("Basic " + "a" * (MAX + 1), Reason.ABSENT),
        ("Basic " + "a" * (MAX + 2), Reason.TOO_LONG),
        ("," * (MAX + ROOM), Reason.AMBIGUOUS),
        ("," * (MAX + ROOM + 1), Reason.TOO_LONG),
    ],
)
def test_h10_the_limit_is_the_token_with_its_scheme(line: str, expected: object) -> None:
    """A line can be seven characters longer than the maximum token, for `Bearer` and one space."""
    assert parse_credentials([line], max_length=MAX) == expected
    assert parse_credentials([line.encode()], max_length=MAX) == expected


def test_h10_a_bare_token_has_the_same_limit_as_one_with_its_scheme() -> None:
    """A bare token has the same length limit as a token with a scheme."""
    assert parse_credentials(["a" * MAX], max_length=MAX, bare=True) == "a" * MAX
    assert parse_credentials(["a" * (MAX + 1)], max_length=MAX, bare=True) is Reason.TOO_LONG


class Authenticator:
    """An authenticator that records and accepts all credentials."""

    def __init__(self) -> None:
        self.credentials: list[object] = []

    def check(self, credentials: object, path: str) -> ErrorResponse | None:
        self.credentials.append(credentials)
        return None

    async def check_async(self, credentials: object, path: str) -> ErrorResponse | None:
        return self.check(credentials, path)

    def prepare(self) -> None: ...


async def _nothing(scope: Any, receive: Any, send: Any) -> None: ...


def through_asgi(headers: list[Any], boundaries: int = 4) -> list[object]:
    """Serve a request through nested boundaries, and return the credentials that their authenticator received."""
    authenticator = Authenticator()
    app: Any = _nothing
    for _ in range(boundaries):

        def app(scope: Any, receive: Any, send: Any, inner: Any = app) -> Any:
            return asgi.serve(inner, scope, receive, send, Terms(SETTINGS, authenticator))  # type: ignore[arg-type]

    asyncio.run(app({"type": "http", "path": "/", "headers": headers}, None, None))
    return authenticator.credentials


@every_long_line
def test_h10_asgi_boundaries_do_not_read_a_long_line(line: str) -> None:
    """ASGI boundaries never decode, compare, or copy an oversized line."""
    value = RecordingBytes(line.encode("latin-1"))
    calls.clear()

    assert through_asgi([(b"authorization", value)]) == [Reason.TOO_LONG]
    assert calls == []


@every_long_line
def test_h10_wsgi_boundaries_do_not_read_a_long_line(line: str) -> None:
    """WSGI boundaries never read an oversized line."""
    authenticator = Authenticator()
    value = RecordingStr(line)

    def app(environ: Any, start_response: Any) -> Any:
        return []

    for _ in range(4):

        def app(environ: Any, start_response: Any, inner: Any = app) -> Any:
            return wsgi.serve(inner, environ, start_response, Terms(SETTINGS, authenticator))  # type: ignore[arg-type]

    calls.clear()
    app({"HTTP_AUTHORIZATION": value}, None)

    assert authenticator.credentials == [Reason.TOO_LONG]
    assert calls == []


@every_long_line
@pytest.mark.parametrize("kind", [RecordingStr, RecordingBytes], ids=["text", "bytes"])
def test_h10_other_boundaries_do_not_read_a_long_line(line: str, kind: Any) -> None:
    """The boundaries of aiohttp, Tornado, and gRPC never read an oversized line."""
    value = kind(line) if kind is RecordingStr else kind(line.encode("latin-1"))
    calls.clear()
    boundary = Boundary.of(lambda name: [value], SETTINGS)
    attached = otel_context.attach(boundary.context())
    try:
        still_applies = boundary.still_applies_to(partial(locate, lambda name: [value]))
    finally:
        otel_context.detach(attached)

    assert boundary.credentials is Reason.TOO_LONG
    assert still_applies
    assert calls == []


@every_long_line
def test_h10_extract_does_not_read_a_long_line(line: str) -> None:
    """Without a boundary, the propagator rejects an oversized line without reading it."""
    propagator = TokenRelayPropagator(SETTINGS)
    value = RecordingStr(line)
    calls.clear()

    context = propagator.extract({"Authorization": value}, getter=default_getter)

    assert token_in(context) is None
    assert calls == []


def test_h10_extract_does_not_read_long_names() -> None:
    """The propagator does not read the long header names that a caller chooses."""
    names = [RecordingStr("x" * 1000), RecordingStr("authorization" * 100)]
    carrier = dict.fromkeys(names, "1")
    calls.clear()

    assert token_in(TokenRelayPropagator(SETTINGS).extract(carrier)) is None
    assert {"lower", "casefold", "title"}.isdisjoint(calls)


def test_h10_a_long_line_from_a_getter_of_instrumentation_is_rejected() -> None:
    """An oversized line that the ASGI getter has decoded is rejected."""
    carrier = {"headers": [(b"authorization", LONG["parameters"].encode())]}

    assert token_in(TokenRelayPropagator(SETTINGS).extract(carrier, getter=asgi_getter)) is None


class Name(bytes):
    """A header name that counts how often it is scanned."""

    scans = 0

    def lower(self) -> bytes:
        type(self).scans += 1
        return super().lower()

    def __hash__(self) -> int:
        type(self).scans += 1
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        type(self).scans += 1
        return super().__eq__(other)


@pytest.mark.parametrize("boundaries", [1, 2, 5])
@pytest.mark.parametrize("size", [65, 1000])
def test_h10_many_lines_are_scanned_once(size: int, boundaries: int) -> None:
    """Each header name is scanned only once, regardless of how many boundaries are nested."""
    lines = [(Name(b"x-%d" % number), b"") for number in range(size)]
    lines[size // 2] = (b"authorization", f"Bearer {TOKEN}".encode())  # type: ignore[assignment]
    Name.scans = 0

    credentials = through_asgi(lines, boundaries)

    assert [str(found)[:11] for found in credentials] == ["BearerToken"]
    assert Name.scans == size - 1


def test_h10_many_authorization_lines_are_ambiguous_without_reading_them() -> None:
    """Many Authorization lines are rejected as ambiguous without reading their values."""
    value = RecordingBytes(b"Bearer abc")
    calls.clear()

    assert through_asgi([(b"authorization", value)] * 1000) == [Reason.AMBIGUOUS]
    assert calls == []


@pytest.mark.parametrize("size", [2, 200])
@pytest.mark.parametrize(
    ("change", "pair"),
    [("another list", tuple), ("in place", tuple), ("another list", list), ("in place", list), ("in the pair", list)],
)
def test_h10_replaced_credentials_are_noticed_among_few_and_many_lines(size: int, change: str, pair: Any) -> None:
    """An inner boundary detects credentials that middleware has replaced."""
    seen: list[str | None] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        token = current_token()
        seen.append(token and token.reveal())

    async def exchange(scope: Any, receive: Any, send: Any) -> None:
        headers = scope["headers"]
        new = pair((b"authorization", b"Bearer another"))
        if change == "another list":
            scope = {**scope, "headers": [new, *headers[1:]]}
        elif change == "in place":
            headers[0] = new
        else:
            headers[0][1] = b"Bearer another"
        await asgi.serve(application, scope, receive, send, Terms(SETTINGS, None))

    lines = [pair((b"x-%d" % number, b"")) for number in range(size)]
    lines[0] = pair((b"authorization", f"Bearer {TOKEN}".encode()))
    asyncio.run(asgi.serve(exchange, {"type": "http", "headers": lines}, None, None, Terms(SETTINGS, None)))  # type: ignore[arg-type]

    assert seen == ["another"]


def test_h10_a_server_without_its_own_limit() -> None:
    """On a server without a limit of its own, an oversized line is ignored, and the request is served."""
    line = "Digest " + ", ".join(['a="b"'] * 150_000)
    install(Settings())
    with serve_asgi(apps.starlette(), "uvicorn-httptools-asyncio") as port:
        rejected = get(port, "/token", headers=[("Authorization", line)]).text
        served = get(port, "/token", TOKEN).text

    assert (rejected, served) == (apps.NONE, TOKEN)
