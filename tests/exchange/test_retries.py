"""A rejected token is replaced once, and only a request that can safely be repeated is sent again."""

from __future__ import annotations

import asyncio
import base64
import contextvars
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import aiohttp
import httpx
import pytest
import requests
import urllib3
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tornado.httpclient import HTTPError
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from otel_token_relay import Settings, as_service, context, install, use_token
from otel_token_relay.configured_exchange import build_token_source
from otel_token_relay.decisions import DecisionRecorder
from otel_token_relay.exchange.engine import ExchangeEngine
from tests.support.clients import CLIENTS, Client, in_loop, rows
from tests.support.loopback import Status, party, proxy
from tests.support.rejecting_tokens import (
    CONTENT,
    IN_MEMORY,
    INVALID,
    KINDS,
    RETRYING,
    SENDERS,
    Guarded,
    guarded,
    turn_on,
)
from tests.support.token_endpoint import SECRET, Endpoint, verified

ALICE = "alice-has-this-token-0123456789"
BOB = "bob-has-that-token-9876543210"
REPEATED = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")
METHODS = (*REPEATED, "POST", "PATCH")

every_sender = pytest.mark.parametrize("name", SENDERS)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start with an empty cache in a process that has served requests, and allow exchanges more time."""
    build_token_source.cache_clear()
    monkeypatch.setitem(ExchangeEngine.__init__.__kwdefaults__, "timeout", 60.0)
    monkeypatch.setattr(context, "has_served", True)
    yield
    build_token_source.cache_clear()


@pytest.fixture
def billing() -> Iterator[Guarded]:
    with guarded() as server:
        yield server


@contextmanager
def user(value: str) -> Iterator[None]:
    with use_token(verified(value)):
        yield


@every_sender
def test_a_rejected_request_is_sent_once_more(name: str, numbered: Endpoint, billing: Guarded) -> None:
    """A rejected request is repeated once with its complete body if its method and its body allow repetition."""
    turn_on(numbered, billing)
    for method, kind in itertools.product(METHODS, KINDS):
        if method in ("GET", "HEAD", "OPTIONS") and kind != "none":
            continue
        if name == "tornado" and method == "DELETE" and kind not in IN_MEMORY:
            # Tornado does not declare the body as chunked, so the server interprets the body as a second request.
            continue
        billing.seen.clear()
        billing.accepts = lambda token: len(billing.seen) > 1
        with user(f"{ALICE}-{method}-{kind}"):
            answer = SENDERS[name](billing.url, method, kind)

        is_repeated = method in REPEATED and kind in IN_MEMORY
        label = f"{method} {kind}"
        assert answer.status == (200 if is_repeated else 401), label
        assert [seen.method for seen in billing.seen] == [method] * (1 + is_repeated), label
        assert len(set(billing.tokens)) == len(billing.tokens) == 1 + is_repeated, label
        bodies = [seen.body for seen in billing.seen]
        assert len({body.replace(b" ", b"") for body in bodies}) == 1, label
        if kind in ("bytes", "generator"):
            assert bodies[0] == CONTENT, label
        if not is_repeated and method != "HEAD":
            assert answer.body == billing.error_body, label


@pytest.mark.parametrize("name", [name for name in SENDERS if name not in ("urllib", "tornado")])
@pytest.mark.parametrize("is_chunked", [False, True], ids=["with a length", "chunked"])
def test_the_second_request_uses_the_connection_of_the_first(
    name: str, is_chunked: bool, numbered: Endpoint, billing: Guarded
) -> None:
    """The second request uses the same connection, except in urllib and Tornado, which always open a new one."""
    turn_on(numbered, billing)
    billing.is_chunked = is_chunked
    with user(ALICE):
        assert SENDERS[name](billing.url, "PUT", "bytes").status == 200

    assert len(billing.seen) == 2
    assert billing.connections == 1


SHAPES: dict[str, dict[str, Any]] = {
    "chunked": {"is_chunked": True},
    "closing": {"closes": True},
    "closing and chunked": {"closes": True, "is_chunked": True},
    "long": {"error_body": b"x" * 300_000},
    "long and chunked": {"error_body": b"x" * 300_000, "is_chunked": True},
    "empty": {"error_body": b""},
}


@every_sender
def test_any_shape_of_the_first_response_is_put_away(name: str, numbered: Endpoint, billing: Guarded) -> None:
    """After any first response, the connection is reused or closed, or the application gets the complete response."""
    turn_on(numbered, billing)
    for shape, attributes in SHAPES.items():
        for attribute, value in {"is_chunked": False, "closes": False, "error_body": b"no", **attributes}.items():
            setattr(billing, attribute, value)
        billing.seen.clear()
        billing.accepts = lambda token: len(billing.seen) > 1
        with user(f"{ALICE}-{shape.replace(' ', '-')}"):
            answer = SENDERS[name](billing.url, "PUT", "bytes")

        # httpx reads the first response before it requests a token, and keeps a long response.
        is_repeated = not ("httpx" in name and "long" in shape)
        assert answer.status == (200 if is_repeated else 401), shape
        assert answer.body == (CONTENT if is_repeated else billing.error_body), shape
        assert len(billing.seen) == 1 + is_repeated, shape


@every_sender
def test_a_second_rejection_is_the_applications(name: str, numbered: Endpoint, billing: Guarded) -> None:
    """A second rejection is returned to the application, and the token is not renewed again for 30 seconds."""
    turn_on(numbered, billing)
    billing.accepts = lambda token: False
    with user(ALICE):
        answers = [SENDERS[name](billing.url, "GET", "none") for _ in range(4)]

    assert [(answer.status, answer.body) for answer in answers] == [(401, b"rejected")] * 4
    assert len(billing.seen) == 4 + 1
    assert len(numbered.forms) == 2


@every_sender
def test_without_a_new_token_the_application_reads_the_first_response(
    name: str, numbered: Endpoint, billing: Guarded
) -> None:
    """If the exchange fails or returns the same token, the application gets the first response."""
    turn_on(numbered, billing)
    issue = numbered.respond
    for number, outcome in enumerate([(400, {"error": "invalid_grant"}), (500, b""), "same"]):
        numbered.forms.clear()
        billing.seen.clear()
        first: list[Any] = []

        def respond(form: dict[str, str], outcome: Any = outcome, first: list[Any] = first) -> Any:
            if not first:
                first.append(issue(form))
                return first[0]
            return first[0] if outcome == "same" else outcome

        numbered.respond = respond
        billing.accepts = lambda token: False
        with user(f"{ALICE}-{number}"):
            answer = SENDERS[name](billing.url, "GET", "none")

        assert (answer.status, answer.body) == (401, b"rejected")
        assert len(billing.seen) == 1
        assert len(numbered.forms) == 2


@every_sender
@pytest.mark.parametrize(
    "parameters",
    ["", ";required", ";audience=billing", ";audience=billing;retry=off"],
    ids=lambda text: text or "plain",
)
def test_other_requests_are_not_repeated(name: str, parameters: str, numbered: Endpoint, billing: Guarded) -> None:
    """A request is repeated only if its token was exchanged and its entry has ;retry=idempotent."""
    turn_on(numbered, billing, parameters)
    billing.accepts = lambda token: False
    with user(ALICE):
        assert SENDERS[name](billing.url, "GET", "none").status == 401

    assert len(billing.seen) == 1


def test_a_relayed_token_is_not_retried_beside_a_destination_that_is(numbered: Endpoint, billing: Guarded) -> None:
    """The retry parameter applies only to its own entry."""
    with guarded() as plain:
        install(
            Settings(
                destinations=(billing.url + RETRYING, plain.url),
                token_endpoint=numbered.url,
                client_id="user-service",
                client_secret=SECRET,
            )
        )
        for name, send in SENDERS.items():
            plain.seen.clear()
            with user(f"{ALICE}-{name}"):
                assert send(plain.url, "GET", "none").status == 401
            assert plain.tokens == [f"{ALICE}-{name}"], name


@every_sender
def test_a_token_of_the_services_own_is_renewed(name: str, numbered: Endpoint, billing: Guarded) -> None:
    """The service's own token is renewed in the same way as a user's token."""
    turn_on(numbered, billing, RETRYING + ";without-user=client")
    with as_service():
        assert SENDERS[name](billing.url, "GET", "none").status == 200

    assert billing.tokens == ["service.1", "service.2"]


@every_sender
def test_nothing_is_sent_again_after_the_request_has_ended(name: str, numbered: Endpoint, billing: Guarded) -> None:
    """A request is not repeated if its lease ends during the renewal."""
    turn_on(numbered, billing)
    with use_token(verified(ALICE)) as token:
        assert token is not None
        issue = numbered.respond

        def respond(form: dict[str, str]) -> Any:
            if len(numbered.forms) > 1:
                assert token.lease is not None
                token.lease.end()
            return issue(form)

        numbered.respond = respond
        answer = SENDERS[name](billing.url, "GET", "none")

    assert (answer.status, answer.body) == (401, b"rejected")
    assert len(billing.seen) == 1


def repeat(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run *work* in *count* threads, each in a copy of the current context, and return the results."""
    contexts = [contextvars.copy_context() for _ in range(count)]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda number: contexts[number].run(work, number), range(count)))


