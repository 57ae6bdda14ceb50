"""The relay is on by environment variables alone: programs that have never heard of it relay.

Each program below imports its framework and a client and nothing of ours. A receiver outside
notes what it is sent.
"""

import os
import subprocess
import sys
from pathlib import Path

import opentelemetry.instrumentation.auto_instrumentation
import pytest

from otel_token_relay.testing import third_party
from tests.support.servers import ROOT, environment, get, gunicorn_command, process, script, uvicorn_command

HTTPX = """
import os
import httpx

async def call():
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.get(os.environ["DOWNSTREAM"])
"""
REQUESTS = """
import os
import requests

def call():
    with requests.Session() as session:
        session.trust_env = False
        session.get(os.environ["DOWNSTREAM"], timeout=10)
"""
# Instrumentation of Django looks for this module before the program runs, as any deployment has it.
SETTINGS = """
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "program"
SECRET_KEY = "only for tests"
"""
DJANGO = """
from django.http import HttpResponse
from django.urls import path
"""
PROGRAMS = {
    "fastapi": """
from fastapi import FastAPI

app = FastAPI()

@app.get("/me")
async def me():
    await call()
""",
    "starlette": """
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

async def me(request):
    await call()
    return Response()

app = Starlette(routes=[Route("/me", me)])
""",
    "falcon-asgi": """
import falcon.asgi

class Me:
    async def on_get(self, request, response):
        await call()

app = falcon.asgi.App()
app.add_route("/me", Me())
""",
    "django-asgi": DJANGO
    + """
async def me(request):
    await call()
    return HttpResponse()

urlpatterns = [path("me", me)]

from django.core.asgi import get_asgi_application

app = get_asgi_application()
""",
    "flask": """
from flask import Flask

app = Flask(__name__)

@app.get("/me")
def me():
    call()
    return ""
""",
    "falcon": """
import falcon

class Me:
    def on_get(self, request, response):
        call()

app = falcon.App()
app.add_route("/me", Me())
""",
    "django": DJANGO
    + """
def me(request):
    call()
    return HttpResponse()

urlpatterns = [path("me", me)]

from django.core.wsgi import get_wsgi_application

app = get_wsgi_application()
""",
}
ASGI = ("fastapi", "starlette", "falcon-asgi", "django-asgi")
ON = {"OTEL_PROPAGATORS": "tracecontext,baggage,token_relay"}
VARIANTS = {
    "plain": {},
    "sdk-disabled": {"OTEL_SDK_DISABLED": "true"},
    "no-server-instrumentation": {
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "fastapi,starlette,flask,django,falcon,asgi,wsgi"
    },
    "no-instrumentation-at-all": {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*"},
    "urls-excluded": {"OTEL_PYTHON_EXCLUDED_URLS": ".*"},
}
# A start takes seconds of processor time, so only one framework of each kind is tried in every way.
EVERY_WAY = [
    pytest.param(name, variant, id=f"{name}-{variant}")
    for name in PROGRAMS
    for variant in VARIANTS
    if variant in ("plain", "no-instrumentation-at-all") or name in ("fastapi", "flask")
]


def write_program(directory: Path, name: str) -> str:
    """Write a program as a module of its own, and give the name that servers take."""
    (directory / "program_settings.py").write_text(SETTINGS)
    (directory / "program.py").write_text((HTTPX if name in ASGI else REQUESTS) + PROGRAMS[name])
    return "program:app"


def command(name: str, app: str) -> list[str]:
    """Give the usual command for that framework."""
    return uvicorn_command(app) if name in ASGI else gunicorn_command(app, "gthread")


def assert_relays(arguments: list[str], party, **variables: str) -> None:
    """Serve, send two users and nobody, and look at what the receiver got."""
    everything = {
        **ON,
        "DOWNSTREAM": party.url,
        "DJANGO_SETTINGS_MODULE": "program_settings",
        "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS": party.url,
        **variables,
    }
    with process(arguments, **everything) as (port, _):
        for token in ("token-of-a", None, "token-of-b", None):
            assert get(port, "/me", token).status in (200, 204)

    expected = ["Bearer token-of-a", None, "Bearer token-of-b", None]
    assert [request.authorization for request in party.requests] == expected


@pytest.mark.parametrize(("name", "variant"), EVERY_WAY)
def test_relays_under_opentelemetry_instrument(name, variant, tmp_path):
    """The launcher and variables are all that it takes, and no telemetry knob switches it off."""
    app = write_program(tmp_path, name)
    with third_party() as party:
        assert_relays(
            [script("opentelemetry-instrument"), *command(name, app)],
            party,
            PYTHONPATH=str(tmp_path),
            **VARIANTS[variant],
        )

        # What says that the client really is, or is not, under instrumentation.
        if variant in ("plain", "no-instrumentation-at-all"):
            traced = [bool(request.header_lines("traceparent")) for request in party.requests]
            assert traced == [variant == "plain"] * 4


@pytest.mark.parametrize("name", ["fastapi", "flask"])
def test_relays_by_sitecustomize(name, tmp_path):
    """As the operator does it in a cluster: a directory on PYTHONPATH, and no launcher."""
    directory = Path(opentelemetry.instrumentation.auto_instrumentation.__file__).parent
    app = write_program(tmp_path, name)
    with third_party() as party:
        assert_relays(command(name, app), party, PYTHONPATH=os.pathsep.join([str(directory), str(tmp_path)]))


def test_fastapi_relays_without_opentelemetry_instrument(tmp_path):
    """FastAPI speaks OpenTelemetry by itself, so the variables alone do."""
    app = write_program(tmp_path, "fastapi")
    with third_party() as party:
        assert_relays(command("fastapi", app), party, PYTHONPATH=str(tmp_path))


def test_nothing_is_relayed_unless_the_propagator_is_named(tmp_path):
    """Installed and not asked for, it does nothing: the check that these tests can fail."""
    app = write_program(tmp_path, "fastapi")
    with third_party() as party:
        with pytest.raises(AssertionError):
            assert_relays(
                [script("opentelemetry-instrument"), *command("fastapi", app)],
                party,
                PYTHONPATH=str(tmp_path),
                OTEL_PROPAGATORS="tracecontext,baggage",
            )
        assert [request.authorization for request in party.requests] == [None] * 4


# Modules whose own import is what first brings OpenTelemetry, and so us, in.
ASGI_CALL = """
import asyncio, sys
from otel_token_relay import current_token

seen = []

async def inner(scope, receive, send):
    seen.append(current_token() and current_token().reveal())

scope = {"type": "http", "method": "GET", "path": "/me", "query_string": b"", "scheme": "http",
         "headers": [(b"authorization", b"Bearer token-of-a")], "server": ("127.0.0.1", 80)}
asyncio.run(make(inner)(scope, None, None))
print(seen)
"""
WSGI_CALL = """
from otel_token_relay import current_token

seen = []

def inner(environ, start_response):
    seen.append(current_token() and current_token().reveal())
    return []

environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/me", "HTTP_AUTHORIZATION": "Bearer token-of-a",
           "wsgi.url_scheme": "http", "SERVER_NAME": "a", "SERVER_PORT": "80"}
list(make(inner)(environ, lambda *_: None))
print(seen)
"""
FIRST_IMPORTS = {
    "fastapi": (
        "import fastapi\n\ndef make(inner):\n    app = fastapi.FastAPI()\n    app.mount('/', inner)\n    return app\n",
        ASGI_CALL,
    ),
    "starlette-middleware": (
        "from starlette.middleware.opentelemetry import OpenTelemetryMiddleware as make\n",
        ASGI_CALL,
    ),
    "contrib-asgi": ("from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware as make\n", ASGI_CALL),
    "contrib-wsgi": ("from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware as make\n", WSGI_CALL),
}
# Whatever the call itself imports must not be what applies the hook: everything is imported
# before, while nothing of OpenTelemetry is.
PRELOADED = "import asyncio, asyncio.runners, json, logging, random, secrets, tempfile, urllib.parse, wsgiref.util\n"
CHECK = """
import sys
states = sys.modules["otel_token_relay.install"].hook_states()
assert "hooked" in states.values(), states
assert all(state == "hooked" for name, state in states.items() if name in sys.modules), states
"""


def run(program: str) -> str:
    """Run a program in a fresh interpreter, with the propagator named, and give what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment(**ON),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", FIRST_IMPORTS)
def test_module_that_brings_us_in_gets_its_boundary(name):
    """A module that is half imported when the propagator loads is hooked when its import ends."""
    first, call = FIRST_IMPORTS[name]

    assert run(PRELOADED + first + CHECK + call) == "['token-of-a']"


def test_failed_import_is_hooked_when_it_succeeds(tmp_path):
    """An import that fails half-way, after it has brought us in, is waited for again."""
    program = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == "starlette.routing":
            raise ImportError(name)

refuse = Refuse()
sys.meta_path.insert(0, refuse)
try:
    import starlette.middleware.opentelemetry
except ImportError as error:
    assert str(error) == "starlette.routing"
else:
    raise SystemExit("the import should have failed")
sys.meta_path.remove(refuse)
assert "starlette.middleware.opentelemetry" not in sys.modules
from starlette.middleware.opentelemetry import OpenTelemetryMiddleware as make
"""

    assert run(program + CHECK + ASGI_CALL) == "['token-of-a']"


def test_module_under_a_foreign_import_system_is_named_and_left_alone():
    """One whose end of import nobody tells us is tried at once; that failure is named, nothing else suffers."""
    program = """
import sys, types
module = types.ModuleType("httpx2")
module.__spec__ = types.SimpleNamespace(name="httpx2", loader=None, _initializing=True)
sys.modules["httpx2"] = module
import otel_token_relay
otel_token_relay.install()
states = sys.modules["otel_token_relay.install"].hook_states()
print(states["httpx2"].partition(";")[0])
print(states["urllib.request"])
"""

    foreign, other = run("import urllib.request\n" + program).splitlines()
    assert foreign.startswith("AttributeError: ")
    assert other == "hooked"
