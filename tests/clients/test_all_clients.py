"""The client hooks are innermost in every startup order, reversible, and invisible to telemetry."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import traceback
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import aiohttp
import aiohttp.web
import grpc
import grpc.aio
import httpx
import httpx2
import pytest
import tornado.simple_httpclient
import urllib3
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_token_relay import Settings, install, uninstall, use_token
from otel_token_relay.testing import assert_never_leaked
from tests.support.clients import CLIENTS, Client, every_client, every_redirected_client
from tests.support.loopback import Party, grpc_party

TOKEN = "clients-sample-token"
LINE = [f"Bearer {TOKEN}"]


@contextmanager
def taking_turns(client: Client, provider: TracerProvider, url: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that runs one step of a startup order, and undo all steps at the end."""
    instrumentor = client.instrumentor()
    steps: dict[str, Callable[[], object]] = {
        "install": lambda: install(Settings(destinations=[url])),
        "uninstall": uninstall,
        "instrument": lambda: instrumentor.instrument(tracer_provider=provider),
        "uninstrument": instrumentor.uninstrument,
    }
    try:
        yield lambda name: steps[name]()
    finally:
        if instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.uninstrument()


ORDERS = [
    "install instrument",
    "instrument install",
    "instrument install uninstrument instrument",
    "install instrument uninstrument",
    "instrument install uninstall install",
    "install instrument uninstall",
    "instrument install uninstall uninstrument instrument",
]


@pytest.mark.parametrize(
    ("client", "order"),
    [
        pytest.param(client, order, id=f"{client.name}-{order}")
        for client in CLIENTS
        for order in ORDERS
        if client.uninstruments_alone or "instrument install uninstrument" not in order
    ],
)
def test_our_wrapper_is_innermost_in_every_order(
    client: Client, order: str, one: Party, telemetry: tuple[TracerProvider, InMemorySpanExporter]
) -> None:
    """In every startup order, the token is relayed only while the relay is installed, and no span contains it."""
    provider, exporter = telemetry
    with taking_turns(client, provider, one.url) as step:
        installed = instrumented = False
        for name in order.split():
            step(name)
            installed = {"install": True, "uninstall": False}.get(name, installed)
            instrumented = {"instrument": True, "uninstrument": False}.get(name, instrumented)
        with use_token(TOKEN):
            client.call(one.url)

    assert one.lines() == [LINE if installed else []]
    spans = exporter.get_finished_spans()
    assert len(spans) == instrumented
    assert_never_leaked(TOKEN, spans)
    if instrumented and client.name.startswith("httpx"):
        assert any(name.startswith("http.request.header.") for name in spans[0].attributes or {})


@every_redirected_client
def test_no_span_of_a_redirect_contains_the_token(
    client: Client, one: Party, telemetry: tuple[TracerProvider, InMemorySpanExporter]
) -> None:
    """A redirect's second hop carries the token, but no span of either hop contains the token."""
    provider, exporter = telemetry
    with taking_turns(client, provider, one.url) as step:
        step("instrument")
        step("install")
        with use_token(TOKEN):
            client.call(one.redirecting_to(f"{one.url}/last"))

    assert one.lines() == [LINE] * len(one.lines())
    assert len(one.lines()) == 2
    assert exporter.get_finished_spans()
    assert_never_leaked(TOKEN, exporter.get_finished_spans())


METHODS = [
    (httpx.HTTPTransport, "handle_request"),
    (httpx.AsyncHTTPTransport, "handle_async_request"),
    (httpx.MockTransport, "handle_request"),
    (httpx.MockTransport, "handle_async_request"),
    (httpx.ASGITransport, "handle_async_request"),
    (httpx.WSGITransport, "handle_request"),
    (httpx.Client, "_transport_for_url"),
    (httpx.AsyncClient, "_transport_for_url"),
    (httpx2.HTTPTransport, "handle_request"),
    (httpx2.AsyncHTTPTransport, "handle_async_request"),
    (urllib3.HTTPConnectionPool, "_make_request"),
    (urllib.request.AbstractHTTPHandler, "do_open"),
    (aiohttp.ClientRequest, "send"),
    (aiohttp.ClientRequest, "_on_headers_request_sent"),
    (tornado.simple_httpclient.SimpleAsyncHTTPClient, "fetch_impl"),
    (tornado.simple_httpclient._HTTPConnection, "run"),
    (tornado.simple_httpclient._HTTPConnection, "_create_connection"),
    *[(module, name) for module in (grpc, grpc.aio) for name in ("insecure_channel", "secure_channel")],
]


def test_uninstall_restores_the_methods() -> None:
    """After two rounds of installing and uninstalling, each class has its original methods."""
    before = [vars(owner)[name] for owner, name in METHODS]
    for _ in range(2):
        install(Settings(destinations=["http://127.0.0.1"]))
        hooked = [vars(owner)[name] for owner, name in METHODS]
        uninstall()

        assert [vars(owner)[name] for owner, name in METHODS] == before
        assert not any(a is b for a, b in zip(hooked, before, strict=True))


@every_client
def test_new_settings_take_effect(client: Client, one: Party) -> None:
    """Installing new settings takes effect immediately, including for open sessions.

    An open session no longer relays tokens if the hook is part of the session.
    """
    install(Settings(destinations=[one.url]))
    with client.reusing(one.url) as send, use_token(TOKEN):
        send()
        install(Settings(destinations=["http://elsewhere.example"]))
        send()
        install(Settings(destinations=[one.url], header="Txn-Token"))
        send()
        uninstall()
        send()

    assert one.lines() == [LINE, [], [], []]
    assert one.lines("txn-token") == [[], [], [] if client.hooks_sessions else [TOKEN], []]