def test_many_threads_share_one_exchange(numbered: Endpoint, billing: Guarded) -> None:
    """Requests whose token is rejected at the same time share one exchange and succeed."""
    turn_on(numbered, billing)
    together = threading.Barrier(8)
    billing.before = lambda token: together.wait(30) if token.endswith(".1") and len(billing.seen) < 8 else None  # type: ignore[assignment,return-value]
    with user(ALICE):
        answers = repeat(8, lambda _: requests.get(billing.url, timeout=30).status_code)

    assert answers == [200] * 8
    assert len(numbered.forms) == 2
    assert billing.tokens == [f"{ALICE}.1"] * 8 + [f"{ALICE}.2"] * 8


def test_two_users_do_not_share_a_token(numbered: Endpoint, billing: Guarded) -> None:
    """Each user's rejected token is replaced by a token for that user."""
    turn_on(numbered, billing)
    billing.accepts = lambda token: int(token.rpartition(".")[2]) > 2
    together, numbers = threading.Barrier(2), itertools.count()
    billing.before = lambda token: together.wait(30) if next(numbers) < 2 else None  # type: ignore[assignment,return-value]

    def call(number: int) -> str:
        with user((ALICE, BOB)[number]):
            assert requests.get(billing.url, timeout=30).status_code == 200
        return ""

    repeat(2, call)

    owners = [token.rpartition(".")[0] for token in billing.tokens]
    assert sorted(owners) == sorted([ALICE, BOB] * 2)
    assert len(set(billing.tokens)) == 4


