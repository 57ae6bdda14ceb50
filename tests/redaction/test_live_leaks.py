"""Real servers, clients, and instrumentation reproduce each leak of docs/leaks.md.

Each program runs under ``opentelemetry-instrument``, captures all headers, and exports to a real OTLP/HTTP
receiver. The receiver gets parts of the token only without redaction.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.redaction.corpus import OWN_JWT, OWN_OPAQUE, fragments
from tests.support.otlp_receiver import otlp_receiver
from tests.support.processes import INSTRUMENT, instrumentations

PRELUDE = f'''
import http.client, logging, threading, time
logging.basicConfig(level=logging.DEBUG)
for noisy in ("opentelemetry", "urllib3.connectionpool", "asyncio"):
    logging.getLogger(noisy).setLevel(logging.INFO)
log = logging.getLogger("app")
TOKEN = {OWN_OPAQUE!r}
JWT = {OWN_JWT!r}

def call(port, path, token=TOKEN):
    """Send a request from outside, with a client that is not instrumented."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers={{"Authorization": "Bearer " + token, "X-Other": token}})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body

def wsgi(app):
    from wsgiref.simple_server import make_server
    server = make_server("127.0.0.1", 0, app)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port

def uvicorn_server(app):
    import uvicorn
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.02)
    return server, server.servers[0].sockets[0].getsockname()[1]
