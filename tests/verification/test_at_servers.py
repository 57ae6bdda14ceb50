"""The server boundary verifies tokens for every server in the table, without code in the application."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import websockets.sync.client
from opentelemetry import trace
from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorServer, GrpcInstrumentorServer
from opentelemetry.instrumentation.tornado import TornadoInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from otel_token_relay import Settings
from otel_token_relay.configured_authenticator import build_authenticator
from otel_token_relay.testing import assert_never_leaked, third_party
from otel_token_relay.verification import TokenVerifier
from otel_token_relay.verification.authenticator import BearerAuthenticator
from tests.support.enforcement import FaultyAuthenticator, application_reached, bearer, settings_for
from tests.support.issuers import Issuer, issuing, wait_until
from tests.support.protected_servers import (
    BY_HAND,
    HOOKED,
    ROWS,
    GrpcServer,
    downstream,
    installed,
    reached,
)
from tests.support.served import Reply
from tests.support.tokens import AUDIENCE

PREFIX = "OTEL_PYTHON_TOKEN_RELAY_"

every_server = pytest.mark.parametrize("row", ROWS)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Forget the authenticators, because equal settings share them even between tests."""
    build_authenticator.cache_clear()
    reached.clear()
    yield
    build_authenticator.cache_clear()


@every_server
def test_boundary_lets_in_only_what_is_valid(issuer: Issuer, row: str) -> None:
    """With VERIFY=enforce, the application receives only requests with a valid token, and can read the caller."""
    with ROWS[row](settings_for(issuer), None) as server:
        malformed = 401 if isinstance(server, GrpcServer) else 400
        for lines, status, challenge in (
            ([], 401, 'Bearer realm="api"'),
            ([b" Basic YWxpY2U6c2VjcmV0"], 401, 'Bearer realm="api"'),
            ([b" Bearer a b"], malformed, 'Bearer realm="api", error="invalid_request"'),
            ([bearer(issuer), bearer(issuer)], malformed, 'Bearer realm="api", error="invalid_request"'),
            ([b" Bearer opaque"], 401, 'Bearer realm="api", error="invalid_token"'),
            ([bearer(issuer, exp=1)], 401, 'Bearer realm="api", error="invalid_token"'),
            ([bearer(issuer, aud="billing-service")], 401, 'Bearer realm="api", error="invalid_token"'),
        ):
            refused = server.send(*lines)
            assert (refused.status, refused.headers["www-authenticate"]) == (status, challenge)
            if not isinstance(server, GrpcServer):
                assert refused.headers["cache-control"] == "no-store"
                assert json.loads(refused.body)["error"]
        assert application_reached() == []

        assert json.loads(server.send(bearer(issuer)).body) == {"user": "alice", "claims": "alice"}
        assert json.loads(server.send(target="/healthz").body) == {"user": "", "claims": None}
        assert json.loads(server.send(b" Bearer opaque", target="/healthz").body) == {"user": "", "claims": None}


@every_server
def test_report_accepts_every_request_and_logs(issuer: Issuer, row: str, caplog: pytest.LogCaptureFixture) -> None:
    """Report mode counts requests, logs each reason once, and marks only valid tokens as verified."""
    valid, expired = bearer(issuer), bearer(issuer, exp=1)
    with (
        caplog.at_level(logging.WARNING, logger="otel_token_relay"),
        ROWS[row](settings_for(issuer, "report"), None) as server,
    ):
        for _ in range(3):
            assert json.loads(server.send(expired).body) == {"user": "", "claims": None}
        assert json.loads(server.send().body) == {"user": "", "claims": None}
        assert json.loads(server.send(valid).body) == {"user": "alice", "claims": "alice"}

    said = [record.getMessage() for record in caplog.records]
    assert len([text for text in said if "expired" in text]) == 1
    assert len([text for text in said if "absent" in text]) == 1
    for token in (valid, expired):
        assert_never_leaked(token.decode().removeprefix(" Bearer "), caplog.text)


@every_server
def test_nothing_is_checked_unless_asked_for(issuer: Issuer, row: str) -> None:
    """Issuers and an audience alone do not enable verification."""
    with ROWS[row](settings_for(issuer, "off"), None) as server:
        for lines in ([], [bearer(issuer, exp=1)], [bearer(issuer)]):
            assert json.loads(server.send(*lines).body) == {"user": "", "claims": None}


