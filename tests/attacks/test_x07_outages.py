"""x07: an outage of the authorization server affects only unknown tokens and has no effect after it ends."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from otel_token_relay.errors import ExchangeFailed
from otel_token_relay.exchange.token_endpoint import TokenEndpoint
from otel_token_relay.verification.http_client import HttpClient
from tests.support.carrying import PATIENCE
from tests.support.token_endpoint import Endpoint, serving, verified


class Metadata:
    """An issuer whose metadata can stop responding."""

    def __init__(self) -> None:
        self.url = self.token_endpoint = ""
        self.may_respond = threading.Event()
        self.may_respond.set()
        self.asked = 0


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    issuer = Metadata()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked += 1
            issuer.may_respond.wait(PATIENCE)
            content = json.dumps({"issuer": issuer.url, "token_endpoint": issuer.token_endpoint}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer.url = f"http://127.0.0.1:{server.server_port}"
    issuer.token_endpoint = f"{issuer.url}/token"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield issuer
    issuer.may_respond.set()
    server.shutdown()
    server.server_close()


def test_metadata_that_hang_do_not_delay_exchanges_at_a_known_endpoint(metadata: Metadata) -> None:
    """If the metadata hangs, only one request waits, and other requests use the known endpoint immediately."""
    now = time.monotonic()
    endpoint = TokenEndpoint(None, metadata.url, http=HttpClient(), monotonic=lambda: now)
    assert endpoint.locate(4) == metadata.token_endpoint
    metadata.may_respond.clear()
    now += 3600
    asked = metadata.asked
    found: list[str] = []
    first = threading.Thread(target=lambda: found.append(endpoint.locate(4)))
    first.start()
    while metadata.asked == asked:
        time.sleep(0.01)
    assert [endpoint.locate(4) for _ in range(5)] == [metadata.token_endpoint] * 5  # the first request is still waiting
    assert metadata.asked == asked + 1
    first.join(PATIENCE)
    assert found == [metadata.token_endpoint]


def test_metadata_that_move_the_endpoint_to_plain_http_are_not_believed(metadata: Metadata) -> None:
    """Metadata that moves the endpoint to plain HTTP is rejected, and a known endpoint is kept."""
    now = time.monotonic()
    known, genuine = (
        TokenEndpoint(None, metadata.url, http=HttpClient(), monotonic=lambda: now),
        metadata.token_endpoint,
    )
    assert known.locate(4) == genuine
    metadata.token_endpoint = "http://attacker.example/token"
    now += 3600
    assert known.locate(4) == genuine
    with pytest.raises(ExchangeFailed):
        TokenEndpoint(None, metadata.url, http=HttpClient()).locate(4)


@pytest.mark.parametrize(
    "response", [(200, b"<html>"), (200, b""), (200, []), (302, b""), (403, b""), (404, b"<html>"), (502, b"")], ids=str
)
def test_a_response_that_is_not_about_the_token_is_forgotten_after_a_second(response: Any) -> None:
    now = time.monotonic()
    with serving() as endpoint:
        exchanger = endpoint.exchanger(monotonic=lambda: now)
        ask(exchanger, endpoint, response)
        now += 0.9
        ask(exchanger, endpoint, response)
        assert len(endpoint.forms) == 1
        now += 0.2
        endpoint.respond = endpoint.issue
        assert exchanger.exchange(verified("alice-has-this-token"), audience="billing").reveal()


def ask(exchanger: Any, endpoint: Endpoint, response: Any) -> None:
    endpoint.respond = lambda form: response
    with pytest.raises(ExchangeFailed):
        exchanger.exchange(verified("alice-has-this-token"), audience="billing")
