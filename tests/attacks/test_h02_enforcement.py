"""h02, h06, h17, h21: no OpenTelemetry setting, process model, or middleware disables enforcement."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from otel_token_relay import Settings, TokenRelayPropagator, current_token, install, uninstall
from otel_token_relay.redaction import RedactingFilter
from otel_token_relay.servers import asgi, wsgi
from tests.support.issuers import Issuer, wait_until
from tests.support.processes import BIN, INSTRUMENT, RELAY, service, unused_port
from tests.support.tokens import AUDIENCE, claims, make_token

ASGI_APP, WSGI_APP = "tests.support.unaware_apps:asgi_app", "tests.support.unaware_flask:app"
MODELS = {
    "uvicorn": ("uvicorn", ASGI_APP, "--port", "{port}"),
    "uvicorn --workers": (
        "uvicorn",
        ASGI_APP,
        "--port",
        "{port}",
        "--workers",
        "2",
        "--timeout-worker-healthcheck",
        "90",
    ),
    "uvicorn --reload": ("uvicorn", ASGI_APP, "--port", "{port}", "--reload", "--reload-dir", "tests/attacks"),
    "hypercorn -w": ("hypercorn", ASGI_APP, "--bind", "127.0.0.1:{port}", "-w", "2"),
    "gunicorn fork": ("gunicorn", WSGI_APP, "--bind", "127.0.0.1:{port}", "-w", "2"),
    "gunicorn --preload": ("gunicorn", WSGI_APP, "--bind", "127.0.0.1:{port}", "-w", "2", "--preload"),
    "flask --debug": ("flask", "--app", "tests.support.unaware_flask", "run", "--port", "{port}", "--debug"),
}
TELEMETRY: Mapping[str, Mapping[str, str | None]] = {
    "no propagators": {"OTEL_PROPAGATORS": None},
    "other propagators": {"OTEL_PROPAGATORS": "tracecontext,baggage"},
    "the relay": {},
    "SDK disabled": {"OTEL_PROPAGATORS": None, "OTEL_SDK_DISABLED": "true"},
    "no instrumentation": {"OTEL_PROPAGATORS": "tracecontext", "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*"},
    "excluded URLs": {"OTEL_PROPAGATORS": None, "OTEL_PYTHON_EXCLUDED_URLS": ".*"},
    "no sampling": {"OTEL_PROPAGATORS": "baggage", "OTEL_TRACES_SAMPLER": "always_off"},
}
# Each worker loads instrumentation, which accounts for most of the startup time.
INSTRUMENTATION = {} if os.environ.get("FULL_MATRIX") else {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*"}
# A start takes seconds of processor time, so all pairs run only if FULL_MATRIX is set, as in `make matrix`.
PAIRS = [
    pytest.param(model, setting, id=f"{model}, {setting}")
    for at, model in enumerate(MODELS)
    for number, setting in enumerate(TELEMETRY)
    if os.environ.get("FULL_MATRIX") or number == at
]


def variables(issuer: Issuer) -> dict[str, str]:
    """Return the environment variables that enable enforcement."""
    return {
        "OTEL_PYTHON_TOKEN_RELAY_VERIFY": "enforce",
        "OTEL_PYTHON_TOKEN_RELAY_ISSUERS": issuer.url,
        "OTEL_PYTHON_TOKEN_RELAY_AUDIENCE": AUDIENCE,
    }


def is_listening(port: int) -> bool:
    """Return whether a server accepts connections on the port."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(("model", "telemetry"), PAIRS)
def test_h02_h21_no_process_serves_unverified(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, model: str, telemetry: str
) -> None:
    """Every worker of every server rejects anonymous and forged requests and accepts authenticated ones."""
    port = unused_port()
    program, *options = (word.format(port=port) for word in MODELS[model])
    environ = RELAY | variables(issuer) | INSTRUMENTATION
    for name, value in TELEMETRY[telemetry].items():
        environ.pop(name, None)
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            environ[name] = value
    token = make_token(claims(issuer.url))
    forged = f"{token[:-8]}AAAAAAAA"
    # Each request opens a new connection, which any worker can accept.
    limits = httpx.Limits(max_keepalive_connections=0)
    with (
        service(*INSTRUMENT, str(BIN / program), *options, environ=environ) as running,
        httpx.Client(timeout=30, limits=limits) as client,
    ):
        url = f"http://127.0.0.1:{port}/me"
        wait_until(lambda: is_listening(port), 60)
        statuses = [
            client.get(url, headers=headers).status_code
            for _ in range(6)
            for headers in ({}, {"Authorization": f"Bearer {forged}"}, {"Authorization": f"Bearer {token}"})
        ]

    assert statuses == [401, 401, 200] * 6, running.log