@every_server
@pytest.mark.parametrize("mode", ["enforce", "enfroce"])
def test_enforcement_that_cannot_start_accepts_no_request(
    issuer: Issuer, row: str, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With VERIFY=enforce, a service that cannot verify starts, logs the reason, and rejects every request."""
    settings = Settings.from_env({PREFIX + "VERIFY": mode, PREFIX + "VERIFY_EXCLUDE": "/healthz"})
    with ROWS[row](settings, None) as server:
        for lines in ([], [bearer(issuer)]):
            refused = server.send(*lines)
            assert (refused.status, refused.headers["retry-after"]) == (503, "60")
            assert "www-authenticate" not in refused.headers
        assert application_reached() == []
        assert server.send(target="/healthz").status == 200

    assert any(record.levelno == logging.ERROR for record in caplog.records)


@every_server
def test_issuer_that_is_down_is_unavailable(row: str) -> None:
    """While the issuer is down, no token is accepted, and none is reported as invalid."""
    with issuing() as issuer, ROWS[row](settings_for(issuer), None) as server:
        issuer.behave = issuer.fail
        refused = server.send(bearer(issuer))

        assert refused.status == 503
        assert 1 <= int(refused.headers["retry-after"]) <= 10
        assert application_reached() == []
        assert server.send(target="/healthz").status == 200


@every_server
def test_missing_scope_is_forbidden(issuer: Issuer, row: str) -> None:
    """An authenticator built in code can require scopes, and for gRPC a missing scope is PERMISSION_DENIED."""
    authenticator = BearerAuthenticator(TokenVerifier([issuer.url], AUDIENCE), required_scopes=("admin",))
    with ROWS[row](Settings(), authenticator) as server:
        refused = server.send(bearer(issuer))

        assert refused.status == 403
        assert refused.headers["www-authenticate"] == 'Bearer realm="api", error="insufficient_scope", scope="admin"'
        assert application_reached() == []
        assert server.send(bearer(issuer, scope="admin")).status == 200


@every_server
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_authenticator_with_a_bug_accepts_no_request(issuer: Issuer, row: str) -> None:
    """If the authenticator raises any error, the application does not receive the request."""
    with ROWS[row](Settings(), FaultyAuthenticator()) as server:
        assert server.send(bearer(issuer)).status >= 500

    assert application_reached() == []


@every_server
def test_each_caller_is_seen_as_themselves(issuer: Issuer, row: str) -> None:
    """With many concurrent users, some of whom have invalid tokens, each user gets the correct response."""
    names = [f"user-{number}" for number in range(24)]
    with ROWS[row](settings_for(issuer), None) as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
        sent = [
            (name, bearer(issuer, sub=name, **({"exp": 1} if index % 3 == 0 else {})))
            for index, name in enumerate(names)
        ]
        replies = list(pool.map(lambda one: server.send(one[1]), sent))

    for index, (name, reply) in enumerate(zip(names, replies, strict=True)):
        if index % 3 == 0:
            assert reply.status == 401
        else:
            assert json.loads(reply.body) == {"user": name, "claims": name}


@pytest.mark.parametrize(
    "row", [row for row in HOOKED if row not in ("Flask", "gRPC", "gRPC aio, synchronous methods")]
)
def test_waiting_for_keys_does_not_stall_the_loop(row: str) -> None:
    """Other requests are served while the first request waits for an issuer that hangs."""
    with issuing() as issuer, HOOKED[row](settings_for(issuer), None) as server:
        issuer.behave = issuer.hang
        replies: list[Reply] = []
        waiting = threading.Thread(target=lambda: replies.append(server.send(bearer(issuer))))
        waiting.start()
        wait_until(lambda: bool(issuer.hits))

        assert server.send(target="/healthz").status == 200
        assert server.send().status == 401
        assert replies == []

        issuer.released.set()
        waiting.join(20)
        assert replies[0].status == 503


@pytest.mark.parametrize("row", HOOKED)
def test_only_what_the_boundary_has_verified_is_relayed(issuer: Issuer, row: str) -> None:
    """With REQUIRE_VERIFIED, only a token that the boundary verified is relayed, including in report mode."""
    with third_party() as receiver:
        downstream[:] = [receiver.url]
        options: dict[str, Any] = {"destinations": (f"{receiver.url};required",), "require_verified": True}
        with HOOKED[row](settings_for(issuer, **options), None) as server:
            assert json.loads(server.send(bearer(issuer), target="/relay").body) == {"sent": True}
        with HOOKED[row](settings_for(issuer, "report", **options), None) as server:
            assert json.loads(server.send(bearer(issuer), target="/relay").body) == {"sent": True}
            assert json.loads(server.send(bearer(issuer, exp=1), target="/relay").body)["withheld"] != "relayed"
            withheld = server.send(bearer(issuer, aud="x"), target="/relay").body
            assert json.loads(withheld) == {"withheld": "not_verified"}
        with HOOKED[row](settings_for(issuer, verify_exclude=("/relay",), **options), None) as server:
            assert json.loads(server.send(bearer(issuer), target="/relay").body) == {"withheld": "not_verified"}
        assert len(receiver.requests) == 2


INSTRUMENTORS: dict[str, Any] = {
    "aiohttp.web": AioHttpServerInstrumentor,
    "Tornado": TornadoInstrumentor,
    "gRPC": GrpcInstrumentorServer,
    "gRPC aio": GrpcAioInstrumentorServer,
}


@contextmanager
def instrumented(row: str, provider: TracerProvider) -> Iterator[None]:
    instrumentor = INSTRUMENTORS[row]()
    instrumentor.instrument(tracer_provider=provider)
    try:
        yield
    finally:
        instrumentor.uninstrument()


@pytest.mark.filterwarnings("ignore:Inheritance class _InstrumentedApplication")  # of instrumentation
@pytest.mark.parametrize("row", INSTRUMENTORS)
def test_chosen_claims_are_written_onto_the_server_span(
    issuer: Issuer, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only configured claims are written to the server span, whether verification precedes the span or runs within
    it.
    """
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
    for chosen in (("sub:enduser.id",), ()):
        exporter.clear()
        with instrumented(row, provider), HOOKED[row](settings_for(issuer, span_claims=chosen), None) as server:
            # The gRPC instrumentation treats a name without a method as an error.
            target = "/tests.Profiles/Me"
            assert server.send(bearer(issuer), target=target).status == 200
            assert server.send(bearer(issuer, exp=1, sub="mallory"), target=target).status == 401
            wait_until(lambda: bool(exporter.get_finished_spans()))

        spans = [span for span in exporter.get_finished_spans() if span.kind is trace.SpanKind.SERVER]
        found = [(span.attributes or {}).get("enduser.id") for span in spans]
        # The gRPC instrumentation is outside the boundary and also creates a span for rejected requests.
        assert [value for value in found if value is not None] == (["alice"] if chosen else [])
    provider.shutdown()


@pytest.mark.parametrize("row", ["Starlette", "aiohttp.web", "aiohttp.web by hand", "Tornado"])
def test_websocket_is_refused_before_it_is_accepted(issuer: Issuer, row: str) -> None:
    """Without a valid token, the WebSocket handshake is rejected with the challenge; with one, the application accepts
    it.
    """
    with ROWS[row](settings_for(issuer), None) as server:
        url = f"ws://127.0.0.1:{server.port}/ws"
        for headers in ({}, {"Authorization": bearer(issuer, exp=1).decode().strip()}):
            with pytest.raises(websockets.InvalidStatus) as refused:
                websockets.sync.client.connect(url, additional_headers=headers)
            assert refused.value.response.status_code == 401
            assert refused.value.response.headers["WWW-Authenticate"].startswith('Bearer realm="api"')
            assert refused.value.response.headers["Cache-Control"] == "no-store"
        assert application_reached() == []

        valid = {"Authorization": bearer(issuer).decode().strip()}
        with websockets.sync.client.connect(url, additional_headers=valid) as connection:
            assert json.loads(connection.recv()) == {"user": "alice", "claims": "alice"}


def test_mounted_application_is_excluded_by_the_whole_path(issuer: Issuer) -> None:
    """A path that is excluded with its mount point needs no token, but a path with that name inside the mount does."""
    inner = Starlette(routes=[Route("/{name:path}", lambda request: PlainTextResponse("inner"))])
    with installed(settings_for(issuer, verify_exclude=("/healthz", "/api/open"))):
        client = TestClient(Starlette(routes=[Mount("/api", inner), Mount("/healthz", inner)]))

        assert client.get("/api/open").status_code == 200
        assert client.get("/api/healthz").status_code == 401
        assert client.get("/healthz/api/open").status_code == 401
        below = TestClient(Starlette(routes=[Mount("/", inner)]), root_path="/healthz")
        assert below.get("/").status_code == 401
        assert below.get("/secret").status_code == 401


def test_server_that_cannot_be_hooked_is_said_to_be_unverified(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that cannot be hooked works as before, and operators who configured enforcement get a warning."""
    monkeypatch.setattr("tornado.web.RequestHandler", object)
    with installed(settings_for(issuer)):
        pass
    assert "requests to tornado.web are NOT verified" in caplog.text

    caplog.clear()
    with installed(Settings()):
        pass
    assert "cannot hook tornado.web" in caplog.text
    assert "verified" not in caplog.text


@pytest.mark.parametrize("row", BY_HAND)
def test_boundary_in_code_follows_the_environment(issuer: Issuer, row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A boundary that is added in code without settings enforces the environment variables."""
    monkeypatch.setenv(PREFIX + "VERIFY", "enforce")
    monkeypatch.setenv(PREFIX + "ISSUERS", issuer.url)
    monkeypatch.setenv(PREFIX + "AUDIENCE", AUDIENCE)
    with BY_HAND[row](None, None) as server:  # type: ignore[arg-type]  # as in code that omits the settings
        assert server.send().status == 401
        assert server.send(bearer(issuer)).status == 200
