"""Operators can observe rejected requests at every kind of server."""

from __future__ import annotations

import asyncio
import http.client
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import falcon
import fastapi
import flask
import httpx
import pytest
import websockets.sync.client
from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware as OtelAsgi
from opentelemetry.instrumentation.falcon import FalconInstrumentor
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorServer, GrpcInstrumentorServer
from opentelemetry.instrumentation.threading import ThreadingInstrumentor
from opentelemetry.instrumentation.tornado import TornadoInstrumentor
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware as OtelWsgi
from opentelemetry.propagate import set_global_textmap
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, DEFAULT_ON
from opentelemetry.trace import SpanKind, StatusCode

from otel_token_relay import Settings, install, refusals
from otel_token_relay.configured_authenticator import build_authenticator
from otel_token_relay.rate_limits import RateLimit
from otel_token_relay.refusals import OPT_IN_VARIABLE, SPANS_PER_SECOND
from otel_token_relay.runtime import Terms
from otel_token_relay.servers import aiohttp as aiohttp_server
from otel_token_relay.servers import rsgi, sanic
from otel_token_relay.testing import assert_never_leaked
from otel_token_relay.verification import BearerAuthenticator, TokenVerifier
from otel_token_relay.verification.asgi import BearerAuthMiddleware as AsgiAuth
from otel_token_relay.verification.wsgi import BearerAuthMiddleware as WsgiAuth
from tests.support.enforcement import application_reached, bearer, settings_for
from tests.support.issuers import Issuer, issuing, wait_until
from tests.support.processes import instrumentations
from tests.support.protected_servers import (
    HOOKED,
    OWN_INTERFACE,
    ROWS,
    GrpcServer,
    Serve,
    installed,
    reached,
    serve_aiohttp,
    serve_grpc,
    serve_grpc_aio,
    serve_tornado,
    serving_behind,
)
from tests.support.served import Server
from tests.support.servers import get, process, script, serve_asgi, serve_wsgi, uvicorn_command
from tests.support.telemetry import Telemetry, recording
from tests.support.tokens import AUDIENCE

OLD, NEW = "http.server.duration", "http.server.request.duration"
COUNTER = "token_relay.verifications"
TRACEPARENT = b"traceparent: 00-aaaabbbbccccddddeeeeffff00001111-2222333344445555-01"
TARGET = "/tests.Profiles/Me"


@contextmanager
def _serving(app: Any, serve: Callable[[Any], AbstractContextManager[int]]) -> Iterator[Server]:
    with serve(app) as port:
        yield Server("in code", port)


def _authenticator(settings: Settings) -> BearerAuthenticator:
    return BearerAuthenticator(TokenVerifier(settings.issuers, settings.audience), exclude=("/healthz",))