async def call_asgi(app: Any, scope: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Call an ASGI application once and return the messages that the application sends."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(dict(scope), receive, send)
    return sent


async def plain_asgi(scope: Any, receive: Any, send: Any) -> None:
    """Respond with ``token`` if a token is bound, and otherwise with ``none``."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"token" if current_token() else b"none"})


def plain_wsgi(environ: Any, start_response: Any) -> list[bytes]:
    """Respond with ``token`` if a token is bound, and otherwise with ``none``."""
    start_response("200 OK", [])
    return [b"token" if current_token() else b"none"]


def get_asgi(app: Any, **headers: str) -> tuple[int, bytes]:
    """Send a request to an ASGI application and return the status and the body."""
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    start, body = asyncio.run(call_asgi(app, {"type": "http", "path": "/", "headers": lines}))
    return start["status"], body["body"]


def get_wsgi(app: Any, **headers: str) -> tuple[int, bytes]:
    """Send a request to a WSGI application and return the status and the body."""
    statuses: list[str] = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", **{f"HTTP_{k.upper()}": v for k, v in headers.items()}}
    body = b"".join(app(environ, lambda status, headers: statuses.append(status)))
    return int(statuses[0][:3]), body


BY_HAND = [
    pytest.param(lambda: asgi.TokenRelayMiddleware(plain_asgi), get_asgi, id="ASGI"),
    pytest.param(lambda: wsgi.TokenRelayMiddleware(plain_wsgi), get_wsgi, id="WSGI"),
]


@pytest.fixture(params=["before", "after"])
def order(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return whether the middleware is created ``before`` or ``after`` the call to `install`."""
    yield request.param
    uninstall()


@pytest.mark.parametrize(("make", "get"), BY_HAND)
def test_h06_middleware_without_settings_follows_what_is_installed(
    issuer: Issuer, order: str, make: Any, get: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Middleware without settings uses the installed settings and ignores the environment."""
    monkeypatch.setenv("OTEL_PYTHON_TOKEN_RELAY_SOURCE_HEADERS", "x-other")
    settings = Settings(
        verify="enforce", issuers=(issuer.url,), audience=AUDIENCE, source_headers=("x-token",), max_length=4000
    )
    app = make() if order == "before" else None
    install(settings)
    app = app or make()
    token = make_token(claims(issuer.url))

    assert get(app)[0] == 401
    assert get(app, authorization=f"Bearer {token}")[0] == 401
    assert get(app, x_other=token)[0] == 401
    assert get(app, x_token=f"{token}{'x' * 4000}")[0] in (400, 401)
    assert get(app, x_token=token) == (200, b"token")


@pytest.mark.parametrize(("make", "get"), BY_HAND)
def test_h06_without_installation_the_environment_counts_at_first_use(
    issuer: Issuer, make: Any, get: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Middleware that is created before the variables are set still verifies requests."""
    app = make()
    for name, value in variables(issuer).items():
        monkeypatch.setenv(name, value)

    assert get(app)[0] == 401
    assert get(app, authorization=f"Bearer {make_token(claims(issuer.url))}") == (200, b"token")


def test_h06_everything_that_takes_settings_follows(order: str) -> None:
    """The propagator and the log filter use the installed settings."""
    import logging

    propagator, redacting = (TokenRelayPropagator(), RedactingFilter()) if order == "before" else (None, None)
    install(Settings(source_headers=("x-token",), redact_keys=("color",)))
    propagator, redacting = propagator or TokenRelayPropagator(), redacting or RedactingFilter()

    assert current_token(propagator.extract({"x-token": "abcdefgh"})) is not None
    assert current_token(propagator.extract({"authorization": "Bearer abcdefgh"})) is None
    record = logging.makeLogRecord({"msg": "x", "color": "red"})
    filtered = redacting.filter(record)
    assert (record if filtered is True else filtered).color == "[REDACTED]"  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["mcp", "telegram", "http.disconnect", "LIFESPAN", "webtransport"])
@pytest.mark.parametrize("path", ["/", "/healthz"])
def test_h17_a_scope_of_another_type_is_verified_or_refused(issuer: Issuer, kind: str, path: str) -> None:
    """A scope of an unknown type never reaches the application without a valid token, even on an excluded path."""
    reached: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["type"])

    settings = Settings(verify="enforce", issuers=(issuer.url,), audience=AUDIENCE, verify_exclude=("/healthz",))
    protected = asgi.TokenRelayMiddleware(app, settings)
    token = make_token(claims(issuer.url))
    for headers in ([], [(b"authorization", b"Bearer forged")]):
        with pytest.raises(RuntimeError, match="the application was not called"):
            asyncio.run(call_asgi(protected, {"type": kind, "path": path, "headers": headers}))
    assert reached == []

    asyncio.run(call_asgi(protected, {"type": kind, "headers": [(b"authorization", f"Bearer {token}".encode())]}))
    asyncio.run(call_asgi(protected, {"type": "lifespan"}))
    assert reached == [kind, "lifespan"]
