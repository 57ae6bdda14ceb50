"""Environment variables alone enable the relay in programs that do not use the package.

Each program below imports only its framework and a client. A separate server records the programs' requests.
"""

import os
import subprocess
import sys
from pathlib import Path

import opentelemetry.instrumentation.auto_instrumentation
import pytest

from otel_token_relay.testing import third_party
from tests.support.processes import instrumentations
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
# Django's instrumentation imports this module before the program runs, as in any deployment.
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
DISABLED = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
VARIANTS = {
    "plain": {},
    "sdk-disabled": {"OTEL_SDK_DISABLED": "true"},
    "no-server-instrumentation": {DISABLED: "fastapi,starlette,flask,django,falcon,asgi,wsgi"},
    "no-instrumentation-at-all": {DISABLED: "*"},
    "urls-excluded": {"OTEL_PYTHON_EXCLUDED_URLS": ".*"},
}
# Starting a process takes seconds, so each variant is tested with one framework unless FULL_MATRIX is set.
PAIRS = {
    ("fastapi", "sdk-disabled"),
    ("fastapi", "no-server-instrumentation"),
    ("flask", "no-instrumentation-at-all"),
    ("flask", "urls-excluded"),
}
# One process enables the instrumentation of every installed library; other processes enable only their own libraries'.
EVERYTHING = ("fastapi", "plain")
EVERY_WAY = [
    pytest.param(name, variant, id=f"{name}-{variant}")
    for name in PROGRAMS
    for variant in VARIANTS
    if os.environ.get("FULL_MATRIX") or variant == "plain" or (name, variant) in PAIRS
]


def write_program(directory: Path, name: str) -> str:
    """Write a program as a module, and return the application name to pass to the server."""
    (directory / "program_settings.py").write_text(SETTINGS)
    (directory / "program.py").write_text((HTTPX if name in ASGI else REQUESTS) + PROGRAMS[name])
    return "program:app"


def own_instrumentations(name: str) -> dict[str, str]:
    """Return the variable that disables the instrumentation of libraries that the program does not use."""
    return instrumentations(name.removesuffix("-asgi"), "httpx" if name in ASGI else "requests")


def telemetry(name: str, variant: str) -> dict[str, str]:
    """Return the variables of a variant, which also disable the instrumentation that the program does not use."""
    own = {} if (name, variant) == EVERYTHING else own_instrumentations(name)
    left_out = [variables[DISABLED] for variables in (own, VARIANTS[variant]) if DISABLED in variables]
    return VARIANTS[variant] | ({DISABLED: ",".join(left_out)} if left_out else {})


def command(name: str, app: str) -> list[str]:
    """Return the usual command to serve an application of the framework."""
    return uvicorn_command(app) if name in ASGI else gunicorn_command(app, "gthread")


def assert_relays(arguments: list[str], party, **variables: str) -> None:
    """Serve the program, send requests of two users and anonymous requests, and check the relayed tokens."""
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
    """The launcher and the variables alone enable the relay, and no telemetry setting disables it."""
    app = write_program(tmp_path, name)
    with third_party() as party:
        assert_relays(
            [script("opentelemetry-instrument"), *command(name, app)],
            party,
            PYTHONPATH=str(tmp_path),
            **telemetry(name, variant),
        )

        # Check that the client is instrumented in the first variant only.
        if variant in ("plain", "no-instrumentation-at-all"):
            traced = [bool(request.header_lines("traceparent")) for request in party.requests]
            assert traced == [variant == "plain"] * 4


@pytest.mark.parametrize("name", ["fastapi", "flask"])
def test_relays_with_sitecustomize(name, tmp_path):
    """The relay works with a directory on PYTHONPATH instead of the launcher, as in the OpenTelemetry operator."""
    directory = Path(opentelemetry.instrumentation.auto_instrumentation.__file__).parent
    app = write_program(tmp_path, name)
    with third_party() as party:
        path = os.pathsep.join([str(directory), str(tmp_path)])
        assert_relays(command(name, app), party, PYTHONPATH=path, **own_instrumentations(name))


def test_fastapi_relays_without_opentelemetry_instrument(tmp_path):
    """The variables alone enable the relay in FastAPI, because FastAPI imports OpenTelemetry."""
    app = write_program(tmp_path, "fastapi")
    with third_party() as party:
        assert_relays(command("fastapi", app), party, PYTHONPATH=str(tmp_path))


def test_nothing_is_relayed_unless_the_propagator_is_configured(tmp_path):
    """If the propagator is not configured, no tokens are relayed, so these tests can fail."""
    app = write_program(tmp_path, "fastapi")
    with third_party() as party:
        with pytest.raises(AssertionError):
            assert_relays(
                [script("opentelemetry-instrument"), *command("fastapi", app)],
                party,
                PYTHONPATH=str(tmp_path),
                OTEL_PROPAGATORS="tracecontext,baggage",
                **own_instrumentations("fastapi"),
            )
        assert [request.authorization for request in party.requests] == [None] * 4


# These programs start with an import that loads OpenTelemetry and, in turn, this package.
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
# The call must not import a module that applies the hook, so all other modules are imported first, without
# OpenTelemetry.
PRELOADED = "import asyncio, asyncio.runners, json, logging, random, secrets, tempfile, urllib.parse, wsgiref.util\n"
CHECK = """
import sys
states = sys.modules["otel_token_relay.installation"].hook_states()
assert "hooked" in states.values(), states
assert all(state == "hooked" for name, state in states.items() if name in sys.modules), states
"""


def run(program: str) -> str:
    """Run a program in a new interpreter with the propagator configured, and return its output."""
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
def test_a_module_that_imports_the_package_gets_its_boundary(name):
    """A module that is only partly imported when the propagator loads is hooked when its import ends."""
    first, call = FIRST_IMPORTS[name]

    assert run(PRELOADED + first + CHECK + call) == "['token-of-a']"


def test_a_failed_import_is_hooked_when_it_succeeds(tmp_path):
    """If an import fails after loading the package, the hook waits until the next import."""
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


def test_a_module_of_a_foreign_import_system_does_not_affect_other_modules():
    """If the end of an import cannot be observed, the hook is tried immediately, and its failure is reported."""
    program = """
import sys, types
module = types.ModuleType("httpx2")
module.__spec__ = types.SimpleNamespace(name="httpx2", loader=None, _initializing=True)
sys.modules["httpx2"] = module
import otel_token_relay
otel_token_relay.install()
states = sys.modules["otel_token_relay.installation"].hook_states()
print(states["httpx2"].partition(";")[0])
print(states["urllib.request"])
"""

    foreign, other = run("import urllib.request\n" + program).splitlines()
    assert foreign.startswith("AttributeError: ")
    assert other == "hooked"
