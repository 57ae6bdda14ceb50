"""P2 on real servers: a request is served with its own token or none, and the token ends with it."""

import base64
import contextlib
import json
import time
from contextlib import contextmanager

import pytest
from opentelemetry import propagate
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_token_relay import Settings, TokenRelayPropagator, install, uninstall
from tests.support import apps
from tests.support.apps import NONE
from tests.support.servers import (
    ASGI_SERVERS,
    UVICORNS,
    WSGI_SERVERS,
    Client,
    get,
    gunicorn_command,
    process,
    raw_connection,
    read_answer,
    serve_asgi,
    serve_wsgi,
)

ENDED = [NONE, "lease_ended"]
A, B, C = "token-of-a", "token-of-b", "token-of-c"


@pytest.fixture(autouse=True)
def clean():
    """Start with nothing installed and nothing kept, and leave it so."""
    textmap = propagate.get_global_textmap()
    apps.kept.clear()
    apps.noted.clear()
    yield
    uninstall()
    propagate.set_global_textmap(textmap)


@contextmanager
def served(server, name, settings=None, **variables):
    """Serve the application of that name on that server, with everything installed."""
    if server.startswith("gunicorn"):
        app = f"tests.support.apps:installed_wsgi('{name}')"
        with process(gunicorn_command(app, server.partition("-")[2]), **variables) as (port, _):
            yield port
        return
    if name != "plain-middleware":
        install(settings or Settings())
    if server == "wsgiref":
        with serve_wsgi(apps.WSGI_APPS[name](), threads=True) as port:
            yield port
    else:
        with serve_asgi(apps.ASGI_APPS[name](), server) as port:
            yield port


EVERY_PAIR = [
    pytest.param(server, name, id=f"{name}-on-{server}")
    for servers, names in ((ASGI_SERVERS, apps.ASGI_APPS), (WSGI_SERVERS, apps.WSGI_APPS))
    for server in servers
    for name in names
]
ONE_APP_PER_SERVER = [
    pytest.param(server, name, id=server)
    for servers, name in ((ASGI_SERVERS, "starlette"), (WSGI_SERVERS, "flask"))
    for server in servers
]


@pytest.mark.parametrize(("server", "name"), EVERY_PAIR)
def test_request_has_its_own_token_until_it_ends(server, name):
    """Handler, stream and failure see the caller's token or none; what stays behind has nothing."""
    with served(server, name) as port:
        for _ in range(2):
            assert get(port, "/token", A).text == A
            assert get(port, "/token").text == NONE
            assert get(port, "/stream", B).text.split() == [B] * 3
        assert get(port, "/keep", C).text == C
        with contextlib.suppress(ConnectionError):
            assert get(port, "/boom", C).status == 500

        assert _wait_for_ended(port) == [ENDED, ENDED]


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


@pytest.mark.parametrize(("server", "name"), ONE_APP_PER_SERVER)
def test_what_is_not_one_bearer_token_binds_nothing(server, name):
    """Neither the bad header nor the request before it on the connection leaves a token."""
    with served(server, name) as port:
        for case, headers in BAD_HEADERS.items():
            client = Client(port)
            assert client.call("/token", C).text == C, case
            client.close()
            client = Client(port)
            answer = client.call("/token", headers=headers)
            client.close()

            # A server may refuse the request before any application sees it.
            assert answer.text == NONE or answer.status in (400, 431), case
        assert get(port, "/token", headers=[("AUTHORIZATION", f"bearer   {A} ")]).text == A


@pytest.mark.parametrize(("server", "name"), ONE_APP_PER_SERVER)
def test_first_source_header_decides(server, name):
    """A header that is present and bad hides those after it, whoever has spoiled it."""
    variable = {"OTEL_PYTHON_TOKEN_RELAY_SOURCE_HEADERS": "x-forwarded-access-token,authorization"}
    authorization = ("Authorization", f"Bearer {B}")
    with served(server, name, Settings.from_env(variable), **variable) as port:
        assert get(port, "/token", headers=[("X-Forwarded-Access-Token", A), authorization]).text == A
        assert get(port, "/token", headers=[("X-Forwarded-Access-Token", "a b"), authorization]).text == NONE
        assert get(port, "/token", headers=[authorization]).text == B


@pytest.mark.parametrize(("server", "name"), ONE_APP_PER_SERVER)
def test_lease_ends_when_the_client_goes_away(server, name):
    """A client that hangs up in mid-stream leaves no token behind."""
    with served(server, name) as port:
        with raw_connection(port) as connection:
            connection.sendall(f"GET /slow HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {A}\r\n\r\n".encode())
            received = b""
            while A.encode() not in received and (piece := connection.recv(65536)):
                received += piece
            assert A.encode() in received
        before = get(port, "/keep", B)
        after = _wait_for_ended(port)

    assert before.text == B
    assert after == [ENDED, ENDED]