async def _asgi(scope: Any, receive: Any, send: Any) -> None:
    reached.append(scope["path"])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def _wsgi(environ: Any, start_response: Any) -> list[bytes]:
    reached.append(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Length", "2")])
    return [b"{}"]


def _threaded(app: Any) -> AbstractContextManager[int]:
    return serve_wsgi(app, threads=True)


IN_CODE: dict[str, Serve] = {
    "ASGI middleware": lambda settings, _=None: _serving(
        AsgiAuth(_asgi, authenticator=_authenticator(settings)), serve_asgi
    ),
    "WSGI middleware": lambda settings, _=None: _serving(
        WsgiAuth(_wsgi, authenticator=_authenticator(settings)), _threaded
    ),
}
EVERY = ROWS | IN_CODE
every_server = pytest.mark.parametrize("row", EVERY)
HTTP = [row for row in EVERY if not row.startswith("gRPC")]


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the authenticators, because equal settings share them even between tests."""
    monkeypatch.delenv(OPT_IN_VARIABLE, raising=False)
    build_authenticator.cache_clear()
    reached.clear()
    yield
    build_authenticator.cache_clear()


@pytest.fixture
def telemetry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Telemetry]:
    with recording(monkeypatch) as telemetry:
        yield telemetry


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def outcomes(telemetry: Telemetry) -> dict[str, int]:
    """Return the number of requests by outcome and, if there is one, by reason."""
    return {
        "/".join(str(value) for _, value in reversed(labels)): count
        for labels, count in telemetry.points(COUNTER).items()
    }


@every_server
def test_refused_request_has_a_span_a_count_and_a_warning(
    issuer: Issuer, row: str, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """A rejected request has one count, one warning, and one span below the caller's, with only its method and path."""
    token = bearer(issuer, exp=1)
    secret = token.decode().removeprefix(" Bearer ")
    headers = (TRACEPARENT, b"User-Agent: " + secret.encode(), b"X-Forwarded-Proto: " + secret.encode())
    with EVERY[row](settings_for(issuer), None) as server:
        is_grpc = isinstance(server, GrpcServer)
        target = TARGET if is_grpc else f"{TARGET}?access_token={secret}"
        assert server.send(token, target=target, headers=headers).status == 401
        assert application_reached() == []
        assert server.send(bearer(issuer), target=TARGET).status == 200
        assert server.send(target="/healthz").status == 200

    (span,) = telemetry.server_spans
    told = {
        "token_relay.verification": "refused",
        "token_relay.reason": "expired",
        "token_relay.claim": "exp",
    }
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == "2222333344445555"
    assert span.status.status_code is StatusCode.UNSET
    if is_grpc:
        assert span.name == TARGET
        assert attributes_of(span) == told | {
            "rpc.system": "grpc",
            "rpc.service": "tests.Profiles",
            "rpc.method": "Me",
            "rpc.grpc.status_code": 16,
        }
        assert telemetry.count(OLD) == 0
    else:
        names = {"http.method": "GET", "http.scheme": "http", "http.status_code": 401}
        assert span.name == "GET"
        assert attributes_of(span) == told | names | {"url.path": TARGET}
        assert telemetry.points(OLD) == {tuple(sorted(names.items())): 1}
    assert outcomes(telemetry) == {"refused/expired": 1, "accepted": 1, "excluded": 1}
    warnings = [record.getMessage() for record in caplog.records if record.name == "otel_token_relay"]
    assert warnings == ["request rejected (expired); 0 more since the last warning"]
    assert_never_leaked(secret, telemetry.text, caplog.text)


@pytest.mark.parametrize("row", HOOKED)
def test_token_in_the_path_is_masked(issuer: Issuer, row: str, telemetry: Telemetry) -> None:
    """A token in the path is masked in the span, even if it looks like a word."""
    secret = "correcthorsebatterystaple"
    with HOOKED[row](settings_for(issuer), None) as server:
        assert server.send(f" Bearer {secret}".encode(), target=f"/reset/{secret}").status == 401

    (span,) = telemetry.server_spans
    assert "reset" in span.to_json()
    assert_never_leaked(secret, telemetry.text)


@every_server
def test_unavailability_is_an_error(row: str, telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    """If the keys are unavailable, the span has an error status, and the duration includes the wait for the keys."""
    with issuing() as issuer, EVERY[row](settings_for(issuer), None) as server:
        issuer.behave = issuer.fail
        assert server.send(bearer(issuer), target=TARGET).status == 503

    (span,) = telemetry.server_spans
    attributes = attributes_of(span)
    assert span.status.status_code is StatusCode.ERROR
    assert (attributes["token_relay.verification"], attributes["token_relay.reason"]) == ("unavailable", "unavailable")
    assert attributes.get("http.status_code", attributes.get("rpc.grpc.status_code")) in (503, 14)
    assert outcomes(telemetry) == {"unavailable/unavailable": 1}
    assert [text for text in caplog.messages if "503" in text]


@pytest.mark.parametrize("row", ROWS)
def test_verification_that_cannot_start_is_visible(
    issuer: Issuer, row: str, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """If verification cannot start, every request fails and is recorded with the reason."""
    settings = Settings.from_env(
        {"OTEL_PYTHON_TOKEN_RELAY_VERIFY": "enforce", "OTEL_PYTHON_TOKEN_RELAY_VERIFY_EXCLUDE": "/healthz"}
    )
    with ROWS[row](settings, None) as server:
        assert server.send(bearer(issuer), target=TARGET).status == 503
        assert server.send(target="/healthz").status == 200

    (span,) = telemetry.server_spans
    assert span.status.status_code is StatusCode.ERROR
    assert attributes_of(span)["token_relay.verification"] == "unavailable"
    assert attributes_of(span)["token_relay.reason"] == "cannot_start"
    assert outcomes(telemetry) == {"unavailable/cannot_start": 1, "excluded": 1}
    assert [text for text in caplog.messages if "(cannot_start); 0 more" in text]


@pytest.mark.parametrize("row", ROWS)
def test_report_mode_counts_and_warns_and_serves(
    issuer: Issuer, row: str, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """Report mode counts and warns but records no span, because the application serves the request."""
    with ROWS[row](settings_for(issuer, "report"), None) as server:
        for _ in range(2):
            assert server.send(bearer(issuer, exp=1), target=TARGET).status == 200
        assert server.send(bearer(issuer), target=TARGET).status == 200

    assert telemetry.server_spans == []
    assert telemetry.count(OLD) == 0
    assert outcomes(telemetry) == {"reported/expired": 2, "accepted": 1}
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage() for record in warnings if record.name == "otel_token_relay"] == [
        "report mode: request would have been rejected (expired); 0 more since the last warning"
    ]


@pytest.mark.parametrize("row", HTTP)
@pytest.mark.parametrize(("opt_in", "is_old", "is_new"), [("http", False, True), ("http/dup", True, True)])
def test_metric_follows_the_opt_in(
    issuer: Issuer,
    row: str,
    telemetry: Telemetry,
    monkeypatch: pytest.MonkeyPatch,
    opt_in: str,
    is_old: bool,
    is_new: bool,
) -> None:
    """The duration metric follows the same opt-in as instrumentation, so all requests are in one metric."""
    monkeypatch.setenv(OPT_IN_VARIABLE, opt_in)
    with EVERY[row](settings_for(issuer), None) as server:
        assert server.send(target=TARGET).status == 401

    assert (telemetry.count(OLD), telemetry.count(NEW)) == (is_old, is_new)
    (span,) = telemetry.server_spans
    assert ("http.status_code" in attributes_of(span), "http.response.status_code" in attributes_of(span)) == (
        is_old,
        is_new,
    )


@every_server
def test_parent_is_not_read_without_a_propagator_for_it(issuer: Issuer, row: str, telemetry: Telemetry) -> None:
    """If no propagator reads trace headers, the caller's span is not the parent."""
    set_global_textmap(CompositePropagator([]))
    with EVERY[row](settings_for(issuer), None) as server:
        assert server.send(target=TARGET, headers=(TRACEPARENT,)).status == 401

    (span,) = telemetry.server_spans
    assert span.parent is None


@every_server
def test_flood_makes_few_spans_and_one_warning(
    issuer: Issuer, row: str, telemetry: Telemetry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of requests is counted completely, but creates few spans and one warning."""
    monkeypatch.setattr(refusals._recorder, "_spans", RateLimit(SPANS_PER_SECOND, 1.0, lambda: 0.0))
    number = 3 * SPANS_PER_SECOND
    with EVERY[row](settings_for(issuer), None) as server:
        for _ in range(number):
            assert server.send(target=TARGET).status == 401

    assert outcomes(telemetry) == {"refused/absent": number}
    assert telemetry.count(OLD) == (0 if isinstance(server, GrpcServer) else number)
    assert len(telemetry.server_spans) == SPANS_PER_SECOND
    assert len([text for text in caplog.messages if "(absent)" in text]) == 1


def fail(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("not today")


@every_server
def test_broken_telemetry_does_not_change_the_response(
    issuer: Issuer, row: str, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken telemetry does not change the response, and the next request is served."""
    with EVERY[row](settings_for(issuer), None) as server:
        expected = server.send(target=TARGET)
        expired = bearer(issuer, exp=1)
        for broken in (
            "otel_token_relay.verifications.operator_log._logger.warning",
            "opentelemetry.sdk.trace.Tracer.start_span",
            "opentelemetry.propagate.extract",
            "opentelemetry.sdk.metrics._internal.instrument._Synchronous.__init__",
            "otel_token_relay.refusals._describe",
        ):
            with monkeypatch.context() as patch:
                patch.setattr(broken, fail)
                assert server.send(target=TARGET)[:1] == expected[:1]
                assert server.send(target=TARGET).body == expected.body
                assert server.send(expired, target=TARGET).status == 401
        assert server.send(bearer(issuer), target=TARGET).status == 200


@pytest.mark.parametrize("row", ["Starlette", "aiohttp.web", "aiohttp.web by hand", "Tornado"])
def test_refused_handshake_of_a_websocket_is_a_request(issuer: Issuer, row: str, telemetry: Telemetry) -> None:
    """A rejected WebSocket handshake is recorded as a GET request with an error response."""
    with ROWS[row](settings_for(issuer), None) as server:
        with pytest.raises(websockets.InvalidStatus) as refused:
            websockets.sync.client.connect(f"ws://127.0.0.1:{server.port}/ws")
        assert refused.value.response.status_code == 401

    (span,) = telemetry.server_spans
    attributes = attributes_of(span)
    assert span.name == "GET"
    assert (attributes["url.path"], attributes["http.status_code"]) == ("/ws", 401)
    assert telemetry.count(OLD) == 1


def test_websocket_that_can_only_be_closed_has_the_status_403(issuer: Issuer, telemetry: Telemetry) -> None:
    """A WebSocket that can only be closed is recorded with the status 403 that the server sends (ASGI
    specification).
    """
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/ws", "scheme": "ws", "headers": [], "query_string": b""}
    asyncio.run(AsgiAuth(_asgi, authenticator=_authenticator(settings_for(issuer)))(scope, receive, send))

    assert [message["type"] for message in sent] == ["websocket.close"]
    assert attributes_of(telemetry.server_spans[0])["http.status_code"] == 403
    assert attributes_of(telemetry.server_spans[0])["http.scheme"] == "ws"


@contextmanager
def _instrumented(instrumentor: Any) -> Iterator[None]:
    instrumentor.instrument()
    try:
        yield
    finally:
        instrumentor.uninstrument()


@contextmanager
def _aiohttp_outside(settings: Settings) -> Iterator[Any]:
    middleware = aiohttp_server.TokenRelayMiddleware(settings, _authenticator(settings))
    with _instrumented(AioHttpServerInstrumentor()), serve_aiohttp(middleware) as server:
        yield server


def _hooked_and_instrumented(
    instrumentor: Callable[[], Any], serve: Callable[[], AbstractContextManager[Any]]
) -> Callable[[Settings], AbstractContextManager[Any]]:
    @contextmanager
    def run(settings: Settings) -> Iterator[Any]:
        with _instrumented(instrumentor()), installed(settings), serve() as server:
            yield server

    return run


OUTSIDE: dict[str, Callable[[Settings], AbstractContextManager[Any]]] = {
    "ASGI": lambda settings: _serving(
        OtelAsgi(AsgiAuth(_asgi, authenticator=_authenticator(settings)), exclude_spans=["receive", "send"]), serve_asgi
    ),
    "WSGI": lambda settings: _serving(OtelWsgi(WsgiAuth(_wsgi, authenticator=_authenticator(settings))), _threaded),
    "aiohttp.web": _aiohttp_outside,
    "gRPC": _hooked_and_instrumented(GrpcInstrumentorServer, serve_grpc),
    "gRPC aio": _hooked_and_instrumented(GrpcAioInstrumentorServer, serve_grpc_aio),
}


@contextmanager
def _fastapi_inside(settings: Settings) -> Iterator[Any]:
    app = fastapi.FastAPI()
    app.add_api_route("/{name:path}", lambda: {})
    with installed(settings):
        FastAPIInstrumentor.instrument_app(app)
        with serve_asgi(app) as port:
            yield Server("fastapi", port)


@contextmanager
def _flask_inside(settings: Settings) -> Iterator[Any]:
    app = flask.Flask("protected")
    app.add_url_rule("/<path:name>", view_func=lambda name: {}, endpoint="any")
    with installed(settings):
        FlaskInstrumentor().instrument_app(app)
        with _threaded(app) as port:
            yield Server("flask", port)


INSIDE: dict[str, Callable[[Settings], AbstractContextManager[Any]]] = {
    "FastAPI": _fastapi_inside,
    "Flask": _flask_inside,
    "aiohttp.web": _hooked_and_instrumented(AioHttpServerInstrumentor, serve_aiohttp),
    "Tornado": _hooked_and_instrumented(TornadoInstrumentor, serve_tornado),
}

COMBINED = {f"{row}, outside": serve for row, serve in OUTSIDE.items()} | {
    f"{row}, inside": serve for row, serve in INSIDE.items()
}


@pytest.mark.filterwarnings("ignore:Inheritance class _InstrumentedApplication")  # of instrumentation
@pytest.mark.parametrize("row", COMBINED)
@pytest.mark.parametrize("is_sampled", [True, False], ids=["sampled", "sampled out"])
def test_with_instrumentation_each_request_is_recorded_once(
    issuer: Issuer, row: str, is_sampled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With instrumentation, each request is recorded once, even on a shared connection, and the surrounding span gets
    the attributes.
    """
    with recording(monkeypatch, DEFAULT_ON if is_sampled else ALWAYS_OFF) as telemetry:
        with COMBINED[row](settings_for(issuer)) as server:
            for token, status in ((bearer(issuer), 200), (bearer(issuer, exp=1), 401), (bearer(issuer), 200)):
                assert server.send(token, target=TARGET).status == status
            expected = 3 if is_sampled else 0
            wait_until(lambda: len(telemetry.server_spans) == expected)

        assert telemetry.count(OLD) == (0 if isinstance(server, GrpcServer) else 3)
        told = [attributes_of(span).get("token_relay.reason") for span in telemetry.server_spans]
        assert told == ([None, "expired", None] if is_sampled else [])


def _falcon_app(settings: Settings) -> Any:
    class Resource:
        def on_get(self, request: Any, response: Any) -> None:
            response.media = {}

    install(settings)
    app = falcon.App()
    app.add_route(TARGET, Resource())
    return app


def _flask_app(settings: Settings) -> Any:
    app = flask.Flask("protected")
    app.add_url_rule(TARGET, view_func=dict, endpoint="any")
    app.wsgi_app = WsgiAuth(app.wsgi_app, authenticator=_authenticator(settings))  # type: ignore[method-assign]
    FlaskInstrumentor().instrument_app(app)
    return app


@pytest.mark.parametrize(("instrumentor", "build"), [(FalconInstrumentor, _falcon_app), (None, _flask_app)])
def test_instrumentation_around_a_framework_without_a_server(
    issuer: Issuer, telemetry: Telemetry, instrumentor: Any, build: Callable[[Settings], Any]
) -> None:
    """In a test client or with uWSGI, instrumentation that replaces the application records the request in its span."""
    with _instrumented(instrumentor()) if instrumentor else nullcontext():
        app = build(settings_for(issuer))
        with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://app") as client:
            for token, status in ((bearer(issuer), 200), (bearer(issuer, exp=1), 401)):
                response = client.get(TARGET, headers={"Authorization": token.decode().strip()})
                assert response.status_code == status

    told = [attributes_of(span).get("token_relay.reason") for span in telemetry.server_spans]
    assert told == [None, "expired"]
    assert telemetry.count(OLD) == 2


@pytest.mark.parametrize("row", OWN_INTERFACE)
def test_hook_of_a_framework_alone_records_it_too(issuer: Issuer, row: str, telemetry: Telemetry) -> None:
    """Tornado's handlers can run without the server's hook, and the framework's hook then records the request."""
    with serving_behind(_authenticator(settings_for(issuer)), row) as server:
        target = TARGET if isinstance(server, GrpcServer) else f"{TARGET}?access_token=secret"
        assert server.send(bearer(issuer, exp=1), target=target).status == 401

    (span,) = telemetry.server_spans
    assert attributes_of(span)["token_relay.reason"] == "expired"
    assert "secret" not in telemetry.text


@pytest.mark.parametrize("row", HOOKED)
def test_span_in_which_the_server_was_started_is_not_the_requests(
    issuer: Issuer, row: str, telemetry: Telemetry
) -> None:
    """The span in which a server was started, which threads and event loops keep, is not used for requests."""
    tracer = telemetry.tracer_provider.get_tracer("tests")
    # At the server boundary, even a SERVER span belongs to a different request.
    kind = SpanKind.INTERNAL if row.startswith("gRPC") else SpanKind.SERVER
    with (
        _instrumented(ThreadingInstrumentor()),
        tracer.start_as_current_span("main", kind=kind) as main,
        HOOKED[row](settings_for(issuer), None) as server,
    ):
        assert server.send(target=TARGET).status == 401
        (span,) = telemetry.server_spans

    assert attributes_of(span)["token_relay.reason"] == "absent"
    assert span.parent is None
    assert "token_relay.reason" not in main.attributes  # type: ignore[attr-defined]


class _KeptAlive:
    """A client that sends requests over one connection."""

    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)

    def send(self, token: bytes | None) -> int:
        headers = {} if token is None else {"Authorization": token.decode().strip()}
        self._connection.request("GET", TARGET, headers=headers)
        response = self._connection.getresponse()
        response.read()
        return response.status

    def close(self) -> None:
        self._connection.close()


@pytest.mark.filterwarnings("ignore:Inheritance class _InstrumentedApplication")
@pytest.mark.parametrize("row", [row for row in COMBINED if not row.startswith(("gRPC", "WSGI", "Flask"))])
def test_the_previous_request_on_a_connection_is_another_one(issuer: Issuer, row: str, telemetry: Telemetry) -> None:
    """The previous request's span, which might still be current, does not get the attributes and is not the parent."""
    with COMBINED[row](settings_for(issuer)) as server:
        client = _KeptAlive(server)
        assert [client.send(token) for token in (bearer(issuer), None, bearer(issuer), None)] == [200, 401, 200, 401]
        client.close()
        wait_until(lambda: len(telemetry.exporter.get_finished_spans()) >= 4)

    assert telemetry.count(OLD) == 4
    spans = telemetry.exporter.get_finished_spans()
    refused = [span for span in spans if "token_relay.reason" in attributes_of(span)]
    assert [attributes_of(span).get("http.status_code") for span in refused] == [401, 401]
    if row.endswith("inside"):
        assert [span.parent for span in refused] == [None, None]


class _Headers:
    """Headers as Granian and Sanic pass them."""

    def __init__(self, **values: str) -> None:
        self._values = values

    def get_all(self, name: str) -> list[str]:
        return [self._values[name]] if name in self._values else []

    def getall(self, name: str, default: list[str]) -> list[str]:
        return self.get_all(name) or default


@pytest.mark.parametrize(("proto", "status"), [("http", 401), ("ws", 401)])
def test_refused_rsgi_request_is_recorded(issuer: Issuer, telemetry: Telemetry, proto: str, status: int) -> None:
    """A rejected RSGI request is recorded, even if Granian is not installed."""
    responses: list[int] = []

    class Protocol:
        def response_bytes(self, status: int, headers: Any, body: bytes) -> None:
            responses.append(status)

        def close(self, status: int) -> None:
            responses.append(status)

    headers = _Headers(authorization=bearer(issuer, exp=1).decode().strip(), traceparent=TRACEPARENT.decode()[13:])
    scope = SimpleNamespace(proto=proto, method="GET", path="/me", scheme="http", headers=headers)
    settings = settings_for(issuer)
    asyncio.run(rsgi.serve(fail, scope, Protocol(), Terms(settings, _authenticator(settings))))

    (span,) = telemetry.server_spans
    assert responses == [status]
    assert span.name == "GET"
    assert span.parent is not None
    assert attributes_of(span) == {
        "url.path": "/me",
        "http.method": "GET",
        "http.scheme": "http",
        "http.status_code": 401,
        "token_relay.verification": "refused",
        "token_relay.reason": "expired",
        "token_relay.claim": "exp",
    }
    assert telemetry.count(OLD) == 1


def test_refused_sanic_request_is_recorded(
    issuer: Issuer, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rejected Sanic request is recorded with the connection's scheme, even if Sanic is not installed."""
    sent: list[Any] = []

    class Response:
        async def send(self, body: bytes, end_stream: bool) -> None:
            sent.append(body)

    monkeypatch.setitem(sys.modules, "sanic", ModuleType("sanic"))
    monkeypatch.setitem(sys.modules, "sanic.response", SimpleNamespace(HTTPResponse=dict))  # type: ignore[arg-type]
    request = SimpleNamespace(
        method="POST",
        path="/me",
        scheme="https",
        conn_info=SimpleNamespace(ssl=False),
        headers=_Headers(traceparent=TRACEPARENT.decode()[13:]),
        stream=SimpleNamespace(respond=lambda response: Response()),
    )
    settings = settings_for(issuer)
    asyncio.run(sanic.serve(fail, request, Terms(settings, _authenticator(settings))))

    (span,) = telemetry.server_spans
    assert sent == [b'{"error":"unauthenticated"}']
    assert span.name == "POST"
    assert span.parent is not None
    assert attributes_of(span)["http.scheme"] == "http"
    assert attributes_of(span)["token_relay.reason"] == "absent"
    assert telemetry.count(OLD) == 1


def test_zero_code_shows_refused_requests(tmp_path: Path) -> None:
    """With environment variables alone, rejected requests cause a warning on standard error, although no log is
    exported.
    """
    command = [script("opentelemetry-instrument"), *uvicorn_command("tests.support.unaware_apps:asgi_app")]
    variables = {
        **instrumentations("fastapi", "logging"),
        "OTEL_TRACES_EXPORTER": "console",
        "OTEL_METRICS_EXPORTER": "console",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_METRIC_EXPORT_INTERVAL": "200",
        "OTEL_SEMCONV_STABILITY_OPT_IN": "http",
        "OTEL_PYTHON_TOKEN_RELAY_VERIFY": "enforce",
        "OTEL_PYTHON_TOKEN_RELAY_ISSUERS": "https://idp.example",
        "OTEL_PYTHON_TOKEN_RELAY_AUDIENCE": AUDIENCE,
        "OTEL_PYTHON_TOKEN_RELAY_VERIFY_EXCLUDE": "/me",
    }
    output, errors = tmp_path / "output", tmp_path / "errors"
    with (
        output.open("w") as to_output,
        errors.open("w") as to_errors,
        process(command, stdout=to_output, stderr=to_errors, **variables) as (port, _),
    ):
        assert get(port, f"{TARGET}?access_token=secret").status == 401
        assert get(port, "/me").status == 200

        # A signal ends the process, which loses telemetry that it has not exported.
        expected = (NEW, COUNTER, '"token_relay.verification": "excluded"', '"token_relay.reason": "absent"')

        def is_exported() -> bool:
            text = output.read_text()
            return text.count("SpanKind.SERVER") == 2 and all(word in text for word in expected)

        wait_until(is_exported, 30)

    text = output.read_text()
    assert text.count("SpanKind.SERVER") == 2
    assert f'"url.path": "{TARGET}"' in text
    assert '"http.response.status_code": 401' in text
    assert "secret" not in text
    assert errors.read_text().count("request rejected (absent); 0 more since the last warning") == 1