@pytest.mark.parametrize("limit", [2, 100])
@pytest.mark.parametrize("library", ["httpx", "aiohttp", "tornado"])
def test_many_tasks_share_one_exchange(library: str, limit: int, numbered: Endpoint, billing: Guarded) -> None:
    """Tasks that wait for a renewal do not block the connection of the task that renews the token."""
    turn_on(numbered, billing)

    async def run() -> list[int]:
        if library == "httpx":
            async with httpx.AsyncClient(limits=httpx.Limits(max_connections=limit), timeout=30) as client:
                responses = await asyncio.gather(*(client.get(billing.url) for _ in range(12)))
                return [response.status_code for response in responses]
        if library == "tornado":
            fetcher = SimpleAsyncHTTPClient(force_instance=True, max_clients=limit)
            found = await asyncio.gather(*(fetcher.fetch(billing.url, raise_error=False) for _ in range(12)))
            fetcher.close()
            return [response.code for response in found]
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=limit)) as session:

            async def get() -> int:
                async with session.get(billing.url) as response:
                    await response.read()
                    return response.status

            return list(await asyncio.gather(*(get() for _ in range(12))))

    with user(ALICE):
        assert in_loop(run()) == [200] * 12

    assert len(numbered.forms) == 2
    assert set(billing.tokens) == {f"{ALICE}.1", f"{ALICE}.2"}