@every_client
def test_a_session_opened_before_the_installation_relays(client: Client, one: Party) -> None:
    """A session that was opened before installation relays tokens, unless the hook is part of the session."""
    with client.reusing(one.url) as send:
        install(Settings(destinations=[one.url]))
        with use_token(TOKEN):
            send()

    assert one.lines() == [[] if client.hooks_sessions else LINE]


def test_a_wrapper_inside_a_plain_wrapper_becomes_inert(one: Party, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook that another library's plain wrapper calls remains in place after uninstalling and does nothing."""
    owner, name = urllib3.HTTPConnectionPool, "_make_request"
    monkeypatch.setattr(owner, name, vars(owner)[name])  # register the original method to be restored after the test
    install(Settings(destinations=[one.url]))
    ours = vars(owner)[name]

    def theirs(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    setattr(owner, name, theirs)
    with use_token(TOKEN), urllib3.PoolManager() as manager:
        for step in (None, uninstall, lambda: install(Settings(destinations=[one.url])), uninstall):
            if step is not None:
                step()
            manager.request("GET", one.url)

    assert vars(owner)[name] is theirs
    assert one.lines() == [LINE, [], LINE, []]


@contextmanager
def hanging_up() -> Iterator[str]:
    """Yield the URL of a server that closes every connection after reading the first byte."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(1)

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def _frames(error: BaseException | None, seen: set[int]) -> Iterator[FrameType]:
    """Yield the frames of an exception, its causes, and its contexts."""
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    yield from (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    yield from _frames(error.__cause__, seen)
    yield from _frames(error.__context__, seen)


@every_client
def test_no_local_variable_of_the_package_contains_the_token_when_a_request_fails(client: Client) -> None:
    """No local variable of a package frame contains the token when a request fails."""
    with hanging_up() as url:
        install(Settings(destinations=[url]))
        with use_token(TOKEN), pytest.raises(Exception) as failure:  # noqa: PT011  # each client raises its own type
            client.call(url)

    ours = [f for f in _frames(failure.value, set()) if f.f_globals.get("__name__", "").startswith("otel_token_relay")]
    assert bool(ours) == client.sees_failures
    for frame in ours:
        assert_never_leaked(TOKEN, *_shown(frame))


def _shown(frame: FrameType) -> Iterator[str]:
    """Yield what an error tracker sends for a frame: the variables and the values in collections, as text."""
    for value in frame.f_locals.values():
        yield f"{value!r} {value!s}"
        if isinstance(value, Mapping):
            yield from (f"{key!r} {inner!r} {inner!s}" for key, inner in value.items())
        elif isinstance(value, (list, tuple, set, frozenset)):
            yield from (f"{inner!r} {inner!s}" for inner in value)


class _Watching(list[bytes]):
    """A request body that inspects the active frames while it is sent, as an error tracker does."""

    def __init__(self) -> None:
        super().__init__([b"one", b"two"])
        self.frames = 0
        self.shown: list[str] = []

    def __iter__(self) -> Iterator[bytes]:
        for chunk in super().__iter__():
            self.look()
            yield chunk

    def look(self) -> None:
        frame = sys._getframe()
        while (back := frame.f_back) is not None:
            frame = back
            if frame.f_globals.get("__name__", "").startswith("otel_token_relay"):
                self.frames += 1
                self.shown += _shown(frame)


@every_client
def test_no_local_variable_of_the_package_contains_the_token_while_a_request_is_sent(
    client: Client, one: Party
) -> None:
    """No local variable of a package frame contains the token while a request is being sent."""
    install(Settings(destinations=[one.url]))
    watching = _Watching()
    with use_token(TOKEN):
        client.call(one.url, method="POST", body=watching)

    # gRPC and older versions of aiohttp send the body in a different thread or task.
    assert watching.frames or client.name in ("aiohttp", "grpc", "grpc-aio")
    assert_never_leaked(TOKEN, *watching.shown)


@pytest.mark.parametrize("wait_for_ready", [None, True])
def test_no_local_variable_contains_the_token_while_a_grpc_call_is_made(wait_for_ready: bool | None) -> None:
    """No local variable contains the token while gRPC serializes a request below the interceptor."""
    watching = _Watching()

    def serialize(request: bytes) -> bytes:
        watching.look()
        return request

    with grpc_party() as one, grpc_channel(one) as channel, use_token(TOKEN):
        send = channel.unary_unary("/tests.Party/call", request_serializer=serialize)
        send(b"", timeout=10, wait_for_ready=wait_for_ready)
        assert one.lines() == [LINE]

    assert watching.frames
    assert_never_leaked(TOKEN, *watching.shown)


@contextmanager
def grpc_channel(one: Party) -> Iterator[Any]:
    install(Settings(destinations=[one.url]))
    with grpc.insecure_channel(one.url.removeprefix("http://")) as channel:
        yield channel


def test_no_local_variable_contains_the_token_when_a_grpc_aio_call_fails() -> None:
    """No local variable contains the token when gRPC raises an error below the interceptor."""

    async def call(target: str) -> None:
        async with grpc.aio.insecure_channel(target) as channel:
            await channel.unary_unary("/tests.Party/call")(b"", timeout="soon")  # type: ignore[arg-type]

    with grpc_party() as one:
        install(Settings(destinations=[one.url]))
        with use_token(TOKEN), pytest.raises(TypeError) as failure:
            asyncio.run(call(one.url.removeprefix("http://")))

    ours = [f for f in _frames(failure.value, set()) if f.f_globals.get("__name__", "").startswith("otel_token_relay")]
    # An earlier test's instrumentation might have left a second interceptor, which receives the metadata.
    assert_never_leaked(TOKEN, *_shown(ours[0]))