'''

PROGRAMS = {
    "fastapi-httpx-uvicorn": """
import fastapi, httpx
app = fastapi.FastAPI()

@app.get("/me")
def me(access_token: str, request: fastapi.Request):
    with httpx.Client() as client:
        response = client.get(f"http://127.0.0.1:{port}/none?access_token={access_token}",
                              headers={"Authorization": "Bearer " + TOKEN})
        try:
            response.raise_for_status()
        except httpx.HTTPStatusError:
            log.exception("downstream failed")
        try:
            client.get(f"http://127.0.0.1:{port}/", headers={"Authorization": "Bearer " + TOKEN + "\\n"})
        except Exception as error:
            log.error("%r", error)
    return fastapi.Response("{}", headers={"X-Echo": TOKEN})

@app.get("/broken")
def broken():
    raise KeyError(TOKEN)

server, port = uvicorn_server(app)
assert call(port, "/me?access_token=" + TOKEN)[0] == 200
assert call(port, "/me?access_token=" + JWT, JWT)[0] == 200
assert call(port, "/broken")[0] == 500
server.should_exit = True
""",
    "flask-requests": """
import flask, requests
app = flask.Flask("app")

@app.get("/me")
def me():
    url = f"http://127.0.0.1:{port}/reset/{TOKEN}?access_token={TOKEN}"
    response = requests.get(url, headers={"Authorization": "Bearer " + TOKEN})
    try:
        response.raise_for_status()
    except requests.HTTPError:
        log.exception("downstream failed")
    try:
        requests.get("http://127.0.0.1:1/x?access_token=" + TOKEN)
    except requests.ConnectionError as error:
        log.warning("cannot reach: %s", error)
    try:
        requests.get(url, headers={"Authorization": "Bearer " + TOKEN + "\\n"})
    except requests.exceptions.InvalidHeader as error:
        log.warning("%s", error)
    return "{}"

from werkzeug.serving import make_server
server = make_server("127.0.0.1", 0, app, threaded=True)
port = server.server_port
threading.Thread(target=server.serve_forever, daemon=True).start()
assert call(port, "/me?access_token=" + TOKEN)[0] == 200
assert call(port, "/reset/" + TOKEN)[0] == 404
server.shutdown()
""",
    "django": """
from django.core.wsgi import get_wsgi_application
port = wsgi(get_wsgi_application())
assert call(port, "/me?access_token=" + TOKEN)[0] == 200
assert call(port, "/broken")[0] == 500
assert call(port, "/none/" + TOKEN)[0] == 404
""",
    "aiohttp-client": """
import asyncio, aiohttp
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

async def me(request):
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        try:
            await session.get(f"http://127.0.0.1:{port}/none?access_token={TOKEN}",
                              headers={"Authorization": "Bearer " + TOKEN})
        except aiohttp.ClientResponseError:
            log.exception("downstream failed")
        try:
            await session.get(f"http://[{TOKEN}")
        except Exception as error:
            log.error("%s", error)
    return JSONResponse({})

server, port = uvicorn_server(Starlette(routes=[Route("/me", me)]))
assert call(port, "/me?access_token=" + TOKEN)[0] == 200
server.should_exit = True
""",
    "urllib3-metrics": """
import urllib3, urllib.request
from otel_token_relay import use_token
port = wsgi(lambda environ, start: (start("200 OK", []), [b"{}"])[1])
with use_token(TOKEN):
    url = f"http://127.0.0.1:{port}/x?access_token={TOKEN}"
    urllib3.PoolManager().request("GET", url).data
    urllib.request.urlopen(url).read()
with use_token(JWT):
    urllib3.PoolManager().request("GET", f"http://127.0.0.1:{port}/x?access_token={JWT}").data
""",
    "logging-sqlalchemy": """
import sqlalchemy, warnings, asyncio
from opentelemetry import trace
from otel_token_relay import use_token
logging.captureWarnings(True)
engine = sqlalchemy.create_engine("sqlite://", echo=True)
with use_token(TOKEN), trace.get_tracer("app").start_as_current_span("work"):
    with engine.connect() as connection:
        try:
            connection.execute(sqlalchemy.text("INSERT INTO none VALUES (:t, :n)"), {"t": TOKEN, "n": 1})
        except sqlalchemy.exc.OperationalError:
            log.exception("insert failed")
    log.info("got %s", {"authorization": "Bearer " + TOKEN}, extra={"user_token": TOKEN, "nested": {"a": [TOKEN]}})
    log.info("cut %s...", TOKEN[:24])
    warnings.warn("careful with " + TOKEN)
    thread = threading.Thread(target=lambda: log.error("in a thread: %s", TOKEN))
    thread.start(); thread.join()
    asyncio.run(asyncio.to_thread(log.warning, "in an executor: %s", TOKEN))
""",
}

# The settings and URLs of the Django program. The instrumentation reads these settings before the program runs.
DJANGO_SITE = """
import logging
from django.http import HttpResponse
from django.urls import path
ROOT_URLCONF = __name__
ALLOWED_HOSTS = ["*"]
SECRET_KEY = "x"
MIDDLEWARE = []
LOGGING_CONFIG = None

def me(request):
    logging.getLogger("app").info("headers: %s", dict(request.headers))
    return HttpResponse("{}")

def broken(request):
    raise ValueError(request.META["HTTP_AUTHORIZATION"])

urlpatterns = [path("me", me), path("broken", broken)]
"""


# The instrumentation that each program uses.
USED = {
    "fastapi-httpx-uvicorn": ("fastapi", "httpx"),
    "flask-requests": ("flask", "requests", "urllib3"),
    "django": ("django",),
    "aiohttp-client": ("aiohttp-client", "starlette"),
    "urllib3-metrics": ("urllib", "urllib3"),
    "logging-sqlalchemy": (),
}


def run(name: str, tmp_path: Path, *, redaction: bool) -> tuple[bytes, int]:
    source = tmp_path / "program.py"
    source.write_text(PRELUDE + PROGRAMS[name])
    (tmp_path / "leaky_site.py").write_text(DJANGO_SITE)
    with otlp_receiver() as receiver:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")} | {
            **instrumentations("logging", *USED[name]),
            "OTEL_PROPAGATORS": "tracecontext,baggage,token_relay",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_LOGS_EXPORTER": "otlp",
            "OTEL_METRICS_EXPORTER": "otlp",
            "OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED": "true",
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST": ".*",
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE": ".*",
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_REQUEST": ".*",
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_RESPONSE": ".*",
            "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS": "http://127.0.0.1:*",
            "OTEL_PYTHON_TOKEN_RELAY_REDACTION": str(redaction).lower(),
            "DJANGO_SETTINGS_MODULE": "leaky_site",
        }
        done = subprocess.run(
            [*INSTRUMENT, sys.executable, str(source)],
            cwd=tmp_path,
            capture_output=True,
            env=environ,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr.decode()[-2000:].replace(OWN_OPAQUE, "…").replace(OWN_JWT, "…")
        return receiver.bytes_for(), len(receiver.bodies)


def runs_in(data: bytes) -> int:
    lowered = data.lower()
    return sum(run.lower().encode() in lowered for token in (OWN_OPAQUE, OWN_JWT) for run in fragments(token))


# Without redaction, the search must find a token. Each start takes seconds, so only the first program runs without
# redaction unless FULL_MATRIX is set.
RUNS = [
    pytest.param(name, redaction, id=f"{name}-{'on' if redaction else 'off'}")
    for number, name in enumerate(PROGRAMS)
    for redaction in (True, False)
    if redaction or number == 0 or os.environ.get("FULL_MATRIX")
]


@pytest.mark.parametrize(("name", "redaction"), RUNS)
def test_the_receiver_gets_no_token(name, redaction, tmp_path):
    """Real programs export traces, logs, and metrics that contain no 17 consecutive characters of a token."""
    data, requests = run(name, tmp_path, redaction=redaction)

    assert requests >= 1
    assert len(data) > 500
    assert bool(runs_in(data)) is not redaction
