"""P2 on real servers: a request has its own token, or none, until the request ends."""

import base64
import contextlib
import json
import sys
import time

import pytest
from opentelemetry import propagate
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_token_relay import Settings, TokenRelayPropagator, install, uninstall
from tests.support import apps
from tests.support.apps import NONE
from tests.support.servers import (
    ONE_FOR_EACH_SERVER,
    SERVERS,
    UVICORNS,
    Client,
    raw_connection,
    read_answer,
    serve_asgi,
    served,
)

ENDED = [NONE, "lease_ended"]
A, B, C = "token-of-a", "token-of-b", "token-of-c"


@pytest.fixture(autouse=True)
def clean():
    """Start without an installation and without kept contexts, and restore this state after the test."""
    textmap = propagate.get_global_textmap()
    apps.kept.clear()
    apps.noted.clear()
    yield
    uninstall()
    propagate.set_global_textmap(textmap)


def each(servers):
    """Return a decorator that runs a test with each of the servers."""
    return pytest.mark.parametrize("server", servers, ids=lambda server: server.name)


ROWS = {server.name: server for server in SERVERS}


@each(SERVERS)
def test_a_request_has_its_own_token_until_it_ends(server):
    """A request has its own token in the handler, the stream, and a failure, and kept contexts have no token."""
    with served(server) as one:
        with one.connection() as connection:
            for _ in range(2):
                assert connection.call("/token", A).text == A
                assert connection.call("/token").text == NONE
                assert connection.call("/stream", B).text.split() == [B] * 3
                assert connection.call("/stream").text.split() == [NONE] * 3
            assert connection.call("/keep", C).text == C
            with contextlib.suppress(ConnectionError):
                assert connection.call("/boom", C).status == 500
            with contextlib.suppress(ConnectionError):  # some servers close the connection after a failure
                assert connection.call("/token").text == NONE

        assert _wait_for_ended(one) == [ENDED, ENDED]


@each([server for server in ONE_FOR_EACH_SERVER if server.needs_install and server.is_here])
def test_no_token_is_bound_without_install(server, monkeypatch):
    """Uninstalling removes the hook that installs the boundary, so no token is bound."""
    for module in filter(None, map(sys.modules.get, ("grpc", "grpc.aio"))):
        # If instrumentation is removed after the hook, the instrumentation restores the hooked function.
        monkeypatch.setattr(module, "server", module.server)
    with served(server) as one:
        assert one.get("/token", A).text == A
        uninstall()
        assert one.get("/token", A).text == NONE


BAD_HEADERS = {
    "absent": [],
    "no-token": [("Authorization", "Bearer")],
    "white-space-within": [("Authorization", f"Bearer {A} {A}")],
    "two-lines": [("Authorization", f"Bearer {A}"), ("Authorization", f"Bearer {B}")],
    "two-equal-lines": [("Authorization", f"Bearer {A}"), ("authorization", f"Bearer {A}")],
    "comma": [("Authorization", f"Bearer {A}, Bearer {B}")],
    "over-long": [("Authorization", "Bearer " + "x" * 16385)],
    "not-ascii": [("Authorization", "Bearer t\xf6ken")],
    "other-scheme": [("Authorization", "Basic " + base64.b64encode(b"user:password").decode())],
    "another-header": [("X-Forwarded-Access-Token", A), ("Proxy-Authorization", f"Bearer {A}")],
}


@each(ONE_FOR_EACH_SERVER)
def test_anything_but_one_bearer_token_binds_no_token(server):
    """A request with an invalid header gets no token, not even the previous request's token."""
    with served(server) as one:
        for case, headers in BAD_HEADERS.items():
            assert one.get("/token", C).text == C, case
            response = one.get("/token", headers=headers)

            # A server might reject the request before the application receives it, and gRPC might not send it.
            assert response.text == NONE or response.status in (400, 431), case
        assert one.get("/token", headers=[("AUTHORIZATION", f"bearer   {A} ")]).text == A


