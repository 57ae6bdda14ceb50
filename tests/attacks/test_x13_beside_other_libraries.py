"""x13: hostile destinations, shared request objects, and old releases do not expose a token."""

from __future__ import annotations

import base64
import itertools
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import httpx
import httpx2
import pytest
import requests
from urllib3 import HTTPHeaderDict

from otel_token_relay import Settings, context, install, uninstall, use_token
from otel_token_relay.clients import httpx as httpx_hook
from otel_token_relay.clients import urllib3 as urllib3_hook
from otel_token_relay.configured_exchange import build_token_source
from otel_token_relay.personal_responses import is_personal, mark_urllib3, restore
from tests.support.clients import in_loop
from tests.support.rejecting_tokens import INVALID, Guarded, guarded
from tests.support.token_endpoint import ACCESS_TOKEN, SECRET, Endpoint, serving, verified

ALICE = "alice-has-this-token-0123456789"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """Run a token endpoint that issues a new token for each request."""
    build_token_source.cache_clear()
    monkeypatch.setattr(context, "has_served", True)
    count = itertools.count(1)

    def issue(form: dict[str, str]) -> tuple[int, Any]:
        return 200, {
            "access_token": f"{form.get('subject_token') or form['assertion']}.{next(count)}",
            "issued_token_type": ACCESS_TOKEN,
            "token_type": "Bearer",
            "expires_in": 300,
        }

    with serving() as running:
        running.respond = issue
        yield running
    uninstall()
    build_token_source.cache_clear()


@pytest.fixture
def billing() -> Iterator[Guarded]:
    with guarded() as server:
        yield server


def turn_on(endpoint: Endpoint, *urls: str) -> None:
    install(
        Settings(
            destinations=tuple(f"{url};audience=billing;retry=idempotent" for url in urls),
            token_endpoint=endpoint.url,
            client_id="user-service",
            client_secret=SECRET,
        )
    )


def by_urllib(url: str, change: list[Callable[[], None]], elsewhere: str) -> None:
    request = urllib.request.Request(url)

    def changed() -> None:
        request.full_url = elsewhere
        request.add_unredirected_header("Authorization", "Bearer mine")

    change.append(changed)
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).close()


def by_requests(url: str, change: list[Callable[[], None]], elsewhere: str) -> None:
    with requests.Session() as session:
        session.trust_env = False
        request = session.prepare_request(requests.Request("GET", url))

        def changed() -> None:
            request.url = elsewhere
            request.headers["authorization"] = "Bearer mine"

        change.append(changed)
        session.send(request, timeout=10)


def by_httpx(library: Any) -> Callable[..., None]:
    def send(url: str, change: list[Callable[[], None]], elsewhere: str) -> None:
        with library.Client(trust_env=False) as client:
            request = client.build_request("GET", url)
            change.append(lambda: _change(request, library, elsewhere))
            client.send(request)

    return send


def by_async_httpx(url: str, change: list[Callable[[], None]], elsewhere: str) -> None:
    async def send() -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            request = client.build_request("GET", url)
            change.append(lambda: _change(request, httpx, elsewhere))
            await client.send(request)

    in_loop(send())


def _change(request: Any, library: Any, elsewhere: str) -> None:
    request.url = library.URL(elsewhere)
    request.headers["Authorization"] = "Bearer mine"


@pytest.mark.parametrize(
    "send",
    [by_urllib, by_requests, by_httpx(httpx), by_httpx(httpx2), by_async_httpx],
    ids=["urllib", "requests", "httpx", "httpx2", "httpx async"],
)
def test_a_request_object_that_is_changed_meanwhile(
    send: Callable[..., None], endpoint: Endpoint, billing: Guarded
) -> None:
    """If a request's URL is changed during the token's renewal, the new token is not sent to the changed URL."""
    turn_on(endpoint, billing.url)
    issue, change = endpoint.respond, []

    def respond(form: dict[str, str]) -> Any:
        if len(endpoint.forms) > 1:
            change.pop()()
        return issue(form)

    endpoint.respond = respond
    with guarded() as elsewhere, use_token(verified(ALICE)):
        send(billing.url, change, elsewhere.url)

        assert elsewhere.seen == []
        assert [seen.authorization for seen in billing.seen] == [[f"Bearer {ALICE}.1"], [f"Bearer {ALICE}.2"]]


