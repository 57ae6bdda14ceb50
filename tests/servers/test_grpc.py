"""Behavior of the gRPC boundary that HTTP servers do not have."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

from otel_token_relay.stream_limits import seconds_left
from tests.support.apps import NONE
from tests.support.enforcement import application_reached, bearer, settings_for
from tests.support.issuers import Issuer
from tests.support.protected_servers import KINDS, ROWS, installed, reached, serve_grpc, serve_grpc_aio
from tests.support.servers import SERVERS, GrpcServed, Server, served
from tests.support.telemetry import recording

A, B = "token-of-a", "token-of-b"

pytestmark = pytest.mark.usefixtures("forget")

GRPC_SERVERS = [server for server in SERVERS if server.reach is GrpcServed]
every_grpc_server = pytest.mark.parametrize("server", GRPC_SERVERS, ids=lambda server: server.name)


@every_grpc_server
def test_streams_are_read_and_produced_with_the_token_of_their_call(server: Server) -> None:
    """The call's token is bound while each message of a stream is read or produced."""
    with served(server) as one, one.connection() as connection:
        for token in (A, None, B):
            assert connection.call("/upload", token).text.split() == [token or NONE] * 3
            assert connection.call("/stream", token).text.split() == [token or NONE] * 3


@every_grpc_server
def test_two_authorization_entries_are_ambiguous(server: Server) -> None:
    """Two `authorization` entries bind no token, because using the last one could serve A's call with B's token."""
    entries = [("authorization", f"Bearer {A}"), ("authorization", f"Bearer {B}")]
    with served(server) as one:
        assert one.get("/token", headers=entries).text == NONE
        assert one.get("/token", B).text == B


GRPC_ROWS = [row for row in ROWS if row.startswith("gRPC")]
every_row = pytest.mark.parametrize("row", GRPC_ROWS)
HEALTH = "/grpc.health.v1.Health/Check"


def call(channel: grpc.Channel, method: str, kind: str, token: bytes | None) -> Any:
    requests: Any = iter([b"", b""]) if kind.startswith("stream") else b""
    metadata = [] if token is None else [("authorization", token.decode().strip())]
    answered = getattr(channel, kind)(method)(requests, metadata=metadata, timeout=20)
    return answered if isinstance(answered, bytes) else b"".join(answered)


@every_row
def test_all_four_kinds_of_method_are_rejected(issuer: Issuer, row: str) -> None:
    """All four kinds of methods are rejected with UNAUTHENTICATED and a challenge before they run."""
    with ROWS[row](settings_for(issuer), None) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        for kind in KINDS:
            method = f"/tests.Profiles/{kind}"
            for token, details, challenge in (
                (None, "unauthenticated", 'Bearer realm="api"'),
                (bearer(issuer, exp=1), "invalid_token", 'Bearer realm="api", error="invalid_token"'),
            ):
                with pytest.raises(grpc.RpcError) as refused:
                    call(channel, method, kind, token)
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
                assert refused.value.details() == details
                assert dict(refused.value.trailing_metadata()) == {"www-authenticate": challenge}
            assert reached == []
            assert b'"claims": "alice"' in call(channel, method, kind, bearer(issuer))
            reached.clear()


@every_row
def test_a_method_is_excluded_by_its_full_name(issuer: Issuer, row: str) -> None:
    """A method, such as a health check, is excluded only by its full name."""
    settings = settings_for(issuer, verify_exclude=(HEALTH,))
    with ROWS[row](settings, None) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        assert b'"claims": null' in call(channel, HEALTH, "unary_unary", None)
        for method in ("/grpc.health.v1.Health/Watch", HEALTH + "/", HEALTH.lower(), "/" + HEALTH):
            with pytest.raises(grpc.RpcError) as refused:
                call(channel, method, "unary_unary", None)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