def test_the_load_on_a_destination_that_rejects_every_token_grows_by_one_request(
    numbered: Endpoint, billing: Guarded
) -> None:
    """A destination that rejects every token receives one additional request, regardless of how many were rejected."""
    turn_on(numbered, billing)
    billing.accepts = lambda token: False
    with user(ALICE):
        assert (
            repeat(8, lambda _: [requests.get(billing.url, timeout=30).status_code for _ in range(5)])
            == [[401] * 5] * 8
        )

    assert len(billing.seen) == 8 * 5 + 1
    assert len(numbered.forms) == 2


def test_a_canceled_task_ends_the_trial_and_frees_its_connection(numbered: Endpoint, billing: Guarded) -> None:
    """Canceling a task during a renewal ends the trial for waiting requests and frees the connection."""
    turn_on(numbered, billing)
    is_asked, may_issue = threading.Event(), threading.Event()
    issue = numbered.respond

    def respond(form: dict[str, str]) -> Any:
        if len(numbered.forms) == 2:
            is_asked.set()
            may_issue.wait(30)
        return issue(form)

    numbered.respond = respond

    async def run(open_client: Callable[[], Any]) -> None:
        async with open_client() as client:
            task = asyncio.ensure_future(client.get(billing.url))
            await asyncio.to_thread(is_asked.wait, 30)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            may_issue.set()
            response = await client.get(billing.url)  # the only connection is free
            assert getattr(response, "status_code", None) or response.status
            if isinstance(response, aiohttp.ClientResponse):
                response.release()

    clients: list[Callable[[], Any]] = [
        lambda: httpx.AsyncClient(limits=httpx.Limits(max_connections=1), timeout=30),
        lambda: aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)),
    ]
    for number, open_client in enumerate(clients):
        numbered.forms.clear()
        is_asked.clear()
        may_issue.clear()
        with user(f"{ALICE}-{number}"):
            in_loop(run(open_client))


def test_urllib3s_own_retries_count_as_for_one_request(numbered: Endpoint, billing: Guarded) -> None:
    """Retries of urllib3 see only the second response."""
    turn_on(numbered, billing)
    retries = urllib3.Retry(total=2, status_forcelist=[401], allowed_methods=None, backoff_factor=0)
    with user(ALICE), urllib3.PoolManager() as pools:
        response = pools.request("GET", billing.url, retries=retries)
        assert response.status == 200
        assert response.retries is not None
        assert response.retries.total == 2
        assert response.retries.history == ()
    billing.accepts = lambda token: False
    with user(BOB), urllib3.PoolManager() as pools, pytest.raises(urllib3.exceptions.MaxRetryError):
        pools.request("GET", billing.url, retries=retries)
    assert len([token for token in billing.tokens if token.startswith(BOB)]) == 3 + 1


def test_hooks_are_called_as_for_one_request(numbered: Endpoint, billing: Guarded) -> None:
    """Hooks and callbacks of httpx, requests, and Tornado are called once for both requests."""
    turn_on(numbered, billing)
    calls: list[object] = []

    def note(argument: Any, **_: object) -> None:
        calls.append(getattr(argument, "status_code", "request"))

    with user(f"{ALICE}-1"), httpx.Client(event_hooks={"request": [note], "response": [note]}) as client:
        client.get(billing.url)
    with user(f"{ALICE}-2"):
        billing.accepts = lambda token: len(billing.seen) != 3
        requests.get(billing.url, hooks={"response": note}, timeout=10)
    assert calls == ["request", 200, 200]

    async def fetch() -> None:
        client = SimpleAsyncHTTPClient(force_instance=True)
        lines: list[str] = []
        parts: list[bytes] = []
        response = await client.fetch(
            billing.url, method="PUT", body="all of it", header_callback=lines.append, streaming_callback=parts.append
        )
        client.close()
        assert response.code == 200
        assert response.effective_url == billing.url
        assert b"".join(parts) == b"all of it"
        assert [line for line in lines if line.startswith("HTTP/")] == ["HTTP/1.1 200 OK\r\n"]

    billing.accepts = lambda token: len(billing.seen) > 5
    with user(f"{ALICE}-3"):
        in_loop(fetch())
    assert len(billing.seen) == 6


