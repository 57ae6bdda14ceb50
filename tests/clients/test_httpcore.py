"""Tests for httpcore's connections; `tests/attacks/test_h09_decided_before_the_queue.py` tests the queue."""

from __future__ import annotations

import copy
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import httpcore
import httpcore2
import httpx
import httpx2
import pytest

import otel_token_relay.runtime
from otel_token_relay import Reason, Settings, install, use_token
from otel_token_relay.clients import httpcore as adapter
from otel_token_relay.installation import hook_states
from otel_token_relay.patching import Patches
from otel_token_relay.runtime import Runtime
from tests.support.clients import in_loop
from tests.support.loopback import Party, Proxy, trust

TOKEN = "httpcore-sample-token"
LINE = [f"Bearer {TOKEN}"]

every_httpx = pytest.mark.parametrize("module", [httpx, httpx2], ids=["httpx", "httpx2"])
every_form = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


def get(module: ModuleType, is_async: bool, url: str, *, transport: Any = None, via: str | None = None, **options: Any):
    """Send one request with a new client."""
    method = options.pop("method", "GET")
    settings = {"trust_env": False, "verify": trust(), "transport": transport, "proxy": via}
    if not is_async:
        with module.Client(**settings) as client:
            return client.request(method, url, **options)

    async def run() -> Any:
        async with module.AsyncClient(**settings) as client:
            return await client.request(method, url, **options)

    return in_loop(run())


def recorded() -> list[Reason]:
    """Return a list that collects the reason for each recorded decision."""
    runtime = otel_token_relay.runtime.installed
    assert runtime is not None
    reasons: list[Reason] = []
    record = runtime.relay._record

    def observed(reason: Reason, *args: Any, **kwargs: Any) -> None:
        reasons.append(reason)
        record(reason, *args, **kwargs)

    runtime.relay._record = observed  # type: ignore[method-assign]
    return reasons


@every_httpx
@every_form
def test_a_hop_is_recorded_once(module: ModuleType, is_async: bool, listed: Party, unlisted: Party) -> None:
    """Each hop is recorded once, whether or not the token is relayed."""
    reasons = recorded()
    with use_token(TOKEN):
        get(module, is_async, listed.url)
        get(module, is_async, unlisted.url)
        get(module, is_async, listed.url, headers={"Authorization": "Own a"})

    assert listed.lines() == [LINE, ["Own a"]]
    assert reasons == [Reason.RELAYED, Reason.DESTINATION_NOT_LISTED, Reason.EXPLICIT_CREDENTIAL]


@every_httpx
@every_form
def test_a_request_without_a_connection_is_not_a_hop(module: ModuleType, is_async: bool) -> None:
    """A request that cannot connect records no decision, because nothing is sent."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        install(Settings(destinations=[url]))
        reasons = recorded()
        with use_token(TOKEN), pytest.raises(module.ConnectError):
            get(module, is_async, url)

    assert reasons == []


@contextmanager
def hanging_up() -> Iterator[str]:
    """Run a server that reads a request and then closes the connection."""

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


@every_httpx
@every_form
@pytest.mark.parametrize("is_hooked", [True, False], ids=["hooked", "not hooked"])
def test_a_request_that_fails_after_it_was_sent_is_a_hop(
    module: ModuleType, is_async: bool, is_hooked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that fails after it was sent records its decision, even if the connection is not hooked."""
    if not is_hooked:
        change_the_method(monkeypatch)
    with hanging_up() as url:
        install(Settings(destinations=[url]))
        reasons = recorded()
        with use_token(TOKEN), pytest.raises(module.RemoteProtocolError):
            get(module, is_async, url)

    assert reasons == [Reason.RELAYED]