@every_row
def test_a_stream_that_never_sends_is_rejected_at_once(issuer: Issuer, row: str) -> None:
    """A stream that never sends a message is rejected immediately."""
    silence = threading.Event()

    def requests() -> Iterator[bytes]:
        silence.wait(20)
        yield from ()

    with ROWS[row](settings_for(issuer), None) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        with pytest.raises(grpc.RpcError) as refused:
            list(channel.stream_stream("/tests.Profiles/stream_stream")(requests(), timeout=20))
        silence.set()

    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


@every_row
def test_a_rejected_call_is_recorded_with_its_method_and_status(
    issuer: Issuer, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The span of a rejected call has its full method name and its gRPC status, and continues the caller's trace."""
    traceparent = b"traceparent: 00-aaaabbbbccccddddeeeeffff00001111-2222333344445555-01"
    with recording(monkeypatch) as telemetry:
        with ROWS[row](settings_for(issuer), None) as server:
            assert server.send(target="/tests.Profiles/Me", headers=(traceparent,)).status == 401
        (span,) = telemetry.server_spans

    assert application_reached() == []
    assert span.name == "/tests.Profiles/Me"
    assert (span.attributes["rpc.service"], span.attributes["rpc.method"]) == ("tests.Profiles", "Me")
    assert span.attributes["rpc.grpc.status_code"] == grpc.StatusCode.UNAUTHENTICATED.value[0]
    assert f"{span.context.trace_id:x}" == "aaaabbbbccccddddeeeeffff00001111"


class Lasting(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Methods of each kind, whose streams continue until they are ended."""

    def __init__(self, is_aio: bool) -> None:
        self._is_aio = is_aio

    def service(self, details: Any) -> Any:
        kind = details.method.rpartition("/")[2]
        incoming, _, outgoing = kind.partition("_")

        def one(request: Any, context: Any) -> bytes:
            if incoming == "stream":
                for _ in request:
                    pass
            return b"done"

        def many(request: Any, context: Any) -> Iterator[bytes]:
            while True:
                yield b"1"
                time.sleep(0.01)

        async def one_async(request: Any, context: Any) -> bytes:
            if incoming == "stream":
                async for _ in request:
                    pass
            return b"done"

        async def many_async(request: Any, context: Any) -> AsyncIterator[bytes]:
            yield b"1"
            await asyncio.Event().wait()

        methods = (one_async, many_async) if self._is_aio else (one, many)
        return getattr(grpc, f"{kind}_rpc_method_handler")(methods[outgoing == "stream"])


def outcome(channel: grpc.Channel, kind: str, sent: Any, metadata: Any) -> tuple[str | None, str]:
    """Return the status and its details, or ``None`` and the response."""
    try:
        received = getattr(channel, kind)(f"/tests.Lasting/{kind}")(sent, metadata=metadata, timeout=20)
        return None, (received if isinstance(received, bytes) else b"".join(received)).decode()
    except grpc.RpcError as error:
        failed: Any = error
        return failed.code().name, failed.details()


@pytest.mark.parametrize("seconds", [0.0, 0.2], ids=["at once", "later"])
@pytest.mark.parametrize("serve", [serve_grpc, serve_grpc_aio], ids=["threads", "event loop"])
def test_a_stream_ends_when_its_token_expires(
    issuer: Issuer, serve: Any, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream ends even while its method waits for a message, but a call without a stream continues."""
    monkeypatch.setattr("tests.support.protected_servers._Methods", Lasting)
    settings = settings_for(issuer, verify_streams="exp")
    expires_at = int(time.time()) + 600
    monkeypatch.setattr(seconds_left, "__defaults__", (lambda: expires_at + settings.leeway - seconds,))
    silence = threading.Event()

    def requests() -> Iterator[bytes]:
        yield b"a"
        silence.wait(20)

    metadata = [("authorization", bearer(issuer, exp=expires_at).decode().strip())]
    with (
        installed(settings),
        serve() as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        for kind in KINDS:
            sent: Any = requests() if kind.startswith("stream") else b""
            result = outcome(channel, kind, sent, metadata)
            assert result == ((None, "done") if kind == "unary_unary" else ("UNAUTHENTICATED", "invalid_token")), kind
        silence.set()