def test_a_raising_hook_does_not_repeat_the_request(numbered: Endpoint, billing: Guarded) -> None:
    """A hook that raises an exception runs once, after the second response."""
    turn_on(numbered, billing)

    def fail(response: Any) -> None:
        raise RuntimeError("hook")

    with user(ALICE), httpx.Client(event_hooks={"response": [fail]}) as client, pytest.raises(RuntimeError):
        client.get(billing.url)
    assert len(billing.seen) == 2


def test_a_streamed_response_is_the_second_one(numbered: Endpoint, billing: Guarded) -> None:
    """If a response is streamed, the application gets the second response and reads its body as needed."""
    turn_on(numbered, billing)
    billing.accepts = lambda token: len(billing.seen) % 2 == 0
    with user(f"{ALICE}-1"), httpx.stream("PUT", billing.url, content=CONTENT) as response:
        assert b"".join(response.iter_raw()) == CONTENT
    with user(f"{ALICE}-2"), requests.put(billing.url, data=CONTENT, stream=True, timeout=10) as streamed:
        assert b"".join(streamed.iter_content(3)) == CONTENT
    assert len(billing.seen) == 4


def test_a_mock_transport_sees_both_requests(numbered: Endpoint, billing: Guarded) -> None:
    """A transport without a connection pool receives both requests."""
    turn_on(numbered, billing)
    seen: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["Authorization"])
        return httpx.Response(200 if len(seen) % 2 == 0 else 401, headers={"WWW-Authenticate": INVALID}, text="body")

    async def run() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as client:
            assert (await client.get(billing.url)).status_code == 200

    with user(f"{ALICE}-1"), httpx.Client(transport=httpx.MockTransport(handle)) as client:
        assert client.get(billing.url).status_code == 200
    with user(f"{ALICE}-2"):
        in_loop(run())
    assert len(set(seen)) == 4


def challenge(claims: object) -> str:
    encoded = base64.b64encode(json.dumps(claims).encode()).decode()
    return f'Bearer realm="", authorization_uri="https://a/authorize", error="insufficient_claims", claims="{encoded}"'


@every_sender
def test_a_claims_challenge_goes_into_the_new_exchange(name: str, numbered: Endpoint, billing: Guarded) -> None:
    """A claims challenge is added to the new exchange in Entra's on-behalf-of flow and for client credentials."""
    claims = {"access_token": {"acrs": {"essential": True, "value": "cp1"}}}
    parameters = ";audience=api://billing;grant=on-behalf-of;retry=idempotent;without-user=client"
    turn_on(numbered, billing, parameters)
    billing.challenges = ["Basic", challenge(claims)]
    with user(ALICE):
        assert SENDERS[name](billing.url, "GET", "none").status == 200
    billing.accepts = lambda token: token.endswith(".4")
    with as_service():
        assert SENDERS[name](billing.url, "GET", "none").status == 200

    asked = [json.loads(form["claims"]) if "claims" in form else None for form in numbered.forms]
    assert asked == [None, claims, None, claims]


