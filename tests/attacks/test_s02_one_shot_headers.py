"""s2: ASGI headers are an iterable of two-item iterables, each of which might be readable only once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from types import MappingProxyType
from typing import Any, NamedTuple

import falcon
import falcon.asgi
import falcon.testing
import pytest

from otel_token_relay import Settings, current_token, install
from otel_token_relay.servers.asgi import TokenRelayMiddleware

TOKEN = "s02-callers-token"
PAIRS = [(b"host", b"here"), (b"authorization", f"Bearer {TOKEN}".encode()), (b"x-many", b"1"), (b"x-many", b"2")]

Build = Callable[[list[tuple[bytes, bytes]]], Iterable[Any]]


class Pair(NamedTuple):
    """A name and value pair of a server-defined type."""

    name: bytes
    value: bytes


def one_by_one(pairs: list[tuple[bytes, bytes]]) -> Iterator[Iterator[bytes]]:
    for pair in pairs:
        yield (part for part in pair)


ONE_SHOT: dict[str, Build] = {
    "list of iterators": lambda pairs: [iter(pair) for pair in pairs],
    "iterator of iterators": lambda pairs: iter([iter(pair) for pair in pairs]),
    "generator of generators": one_by_one,
    "generator of tuples": lambda pairs: (pair for pair in pairs),
    "generator of lists": lambda pairs: (list(pair) for pair in pairs),
    "tuple of maps": lambda pairs: tuple(map(bytes, pair) for pair in pairs),
    "tuples and one iterator at the end": lambda pairs: [*pairs[:-1], iter(pairs[-1])],
    "one iterator at the start": lambda pairs: [iter(pairs[0]), *pairs[1:]],
    "list of dictionary keys": lambda pairs: [dict.fromkeys(pair).keys() for pair in pairs],
    "set-like view of a mapping": lambda pairs: dict(pairs).items(),
}
LASTING: dict[str, Build] = {
    "list of tuples": list,
    "list of lists": lambda pairs: [list(pair) for pair in pairs],
    "tuple of tuples": tuple,
    "tuple of lists": lambda pairs: tuple(list(pair) for pair in pairs),
    "list of named tuples": lambda pairs: [Pair(*pair) for pair in pairs],
    "no headers": lambda pairs: [],
    "many lines": lambda pairs: pairs + [(b"x-%d" % number, b"") for number in range(200)],
}


class Application:
    """An application that reads its headers once."""

    def __init__(self) -> None:
        self.headers: Any = None
        self.read: list[tuple[bytes, bytes]] = []
        self.token: str | None = None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        self.headers = scope.get("headers")
        self.read = [(name, value) for name, value in scope.get("headers", ())]
        token = current_token()
        self.token = token and token.reveal()


def serve(headers: Any, *, kind: str = "http", boundaries: int = 1, **settings: Any) -> Application:
    """Serve one request through the given number of boundaries."""
    application = Application()
    app: Any = application
    for _ in range(boundaries):
        app = TokenRelayMiddleware(app, Settings(**settings))
    asyncio.run(app({"type": kind, "path": "/", "headers": headers}, None, None))
    return application


@pytest.mark.parametrize("boundaries", [1, 3])
@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("build", ONE_SHOT.values(), ids=ONE_SHOT)
def test_s02_headers_that_can_be_read_once_reach_the_application(build: Build, kind: str, boundaries: int) -> None:
    """Headers that can be read only once arrive in order, and the token is bound."""
    expected = [(name, value) for name, value in build(PAIRS)]

    application = serve(build(PAIRS), kind=kind, boundaries=boundaries)

    assert application.read == expected
    assert application.token == TOKEN


@pytest.mark.parametrize("build", LASTING.values(), ids=LASTING)
def test_s02_headers_that_last_stay_the_same_object(build: Build) -> None:
    """Headers that can be read repeatedly are passed on as the same object."""
    headers = build(PAIRS)
    pairs = list(headers)

    application = serve(headers, boundaries=3)

    assert application.headers is headers
    assert all(left is right for left, right in zip(headers, pairs, strict=True))
    assert application.token == (TOKEN if pairs else None)


def test_s02_several_source_headers_are_read_from_one_shot_pairs() -> None:
    """The second source header is found, even though the search for the first one has consumed the pairs."""
    pairs = [(b"x-forwarded-access-token", TOKEN.encode()), *PAIRS[2:]]
    settings = {"source_headers": ("authorization", "x-forwarded-access-token")}

    application = serve([iter(pair) for pair in pairs], **settings)

    assert application.read == pairs
    assert application.token == TOKEN


def test_s02_a_middleware_may_put_one_shot_pairs_between_two_boundaries() -> None:
    """Middleware can pass one-shot pairs to an inner boundary, which reads the replaced credentials."""
    application = Application()
    inner = TokenRelayMiddleware(application, Settings())

    async def exchange(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        changed = [(b"authorization", b"Bearer another"), *PAIRS[2:]]
        await inner({**scope, "headers": [iter(pair) for pair in changed]}, receive, send)

    asyncio.run(TokenRelayMiddleware(exchange, Settings())({"type": "http", "headers": PAIRS}, None, None))  # type: ignore[arg-type]

    assert application.read == [(b"authorization", b"Bearer another"), *PAIRS[2:]]
    assert application.token == "another"


@pytest.mark.parametrize(
    "headers",
    [[None], [iter((b"a", b"b")), None], [(None, b"x")], [(b"authorization",)], [5]],
    ids=["none", "none after a pair", "no name", "no value", "no pair"],
)
def test_s02_headers_that_break_the_specification_give_no_token_and_no_exception(headers: Any) -> None:
    """Invalid headers from a server are passed to the application unchanged."""

    class Called(Application):
        async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            self.headers = scope["headers"]
            token = current_token()
            self.token = token and token.reveal()

    application = Called()
    asyncio.run(TokenRelayMiddleware(application, Settings())({"type": "http", "headers": headers}, None, None))  # type: ignore[arg-type]

    assert application.headers is not None
    assert application.token is None


class Resource:
    """A Falcon resource that responds with the headers and the body of the request."""

    async def on_get(self, req: Any, resp: Any) -> None:
        resp.media = [req.get_header("X-Own"), req.get_header("Authorization")]

    async def on_post(self, req: Any, resp: Any) -> None:
        resp.media = [req.content_type, await req.get_media()]

    async def on_websocket(self, req: Any, ws: Any) -> None:
        await ws.accept()
        await ws.send_text(str(req.get_header("X-Own")))
        await ws.receive_text()  # older simulators do not deliver text after the socket is closed
        await ws.close()


@pytest.fixture(params=["patched", "middleware"])
def client(request: pytest.FixtureRequest) -> Any:
    """Return Falcon's test client for an application that either the middleware or a patch covers."""
    if request.param == "patched":
        install(Settings())
    app = falcon.asgi.App()
    app.add_route("/", Resource())
    covered = app if request.param == "patched" else TokenRelayMiddleware(app, Settings())
    return falcon.testing.TestClient(_Falcon(covered) if request.param == "middleware" else app)


class _Falcon(falcon.asgi.App):  # type: ignore[misc, type-arg]  # the client checks the kind of application
    def __init__(self, app: Any) -> None:
        super().__init__()
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


def test_s02_falcons_own_client_sends_its_headers(client: Any) -> None:
    """The application receives every header and the body from Falcon's test client."""
    bearer = f"Bearer {TOKEN}"

    assert client.simulate_get("/", headers={"X-Own": "1", "Authorization": bearer}).json == ["1", bearer]
    assert client.simulate_get("/", headers={"X-Own": "1"}).json == ["1", None]
    assert client.simulate_post("/", json={"a": 1}).json == ["application/json", {"a": 1}]


def test_s02_falcons_own_websocket_sends_its_headers() -> None:
    """The application receives the headers of a WebSocket handshake from Falcon's test client."""
    install(Settings())
    app = falcon.asgi.App()
    app.add_route("/", Resource())

    async def run() -> str:
        async with (
            falcon.testing.ASGIConductor(app) as conductor,
            conductor.simulate_ws("/", headers=MappingProxyType({"X-Own": "1"})) as socket,
        ):
            text: str = await socket.receive_text()
            await socket.send_text("received")
            return text

    assert asyncio.run(run()) == "1"