class Dripping:
    """A destination that sends its rejection one byte at a time until the client closes the connection."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.tokens: list[str] = []


@pytest.fixture
def dripping() -> Iterator[Dripping]:
    stop = threading.Event()
    found: list[Dripping] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state = found[0]
            state.tokens.append(self.headers["Authorization"].removeprefix("Bearer "))
            if len(state.tokens) > 1:
                self.send_response(204)
                self.end_headers()
                return
            self.send_response(401)
            self.send_header("WWW-Authenticate", INVALID)
            self.send_header("Content-Length", "60000")
            self.end_headers()
            with suppress(OSError):
                while not stop.wait(0.02):
                    self.wfile.write(b"x")

        def log_message(self, *args: object) -> None:
            """Write nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    found.append(Dripping(f"http://127.0.0.1:{server.server_port}"))
    yield found[0]
    stop.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("library", ["httpx", "httpx async", "requests"])
def test_a_rejection_that_never_ends(
    library: str, endpoint: Endpoint, dripping: Dripping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rejection whose body never ends does not block an application that does not read the body."""
    for module in (httpx_hook, urllib3_hook):
        monkeypatch.setattr(module, "DISCARD_SECONDS", 0.2)
    turn_on(endpoint, dripping.url)
    statuses: list[int] = []

    async def stream() -> None:
        async with httpx.AsyncClient(trust_env=False) as client, client.stream("GET", dripping.url) as response:
            statuses.append(response.status_code)

    def send() -> None:
        with use_token(verified(ALICE)):
            if library == "httpx async":
                in_loop(stream())
            elif library == "httpx":
                with httpx.Client(trust_env=False) as client, client.stream("GET", dripping.url) as response:
                    statuses.append(response.status_code)
            else:
                with requests.get(dripping.url, stream=True, timeout=10) as response:
                    statuses.append(response.status_code)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    thread.join(20)

    assert statuses == ([204] if library == "requests" else [401])
    assert len(dripping.tokens) == (2 if library == "requests" else 1)


def test_the_response_of_an_old_urllib3_is_marked() -> None:
    """A response of urllib3 1.26 is marked as personal through the http.client response that it wraps."""
    headers = HTTPMessage()
    headers["cache-control"] = "public"
    headers["Cache-Control"] = "max-age=60"
    below = SimpleNamespace(headers=headers)
    mark_urllib3(below)
    mark_urllib3(below)
    assert headers.get_all("Cache-Control") == ["no-store"]

    above = SimpleNamespace(headers=HTTPHeaderDict(headers.items()), _original_response=below)
    assert is_personal(above)
    assert is_personal(SimpleNamespace(raw=above, headers={}))
    assert restore(above).headers.getlist("Cache-Control") == ["public", "max-age=60"]


CLAIMS = base64.b64encode(b'{"access_token": {"acrs": {"essential": true, "value": "c1"}}}').decode()


@pytest.mark.parametrize("status", [400, 503])
def test_refused_claims_do_not_take_away_the_token_without_them(
    status: int, endpoint: Endpoint, billing: Guarded
) -> None:
    """If an exchange with additional claims is refused, the previous token remains usable for other requests."""
    issue = endpoint.respond

    def respond(form: dict[str, str]) -> Any:
        return (status, {"error": "interaction_required"}) if "claims" in form else issue(form)

    endpoint.respond = respond
    billing.challenges = [f'Bearer error="insufficient_claims", claims="{CLAIMS}"']
    billing.accepts = lambda token: len(billing.seen) != 2
    install(
        Settings(
            destinations=(f"{billing.url};audience=api://billing;grant=on-behalf-of;retry=idempotent",),
            token_endpoint=endpoint.url,
            client_id="user-service",
            client_secret=SECRET,
        )
    )
    statuses = []
    for _ in range(3):
        with use_token(verified(ALICE)):
            statuses.append(requests.get(billing.url, timeout=10).status_code)

    assert statuses == [200, 401, 200]
    assert billing.tokens == [f"{ALICE}.1"] * 3
    assert ["claims" in form for form in endpoint.forms] == [False, True]


def test_a_token_with_the_claims_replaces_the_one_without_them(endpoint: Endpoint, billing: Guarded) -> None:
    """A token with the requested claims is used for the next request and is renewed if it is rejected."""
    billing.challenges = [f'Bearer error="insufficient_claims", claims="{CLAIMS}"']
    billing.accepts = lambda token: not token.endswith(".1")
    install(
        Settings(
            destinations=(f"{billing.url};audience=api://billing;grant=on-behalf-of;retry=idempotent",),
            token_endpoint=endpoint.url,
            client_id="user-service",
            client_secret=SECRET,
        )
    )
    for _ in range(2):
        with use_token(verified(ALICE)):
            assert requests.get(billing.url, timeout=10).status_code == 200

    assert billing.tokens == [f"{ALICE}.1", f"{ALICE}.2", f"{ALICE}.2"]
