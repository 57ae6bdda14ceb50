"""If requests must be verified and a server cannot be hooked, the server responds to every connection with 503."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from otel_token_relay.authentication import CANNOT_VERIFY
from tests.support.processes import RELAY, Service, service, unused_port
from tests.support.served import Server
from tests.support.servers import get

SETTINGS = {
    **RELAY,
    "OTEL_PYTHON_TOKEN_RELAY_ISSUERS": "https://issuer.example",
    "OTEL_PYTHON_TOKEN_RELAY_AUDIENCE": "this-service",
}

# Each server reads its application from an attribute that is not the hooked one.
BREAK = """
import sys
from otel_token_relay.servers import web_servers
web_servers.PLACES = {
    module: (package, tuple(place._replace(attribute="renamed") for place in places))
    for module, (package, places) in web_servers.PLACES.items()
}
from otel_token_relay import install
install()
port = int(sys.argv[1])
"""
PLAIN_WSGI = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "6")])
    return [b"served"]
"""
UVICORN = 'import uvicorn\nuvicorn.run(%s, port=port, loop="%s", log_level="warning")'
ASGI = "from tests.support.plain_app import app\n"
PROGRAMS = {
    "uvicorn": ASGI + UVICORN % ("app", "asyncio"),
    "uvicorn with uvloop": ASGI + UVICORN % ("app", "uvloop"),
    "hypercorn": ASGI
    + "import asyncio\nfrom hypercorn.asyncio import serve\nfrom hypercorn.config import Config\n"
    + 'asyncio.run(serve(app, Config.from_mapping(bind=f"127.0.0.1:{port}")))',
    "waitress": PLAIN_WSGI + "import waitress\nwaitress.serve(app, host='127.0.0.1', port=port)",
    "werkzeug": PLAIN_WSGI + "import werkzeug.serving\nwerkzeug.serving.run_simple('127.0.0.1', port, app)",
    "cheroot": PLAIN_WSGI + "import cheroot.wsgi\ncheroot.wsgi.Server(('127.0.0.1', port), app).safe_start()",
}
FASTAPI = "import fastapi\n" + UVICORN % ("fastapi.FastAPI()", "asyncio")


@contextmanager
def running(program: str, **variables: str) -> Iterator[tuple[int, Service]]:
    port = unused_port()
    with service(sys.executable, "-c", BREAK + program, str(port), environ=SETTINGS | variables) as process:
        yield port, process


def status(port: int, process: Service) -> int:
    deadline = time.monotonic() + 60
    while True:
        try:
            return get(port, "/").status
        except OSError:
            assert process.process.poll() is None, process.log
            assert time.monotonic() < deadline, process.log
            time.sleep(0.1)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_server_that_cannot_be_hooked_responds_with_503(name: str) -> None:
    """A server that cannot be hooked responds with 503, and the log identifies the server."""
    pytest.importorskip("uvloop" if "uvloop" in name else name)
    with running(PROGRAMS[name], OTEL_PYTHON_TOKEN_RELAY_VERIFY="enforce") as (port, process):
        assert [status(port, process) for _ in range(3)] == [503] * 3
        process.stop()
        assert "cannot be verified, so every connection gets a 503 response" in process.log


def test_the_last_resort_sends_the_response_of_a_boundary() -> None:
    """The fallback response is identical to a boundary's response and closes the connection."""
    with running(PROGRAMS["uvicorn"], OTEL_PYTHON_TOKEN_RELAY_VERIFY="enforce") as (port, process):
        status(port, process)
        reply = Server("uvicorn", port).send()

    headers = {name.lower(): value for name, value in CANNOT_VERIFY.headers}
    assert reply == (503, headers | {"connection": "close"}, CANNOT_VERIFY.body)
    assert headers["retry-after"] == "60"


@pytest.mark.parametrize("mode", ["off", "report"])
def test_nothing_is_refused_unless_it_must_be_verified(mode: str) -> None:
    """If nothing must be verified, a service whose server cannot be hooked keeps running."""
    with running(PROGRAMS["uvicorn"], OTEL_PYTHON_TOKEN_RELAY_VERIFY=mode) as (port, process):
        assert status(port, process) == 200
        process.stop()
        assert ("NOT verified" in process.log) is (mode == "report")


def test_a_hooked_framework_does_not_lift_the_refusal() -> None:
    """A hooked framework does not make a server accept requests, because the application might not use that
    framework.
    """
    with running(FASTAPI, OTEL_PYTHON_TOKEN_RELAY_VERIFY="enforce") as (port, process):
        assert status(port, process) == 503