@each(ONE_FOR_EACH_SERVER)
def test_the_first_present_source_header_decides(server):
    """An invalid source header prevents the use of later source headers."""
    variable = {"OTEL_PYTHON_TOKEN_RELAY_SOURCE_HEADERS": "x-forwarded-access-token,authorization"}
    authorization = ("Authorization", f"Bearer {B}")
    with served(server, Settings.from_env(variable), **variable) as one:
        assert one.get("/token", headers=[("X-Forwarded-Access-Token", A), authorization]).text == A
        assert one.get("/token", headers=[("X-Forwarded-Access-Token", "a b"), authorization]).text == NONE
        assert one.get("/token", headers=[authorization]).text == B


@each([server for server in ONE_FOR_EACH_SERVER if server.can_be_abandoned])
def test_the_lease_ends_when_the_client_disconnects(server):
    """If a client disconnects during a stream, the lease ends."""
    with served(server) as one:
        assert A in one.abandon("/slow", A)
        before = one.get("/keep", B)
        after = _wait_for_ended(one)

    assert before.text == B
    assert after == [ENDED, ENDED]


def _wait_for_ended(one):
    """Poll until no kept context has a usable token.

    An application returns only after its last byte has been sent, and a server detects a disconnect with a delay.
    """
    deadline = time.monotonic() + apps.SETTLE_SECONDS
    while True:
        found = json.loads(one.get("/peek").text)
        if all(entry[0] == NONE for entry in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@each(
    [
        ROWS[name]
        for name in (
            "plain-middleware-on-uvicorn-h11-asyncio",
            "plain-middleware-on-wsgiref",
            "aiohttp.web",
            "aiohttp.web Server",
            "tornado",
        )
    ]
)
def test_the_lease_ends_for_every_status_and_method(server, method):
    """The lease ends for every status and method, including a 404 response and a response without a body."""
    with served(server) as one:
        assert one.get("/nowhere", A, method=method).status == 404

        assert _wait_for_ended(one) == [ENDED]


@each([server for server in SERVERS if server.has_sockets])
def test_a_websocket_has_the_token_of_its_handshake(server):
    """A WebSocket's token is usable during the entire conversation, after which the lease ends."""
    from websockets.sync.client import connect

    with served(server) as running:
        url = f"ws://127.0.0.1:{running.port}/socket"
        with connect(url, additional_headers={"Authorization": f"Bearer {A}"}) as one, connect(url) as other:
            assert (one.recv(10), other.recv(10)) == (A, NONE)
            one.send("again")
            other.send("again")
            assert (one.recv(10), other.recv(10)) == (A, NONE)
        found = _wait_for_ended(running)

    assert found[0] == ENDED


@each([server for server in ONE_FOR_EACH_SERVER if server.needs_install and server.is_here])
def test_linger_lets_the_lease_outlive_the_response(server):
    """With `…_LINGER`, background work keeps its own token for the lingering time."""
    with served(server, Settings(linger=60)) as one:
        one.get("/keep", A)

        assert one.get("/token").text == NONE
        assert json.loads(one.get("/kept", B).text) == [[A, "relayed"]]


# With uvicorn's default settings, a token leaks into the next request. The first test reproduces this leak without the
# boundary.


def naive():
    """Register only the propagator, without a boundary, as an application might do."""
    parts = [TraceContextTextMapPropagator(), W3CBaggagePropagator(), TokenRelayPropagator(Settings())]
    propagate.set_global_textmap(CompositePropagator(parts))


def watched(app, sightings):
    """Wrap an application in middleware that records the token that is bound before the application runs."""

    async def outer(scope, receive, send):
        sightings.append(apps.seen())
        await app(scope, receive, send)

    return outer


def kept_alive(port):
    """Send A's large request and, after its response, an anonymous request on the same connection."""
    client = Client(port)
    first = client.call("/token", A, method="POST", body=b"x" * 500_000)
    second = client.call("/token")
    client.close()
    return [first.text, second.text]


def pipelined(port):
    """Send A's request, an anonymous request, and C's request without waiting for responses."""
    requests = [
        f"GET /token HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {A}\r\n\r\n",
        "GET /token HTTP/1.1\r\nHost: a\r\n\r\n",
        f"GET /token HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {C}\r\nConnection: close\r\n\r\n",
    ]
    with raw_connection(port) as connection, connection.makefile("rb") as stream:
        connection.sendall("".join(requests).encode())
        return [read_answer(stream) for _ in requests]


def sized(app):
    """Add a Content-Length header to responses, because their reader is not an HTTP client."""

    async def outer(scope, receive, send):
        async def send_sized(message):
            if message["type"] == "http.response.start":
                message["headers"] = [(b"content-length", b"10" if scope["path"] == "/token" else b"0")]
            if message["type"] == "http.response.body":
                message["body"] = message["body"].ljust(10)
            await send(message)

        await app(scope, receive, send_sized)

    return outer


WAYS = [
    pytest.param("uvicorn-h11-asyncio", kept_alive, id="kept-alive-h11"),
    pytest.param("uvicorn-httptools-asyncio", kept_alive, id="kept-alive-httptools"),
    pytest.param("uvicorn-h11-asyncio", pipelined, id="pipelined-h11"),
    pytest.param("uvicorn-httptools-asyncio", pipelined, id="pipelined-httptools"),
    pytest.param("uvicorn-httptools-uvloop", pipelined, id="pipelined-httptools-uvloop"),
]


@pytest.mark.parametrize(("server", "send"), WAYS)
def test_without_the_boundary_the_next_request_gets_the_previous_token(server, send):
    """Without the boundary, extraction alone binds A's token for other requests."""
    naive()
    sightings = []
    app = watched(apps.contrib_asgi(), sightings)
    with serve_asgi(sized(app), server) as port:
        responses = [response.strip() for response in send(port)]

    assert responses[:2] == [A, A]
    assert sightings[1] == A
    if send is pipelined:
        assert responses[2] == A, "C sends its own token, but is served with A's token"


@pytest.mark.parametrize(("server", "send"), WAYS)
@pytest.mark.parametrize("name", ["plain-contrib", "plain-middleware", "fastapi", "starlette"])
def test_with_the_boundary_each_request_has_its_own_token(server, send, name):
    """With the boundary, each request has its own token, or none."""
    if name != "plain-middleware":
        install(Settings())
    sightings = []
    app = watched(apps.ASGI_APPS[name](), sightings)
    with serve_asgi(sized(app), server) as port:
        responses = [response.strip() for response in send(port)]

    assert responses == [A, NONE, C][: len(responses)]
    assert sightings == ([NONE] * len(responses) if name == "plain-middleware" else responses)


@pytest.mark.parametrize("server", UVICORNS)
@pytest.mark.parametrize("name", ["fastapi", "starlette"])
def test_the_token_of_background_work_does_not_leak_into_the_next_request(server, name):
    """While A's background task still has A's token, the next request on the connection has none."""
    install(Settings())
    sightings = []
    app = watched(apps.ASGI_APPS[name](), sightings)
    requests = (
        f"GET /later HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {A}\r\n\r\nGET /token HTTP/1.1\r\nHost: a\r\n\r\n"
    )
    with (
        serve_asgi(app, server) as port,
        raw_connection(port) as connection,
        connection.makefile("rb") as stream,
    ):
        connection.sendall(requests.encode())
        responses = [read_answer(stream) for _ in range(2)]
        running = list(apps.noted)
        deadline = time.monotonic() + 20
        while not apps.noted and time.monotonic() < deadline:
            time.sleep(0.01)

    assert responses == [A, NONE]
    assert sightings == [A, NONE]
    assert running == [], "the background work ended before the second request"
    assert apps.noted == [A]
