"""Behavior of the Tornado boundary that the shared server tests do not cover."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

import pytest
import tornado.web

from otel_token_relay import Settings
from otel_token_relay.boundary import Boundary
from otel_token_relay.configured_authenticator import DenyAll
from otel_token_relay.stream_limits import seconds_left
from tests.servers.connections import (
    check_an_open_connection_binds_no_token_after_uninstall,
    check_each_request_has_its_own_token,
)
from tests.support.enforcement import FaultyAuthenticator, application_reached, bearer, settings_for
from tests.support.issuers import Issuer, wait_until
from tests.support.protected_servers import HOOKED, installed, reached, run_tornado, serving_behind
from tests.support.served import parse_reply
from tests.support.servers import SERVERS, Server
from tests.support.telemetry import recording

pytestmark = pytest.mark.usefixtures("forget")

every_server = pytest.mark.parametrize(
    "server", [row for row in SERVERS if row.name.startswith("tornado")], ids=lambda server: server.name
)


@every_server
def test_each_request_of_a_connection_has_its_own_token(server: Server) -> None:
    """The handler and the stream that it writes see the token of their own request, or none."""
    check_each_request_has_its_own_token(server)


def test_after_uninstall_an_open_connection_binds_no_token() -> None:
    """A connection that was accepted before `uninstall` binds no token after it."""
    (server,) = (row for row in SERVERS if row.name == "tornado")
    check_an_open_connection_binds_no_token_after_uninstall(server)


def test_the_response_to_a_rejected_head_request_has_no_body(issuer: Issuer) -> None:
    """The response to a rejected HEAD request has the GET response's headers but no body, and the connection remains
    usable.
    """
    head = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
    with HOOKED["Tornado"](settings_for(issuer), None) as server:
        expected = server.send()
        both = server.send_raw(head + b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")

    assert expected.status == both.status == 401
    assert both.headers["content-length"] == expected.headers["content-length"] != "0"
    assert both.headers["www-authenticate"] == expected.headers["www-authenticate"]
    following = parse_reply(both.body)
    assert (following.status, following.body) == (401, expected.body)
    assert application_reached() == []


def test_encoded_letter_does_not_make_an_excluded_path_in_tornado(issuer: Issuer) -> None:
    """Tornado routes by the path as it was sent, so exclusions are compared with that path."""
    with HOOKED["Tornado"](settings_for(issuer), None) as server:
        assert server.send(target="/health%7A").status == 401


@pytest.mark.parametrize("path", ["/", "/prepared"])
def test_tornado_runs_nothing_of_a_refused_handler(issuer: Issuer, path: str, caplog: pytest.LogCaptureFixture) -> None:
    """Tornado logs a rejected request, does not run `prepare` or `on_finish`, and serves the
    connection's next request.
    """
    body = b"x" * 100_000
    with HOOKED["Tornado"](settings_for(issuer), None) as server:
        refused = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body))
        accepted = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization:" + bearer(issuer) + b"\r\n\r\n"
        reply = server.send_raw(refused + body + accepted)
        wait_until(lambda: "on_finish" in reached)

    assert reply.status == 401
    length = int(reply.headers["content-length"])
    assert json.loads(reply.body[:length]) == {"error": "unauthenticated"}
    assert parse_reply(reply.body[length:]).status == 200
    assert sorted(reached) == sorted(["/", "log 200", "on_finish"])
    assert [record.message for record in caplog.records if record.name == "tornado.access"] == [
        f"401 POST {path} (127.0.0.1)"
    ]


def test_tornado_streams_no_body_that_is_refused(issuer: Issuer) -> None:
    """A handler that streams its request body receives none of a rejected body, and the response is sent
    immediately.
    """
    request = b"POST /streamed HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n"
    with HOOKED["Tornado"](settings_for(issuer), None) as server:
        assert server.send_raw(request + b"\r\n").status == 401
        assert server.send_raw(request + b"\r\nhello").status == 401
        assert application_reached() == []
        assert server.send_raw(request + b"Authorization:" + bearer(issuer) + b"\r\n\r\nhello").status == 200
        assert "data_received" in reached


def test_tornado_streams_no_body_past_an_authenticator_with_a_bug() -> None:
    """If the authenticator raises an error, the handler's ``data_received`` method receives none of the body."""
    request = b"POST /streamed HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"
    with HOOKED["Tornado"](Settings(), FaultyAuthenticator()) as server:
        assert server.send_raw(request).status == 503

    assert application_reached() == []


@pytest.mark.parametrize("path", ["/", "/streamed"])
def test_the_hook_of_the_handler_rejects_a_request_if_the_server_is_not_hooked(path: str) -> None:
    """The error response is written without the handler's own methods, also if the handler streams its body."""
    request = b"POST %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello" % path.encode()
    with serving_behind(DenyAll(Settings()), "Tornado") as server:
        reply = server.send_raw(request)

    assert (reply.status, json.loads(reply.body)) == (503, {"error": "temporarily_unavailable"})
    assert application_reached() == []


def test_an_event_stream_ends_with_its_token(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler is canceled, and the client receives what was written before that."""
    monkeypatch.setattr(seconds_left, "__defaults__", (lambda: time.time() + 7200,))

    class Stream(tornado.web.RequestHandler):
        async def get(self) -> None:
            self.set_header("Content-Type", "text/event-stream")
            self.write(b"data: 1\n\n")
            await self.flush()
            await asyncio.Event().wait()

    request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization:" + bearer(issuer) + b"\r\n\r\n"
    settings = settings_for(issuer, verify_streams="exp")
    with installed(settings, None), run_tornado(tornado.web.Application([("/", Stream)])) as server:
        reply = server.send_raw(request)

    assert reply.status == 200
    assert reply.body == b"data: 1\n\n"


def test_a_rejected_request_is_recorded_without_its_query(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The span has the method, path, and status, and the query is omitted, because it might contain a token."""
    with recording(monkeypatch) as telemetry, HOOKED["Tornado"](settings_for(issuer), None) as server:
        assert server.send(target="/me?access_token=secret").status == 401
        (span,) = telemetry.server_spans

    assert (span.name, span.attributes["url.path"], span.attributes["http.status_code"]) == ("GET", "/me", 401)
    assert "secret" not in str(dict(span.attributes))


def test_the_lease_ends_if_the_client_disconnects_or_the_request_is_rejected(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler of such a request never runs, so the connection ends the lease."""
    opened: list[Boundary] = []

    class Recorded(Boundary):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            opened.append(self)

    monkeypatch.setattr("otel_token_relay.servers.tornado.Boundary", Recorded)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\nAuthorization:"
    with HOOKED["Tornado"](settings_for(issuer), None) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(head + bearer(issuer) + b"\r\n\r\n")
            wait_until(lambda: bool(opened and opened[0].admitted_by))
        assert server.send_raw(head + bearer(issuer, aud="other") + b"\r\n\r\nhello").status == 401
        wait_until(lambda: not any(boundary.token and boundary.token.lease.is_open for boundary in opened))

    assert len(opened) == 2
    assert application_reached() == []
