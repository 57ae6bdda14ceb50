"""Each verification example runs in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support import served as servers
from tests.support.issuers import Issuer
from tests.support.processes import INSTRUMENT, instrumentations
from tests.support.protected_servers import GrpcServer
from tests.support.served import serving
from tests.support.tokens import AUDIENCE, claims, make_token

EXAMPLES = {
    "fastapi": ("uvicorn-httptools", "examples.verify_fastapi.profile_service:app"),
    "flask": ("gunicorn", "examples.verify_flask.profile_service:app"),
    "django": ("gunicorn", "examples.verify_django.profile_service:app"),
}

MISSING_SCOPE = 'Bearer realm="profiles", error="insufficient_scope", scope="profiles:read"'
QUIET = {
    "OTEL_PROPAGATORS": "tracecontext,baggage,token_relay",
    "OTEL_TRACES_EXPORTER": "none",
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_LOGS_EXPORTER": "none",
}
LAUNCHER = " ".join(INSTRUMENT)


def bearer(issuer: Issuer, **changes: object) -> bytes:
    return b" Bearer " + make_token(claims(issuer.url, **changes)).encode()


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_accepts_valid_tokens_only(issuer: Issuer, name: str) -> None:
    """The example returns the caller, requires a scope, and serves the excluded path without a token."""
    command, app = EXAMPLES[name]
    with serving(command, {"asgi": app, "wsgi": app}, {"ISSUER": issuer.url, "AUDIENCE": AUDIENCE}) as server:
        me = server.send(bearer(issuer), target="/me")
        assert json.loads(me.body) == {"sub": "alice", "client": "web", "scopes": ["profiles:read", "profiles:write"]}
        assert json.loads(server.send(bearer(issuer), target="/profiles/bob").body)["seen_by"] == "alice"
        refused = server.send(bearer(issuer, scope="other"), target="/profiles/bob")
        assert (refused.status, refused.headers["www-authenticate"]) == (403, MISSING_SCOPE)
        assert refused.headers["cache-control"] == "no-store"
        assert server.send(bearer(issuer, exp=1), target="/me").status == 401
        assert server.send(target="/me").headers["www-authenticate"] == 'Bearer realm="profiles"'
        assert server.send(target="/healthz").status == 200


@pytest.mark.parametrize("name", ["flask", "django"])
def test_example_works_under_the_launcher(issuer: Issuer, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The example also works with ``opentelemetry-instrument``, which configures Django first."""
    command = f"{LAUNCHER} {sys.executable} -m gunicorn {{app}} --bind fd://{{fd}} --log-level warning"
    monkeypatch.setitem(servers.COMMANDS, "instrumented", ("wsgi", command))
    environ = QUIET | instrumentations(name) | {"ISSUER": issuer.url, "AUDIENCE": AUDIENCE}
    with serving("instrumented", {"wsgi": EXAMPLES[name][1]}, environ) as server:
        assert json.loads(server.send(bearer(issuer), target="/me").body)["sub"] == "alice"
        refused = server.send(bearer(issuer, scope="other"), target="/profiles/bob")
        assert (refused.status, refused.headers["www-authenticate"]) == (403, MISSING_SCOPE)
        assert server.send(target="/me").status == 401
        assert server.send(target="/healthz").status == 200


def environment_to_verify(issuer: Issuer) -> dict[str, str]:
    return QUIET | {
        "OTEL_PYTHON_TOKEN_RELAY_VERIFY": "enforce",
        "OTEL_PYTHON_TOKEN_RELAY_ISSUERS": issuer.url,
        "OTEL_PYTHON_TOKEN_RELAY_AUDIENCE": AUDIENCE,
        "OTEL_PYTHON_TOKEN_RELAY_VERIFY_EXCLUDE": "/healthz,/p.S/healthz",
    }


def test_zero_code_example_enforces(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``opentelemetry-instrument``, the variables alone protect an application that has no verification code."""
    command = f"{LAUNCHER} {sys.executable} -m uvicorn {{app}} --fd {{fd}} --log-level warning"
    monkeypatch.setitem(servers.COMMANDS, "instrumented", ("asgi", command))
    with serving(
        "instrumented",
        {"asgi": "examples.verify_zero_code.profile_service:app"},
        environment_to_verify(issuer) | instrumentations("fastapi"),
    ) as server:
        assert server.send(target="/me").headers["www-authenticate"] == 'Bearer realm="api"'
        assert json.loads(server.send(bearer(issuer), target="/me").body) == {"sub": "alice"}
        assert server.send(bearer(issuer, aud="elsewhere"), target="/me").status == 401
        assert server.send(target="/healthz").status == 200


def test_zero_code_covers_servers_without_asgi_or_wsgi(issuer: Issuer) -> None:
    """The variables also protect aiohttp.web, Tornado, and gRPC with their instrumentation."""
    used = ("aiohttp-server", "tornado", "grpc_server", "grpc_aio_server")
    program = subprocess.Popen(
        [*INSTRUMENT, sys.executable, "-m", "tests.support.unaware_servers"],
        env={**os.environ, **environment_to_verify(issuer), **instrumentations(*used)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert program.stdout is not None
        ports = json.loads(program.stdout.readline())
        for name, port in ports.items():
            is_grpc = name == "gRPC"
            server = GrpcServer(port) if is_grpc else servers.Server(name, port)
            me, healthz = ("/p.S/me", "/p.S/healthz") if is_grpc else ("/me", "/healthz")

            assert server.send(target=me).headers["www-authenticate"] == 'Bearer realm="api"'
            assert server.send(bearer(issuer, exp=1), target=me).status == 401
            assert server.send(bearer(issuer), target=me).body == b"hello"
            assert server.send(target=healthz).body == b"hello"
        assert set(ports) == {"aiohttp.web", "Tornado", "gRPC"}
    finally:
        program.kill()
        program.communicate(timeout=10)