def _wait_for_ended(port):
    """Ask until nothing that was kept serves any more.

    An application returns after its last byte is out, and servers notice by and by who has gone.
    """
    deadline = time.monotonic() + apps.SETTLE_SECONDS
    while True:
        found = json.loads(get(port, "/peek").text)
        if all(entry[0] == NONE for entry in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize(
    ("server", "name"), [("uvicorn-h11-asyncio", "plain-middleware"), ("wsgiref", "plain-middleware")]
)
def test_lease_ends_for_every_status_and_method(server, name, method):
    """A response without a body, or of a page that is not there, ends the lease as any other."""
    with served(server, "plain-middleware") as port:
        assert get(port, "/nowhere", A, method=method).status == 404

        assert _wait_for_ended(port) == [ENDED]


@pytest.mark.parametrize("server", ASGI_SERVERS)
@pytest.mark.parametrize("name", ["fastapi", "starlette", "falcon", "plain-contrib"])
def test_websocket_has_the_token_of_its_handshake(server, name):
    """It serves for the whole conversation and ends with it."""
    from websockets.sync.client import connect

    with served(server, name) as port:
        url = f"ws://127.0.0.1:{port}/socket"
        with connect(url, additional_headers={"Authorization": f"Bearer {A}"}) as one, connect(url) as other:
            assert (one.recv(10), other.recv(10)) == (A, NONE)
            if name != "falcon":
                one.send("again")
                other.send("again")
                assert (one.recv(10), other.recv(10)) == (A, NONE)
        found = _wait_for_ended(port)

    assert found[0] == ENDED


def test_linger_lets_the_lease_outlive_the_response():
    """With `…_LINGER` background work has the token for some time more, and its own only."""
    install(Settings(linger=60))
    with serve_asgi(apps.starlette()) as port:
        get(port, "/keep", A)

        assert get(port, "/token").text == NONE
        assert json.loads(get(port, "/kept", B).text) == [[A, "relayed"]]


# The bleed of default uvicorn, first without the boundary.


def naive():
    """Start as somebody does who registers the propagator and nothing else: no boundary."""
    parts = [TraceContextTextMapPropagator(), W3CBaggagePropagator(), TokenRelayPropagator(Settings())]
    propagate.set_global_textmap(CompositePropagator(parts))


def watched(app, sightings):
    """Lay a middleware around everything, which notes what it sees before the application runs."""

    async def outer(scope, receive, send):
        sightings.append(apps.seen())
        await app(scope, receive, send)

    return outer


def kept_alive(port):
    """Send A's large request, and when it is answered an anonymous one on the same connection."""
    client = Client(port)
    first = client.call("/token", A, method="POST", body=b"x" * 500_000)
    second = client.call("/token")
    client.close()
    return [first.text, second.text]


def pipelined(port):
    """Send A's, an anonymous one, and C's own in one go."""
    requests = [
        f"GET /token HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {A}\r\n\r\n",
        "GET /token HTTP/1.1\r\nHost: a\r\n\r\n",
        f"GET /token HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {C}\r\nConnection: close\r\n\r\n",
    ]
    with raw_connection(port) as connection, connection.makefile("rb") as stream:
        connection.sendall("".join(requests).encode())
        return [read_answer(stream) for _ in requests]


def sized(app):
    """Give answers a Content-Length, for a reader that is no HTTP client."""

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
def test_without_the_boundary_the_next_request_gets_the_token_of_the_one_before(server, send):
    """The hole that the boundary is for is there: extraction alone binds A's token for others."""
    naive()
    sightings = []
    app = watched(apps.contrib_asgi(), sightings)
    with serve_asgi(sized(app), server) as port:
        answers = [answer.strip() for answer in send(port)]

    assert answers[:2] == [A, A]
    assert sightings[1] == A
    if send is pipelined:
        assert answers[2] == A, "C brings its own, and is served with A's"


@pytest.mark.parametrize(("server", "send"), WAYS)
@pytest.mark.parametrize("name", ["plain-contrib", "plain-middleware", "fastapi", "starlette"])
def test_with_the_boundary_each_request_has_its_own(server, send, name):
    """The same requests, and code outside the boundary sees no token at all."""
    if name != "plain-middleware":
        install(Settings())
    sightings = []
    app = watched(apps.ASGI_APPS[name](), sightings)
    with serve_asgi(sized(app), server) as port:
        answers = [answer.strip() for answer in send(port)]

    assert answers == [A, NONE, C][: len(answers)]
    assert sightings == [NONE] * len(answers)


@pytest.mark.parametrize("server", UVICORNS)
@pytest.mark.parametrize("name", ["fastapi", "starlette"])
def test_background_work_does_not_bleed_into_the_next_request(server, name):
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
        answers = [read_answer(stream) for _ in range(2)]
        running = list(apps.noted)
        deadline = time.monotonic() + 20
        while not apps.noted and time.monotonic() < deadline:
            time.sleep(0.01)

    assert answers == [A, NONE]
    assert sightings == [NONE, NONE]
    assert running == [], "the background work was over too early to show anything"
    assert apps.noted == [A]