def change_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the hook expect different parameters, as if httpcore had changed."""
    monkeypatch.setattr(adapter, "_CONNECTIONS", dict.fromkeys(adapter._CONNECTIONS, ("self", "other")))


@every_httpx
@every_form
def test_another_version_of_httpcore_relays_as_decided_before_the_queue(
    module: ModuleType, is_async: bool, one: Party, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If httpcore cannot be hooked, the token is still relayed, and the log names the unhooked module."""
    change_the_method(monkeypatch)
    install(Settings(destinations=[one.url]))
    reasons = recorded()
    with use_token(TOKEN):
        get(module, is_async, one.url)

    name = f"{module.__name__.replace('x', 'core')}.{'_async' if is_async else '_sync'}.http11"
    assert one.lines() == [LINE]
    assert reasons == [Reason.RELAYED]
    assert "unexpected parameters" in hook_states()[name]
    assert any(name in record.getMessage() for record in caplog.records)


def test_a_module_without_a_connection_class_cannot_be_hooked() -> None:
    """Hooking a module without a connection class raises an error."""
    with pytest.raises(AttributeError, match="none of the connection classes"):
        adapter.patch(ModuleType("httpcore._sync.http11"), Runtime(Settings()), Patches())


@every_httpx
@every_form
def test_a_pool_of_the_application_gets_the_token_and_is_recorded(
    module: ModuleType, is_async: bool, listed: Party
) -> None:
    """A custom pool gets the token, and the decision is recorded although httpcore's connections are not used."""
    core = httpcore if module is httpx else httpcore2
    seen: list[Any] = []

    class Pool:
        def handle_request(self, request: Any) -> Any:
            seen.extend(value for name, value in request.headers if name.lower() == b"authorization")
            return core.Response(200)

        async def handle_async_request(self, request: Any) -> Any:
            return self.handle_request(request)

        def close(self) -> None:
            pass

        async def aclose(self) -> None:
            pass

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        async def __aenter__(self) -> Any:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

    transport = module.AsyncHTTPTransport() if is_async else module.HTTPTransport()
    transport._pool = Pool()
    reasons = recorded()
    with use_token(TOKEN):
        assert get(module, is_async, listed.url, transport=transport).status_code == 200

    assert seen == [LINE[0].encode()]
    assert reasons == [Reason.RELAYED]


@every_httpx
@every_form
def test_extensions_do_not_show_the_token(module: ModuleType, is_async: bool, listed: Party) -> None:
    """The request's extensions do not print the token, and the application sees its own extensions."""
    told: list[dict[str, Any]] = []

    def tell(name: str, info: dict[str, Any]) -> None:
        if name.endswith("send_request_headers.started"):
            told.append(info["request"].extensions)

    async def tell_async(name: str, info: dict[str, Any]) -> None:
        tell(name, info)

    extensions = {"trace": tell_async if is_async else tell}
    with use_token(TOKEN):
        response = get(module, is_async, listed.url, extensions=extensions)

    assert listed.lines() == [LINE]
    assert set(response.request.extensions) == {"timeout", "trace"}
    assert set(extensions) == {"trace"}
    assert adapter.HOP not in response.extensions
    (shown,) = told
    assert set(shown) == {"timeout", "trace", adapter.HOP}
    assert TOKEN not in repr(shown)
    assert copy.deepcopy(shown)[adapter.HOP] is shown[adapter.HOP]


@pytest.mark.parametrize("module", [httpcore, httpcore2], ids=["httpcore", "httpcore2"])
def test_requests_of_the_application_are_not_changed(module: ModuleType, listed: Party) -> None:
    """A request that is sent directly with httpcore carries no token and is not recorded."""
    reasons = recorded()
    with use_token(TOKEN), module.ConnectionPool() as pool:
        pool.request("GET", listed.url)
        pool.request("GET", listed.url, headers={"Authorization": "Own a"})

    assert listed.lines() == [[], ["Own a"]]
    assert reasons == []


@every_httpx
@every_form
def test_a_connect_request_of_the_application_carries_no_token(
    module: ModuleType, is_async: bool, between: Proxy
) -> None:
    """A CONNECT request that the application sends itself to a proxy carries no token."""
    install(Settings(destinations=[between.url]))
    reasons = recorded()
    with use_token(TOKEN), pytest.raises(module.HTTPError):
        get(module, is_async, between.url, method="CONNECT")

    assert not any(request.header_lines("authorization") for request in between.requests)
    assert reasons == [Reason.DESTINATION_UNKNOWN]