def test_other_grants_do_not_send_claims(numbered: Endpoint, billing: Guarded) -> None:
    """RFC 8693 has no parameter for claims, so a claims challenge does not cause a new exchange."""
    turn_on(numbered, billing)
    billing.challenges = [challenge({"access_token": {}})]
    with user(ALICE):
        assert requests.get(billing.url, timeout=10).status_code == 401
    assert len(billing.seen) == len(numbered.forms) == 1
    billing.challenges = [challenge({"access_token": {}}).replace("insufficient_claims", "invalid_token")]
    with user(ALICE):
        assert requests.get(billing.url, timeout=10).status_code == 200
    assert [form.get("claims") for form in numbered.forms] == [None, None]


def test_both_hops_are_on_record(numbered: Endpoint, billing: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both hops are recorded as separate decisions in the span."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    recorded: list[str] = []
    record = DecisionRecorder.record

    def counting(self: Any, reason: Any, *args: Any, **kwargs: Any) -> None:
        recorded.append(f"{reason} {args[-1]}")
        record(self, reason, *args, **kwargs)

    monkeypatch.setattr(DecisionRecorder, "record", counting)
    turn_on(numbered, billing, RETRYING + ";expect=x")
    for number, (name, send) in enumerate(SENDERS.items()):
        billing.accepts = lambda token, last=2 * number + 2: token.endswith(f".{last}")  # type: ignore[misc]
        recorded.clear()
        with user(f"{ALICE}-{name}"), tracer.start_as_current_span("GET", kind=trace.SpanKind.CLIENT):
            assert send(billing.url, "GET", "none").status == 200, name
        assert recorded in (["exchanged miss"] * 2, ["exchanged hit", "exchanged miss"]), name
        (span,) = exporter.get_finished_spans()
        exporter.clear()
        assert span.attributes is not None
        assert span.attributes["token_relay.decision"] == "exchanged"
        assert span.attributes["token_relay.exchange.result"] == "miss"


@rows([client for client in CLIENTS if client.protocol == "http" and client.proxies != "none"])
@pytest.mark.parametrize("tls", [False, True], ids=["forward", "tunnel"])
def test_a_request_through_a_proxy_is_sent_again_through_it(client: Client, tls: bool, numbered: Endpoint) -> None:
    """Through a proxy, the destination gets both tokens, and a CONNECT request carries none."""
    with party(tls=tls) as destination, proxy() as way:
        turn_on(numbered, destination)
        destination.answers.append(Status(401, (("WWW-Authenticate", INVALID),)))
        with user(ALICE):
            answer = client.call(destination.url, proxy=way.url)

        assert answer.status == 200
        assert destination.lines() == [[f"Bearer {ALICE}.1"], [f"Bearer {ALICE}.2"]]
        assert not [request for request in way.requests if request.method == "CONNECT" and ALICE in str(request)]


@every_sender
def test_a_server_that_closes_its_connections_loses_no_request(name: str, numbered: Endpoint, billing: Guarded) -> None:
    """A request is repeated even if the server closes a connection that it has promised to keep."""
    turn_on(numbered, billing)
    billing.hangs_up = True
    with user(ALICE):
        assert SENDERS[name](billing.url, "PUT", "bytes") == (200, CONTENT)

    assert len(billing.seen) == 2


def test_a_failed_second_request_frees_the_others(numbered: Endpoint, billing: Guarded) -> None:
    """If the second request fails, the application gets the error, and other requests do not wait."""
    turn_on(numbered, billing)
    firsts: dict[str, str] = {}

    def hang_up(token: str) -> None:
        if firsts.setdefault(token.rpartition(".")[0], token) != token:
            raise ConnectionResetError

    for name in ("requests", "httpx", "urllib", "aiohttp", "tornado"):
        billing.before = hang_up
        count = len(numbered.forms)
        with user(f"{ALICE}-{name}"):
            with pytest.raises((OSError, httpx.HTTPError, aiohttp.ClientError, HTTPError)):
                SENDERS[name](billing.url, "PUT", "bytes")
            billing.before = lambda token: None
            SENDERS[name](billing.url, "PUT", "bytes")
        assert len(numbered.forms) == count + 2, name
