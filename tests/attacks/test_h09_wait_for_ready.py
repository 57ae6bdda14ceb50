"""h09: a gRPC call that waits for its channel sends no token after the caller's request has ended."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import anyio
import grpc
import grpc.aio
import pytest

from otel_token_relay import Reason, Settings, install, use_token
from otel_token_relay.errors import TokenUnavailable
from tests.support.carrying import PATIENCE
from tests.support.loopback import Party, grpc_party
from tests.support.queued import LINE, TOKEN, Caller, Event, end_request, go_on


@pytest.fixture
def absent() -> Iterator[int]:
    """Reserve a port on which no server listens yet."""
    with socket.socket() as one:
        # gRPC sets this option too, so its server can share the port.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(("127.0.0.1", 0))
        yield one.getsockname()[1]


GrpcCall = Callable[..., Any]
"""A function that makes a call, runs *while_waiting* while the call waits, and returns the response or the error.

Its signature is ``call(target, caller, while_waiting, **options)``.
"""


def _call(target: str, caller: Caller, while_waiting: Callable[[Any], object], **options: Any) -> Any:
    def send(channel: Any) -> Any:
        return channel.unary_unary("/tests.Party/unary_unary")(b"", wait_for_ready=True, **options)

    return _run_sync(send, target, caller, while_waiting)


def _call_with_a_stream(target: str, caller: Caller, while_waiting: Callable[[Any], object], **options: Any) -> Any:
    def send(channel: Any) -> Any:
        method = channel.stream_unary("/tests.Party/stream_unary")
        response, _ = method.with_call(iter([b""]), wait_for_ready=True, **options)
        return response

    return _run_sync(send, target, caller, while_waiting)


def _run_sync(send: Callable[[Any], Any], target: str, caller: Caller, while_waiting: Callable[[Any], object]) -> Any:
    outcome: list[Any] = []

    def run() -> None:
        with caller.bound():
            try:
                outcome.append(send(channel))
            except Exception as error:
                outcome.append(error)

    with grpc.insecure_channel(target, options=FAST) as channel:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        assert caller.decided.wait(PATIENCE)
        while_waiting(channel)
        thread.join(PATIENCE)
    (result,) = outcome
    return result


def _call_aio(target: str, caller: Caller, while_waiting: Callable[[Any], object], **options: Any) -> Any:
    return _run_aio("unary_unary", target, caller, while_waiting, options)


def _call_aio_stream(target: str, caller: Caller, while_waiting: Callable[[Any], object], **options: Any) -> Any:
    return _run_aio("stream_stream", target, caller, while_waiting, options)


def _run_aio(
    kind: str, target: str, caller: Caller, while_waiting: Callable[[Any], object], options: dict[str, Any]
) -> Any:
    async def call(channel: Any) -> Any:
        method = getattr(channel, kind)(f"/tests.Party/{kind}")
        with caller.bound():
            try:
                if kind == "stream_stream":
                    responses = method(iter([b""]), wait_for_ready=True, **options)
                    return b"".join([response async for response in responses])
                return await method(b"", wait_for_ready=True, **options)
            except (Exception, asyncio.CancelledError) as error:
                return error

    async def run() -> Any:
        async with grpc.aio.insecure_channel(target, options=FAST) as channel:
            task = asyncio.create_task(call(channel))
            with anyio.fail_after(PATIENCE):
                while not caller.decided.is_set():
                    await asyncio.sleep(0.002)
            closing = while_waiting(channel)
            if closing is not None:
                await closing  # type: ignore[misc]
            return await asyncio.wait_for(task, PATIENCE)

    return asyncio.run(run())


# A channel reconnects after this many milliseconds.
FAST = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 100)]

every_call = pytest.mark.parametrize(
    "call",
    [_call, _call_with_a_stream, _call_aio, _call_aio_stream],
    ids=["unary", "stream_unary", "aio unary", "aio stream_stream"],
)


@every_call
@pytest.mark.parametrize("event", [end_request, go_on], ids=["ended", "live"])
def test_a_grpc_call_that_waits_for_ready(call: GrpcCall, event: Event, absent: int) -> None:
    """A call that waits for its channel is decided when the channel becomes ready."""
    install(Settings(destinations=[f"http://127.0.0.1:{absent}"]))
    caller = Caller()
    with ExitStack() as stack:
        servers: list[Party] = []

        def serve(_: object) -> None:
            event(caller)
            servers.append(stack.enter_context(grpc_party(address=f"127.0.0.1:{absent}")))

        response = call(f"127.0.0.1:{absent}", caller, serve)

    line = [] if event is end_request else LINE
    assert response == "\n".join(line).encode()
    assert servers[0].lines() == [line]
    assert caller.reasons == [Reason.LEASE_ENDED if event is end_request else Reason.RELAYED]


@every_call
def test_a_required_token_that_is_lost_before_ready_stops_the_call(call: GrpcCall, absent: int) -> None:
    """A call that loses a required token before the channel is ready is not sent."""
    install(Settings(destinations=[f"http://127.0.0.1:{absent};required"]))
    caller = Caller()
    with ExitStack() as stack:
        servers: list[Party] = []

        def serve(_: object) -> None:
            end_request(caller)
            servers.append(stack.enter_context(grpc_party(address=f"127.0.0.1:{absent}")))

        error = call(f"127.0.0.1:{absent}", caller, serve)

    assert isinstance(error, TokenUnavailable)
    assert servers[0].lines() == []


@every_call
def test_a_deadline_that_passes_before_ready_is_grpcs_own(call: GrpcCall, absent: int) -> None:
    """If the deadline passes before the channel is ready, gRPC reports its own error at the usual time."""
    install(Settings(destinations=[f"http://127.0.0.1:{absent}"]))
    caller = Caller()
    start = time.monotonic()
    error = call(f"127.0.0.1:{absent}", caller, lambda _: None, timeout=0.3)

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - start >= 0.3
    assert caller.reasons == []  # nothing was sent, so no decision is recorded


class _Deadlines(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """A handler that accepts every call and records the time that remains before its deadline."""

    def __init__(self) -> None:
        self.left: list[float] = []

    def service(self, details: Any) -> Any:
        def respond(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            self.left.append(context.time_remaining())
            yield b""

        return grpc.stream_stream_rpc_method_handler(respond)


@every_call
def test_the_wait_is_part_of_the_deadline(call: GrpcCall, absent: int) -> None:
    """The time that a call spends waiting for its channel counts toward its deadline."""
    install(Settings(destinations=[f"http://127.0.0.1:{absent}"]))
    caller, deadlines = Caller(), _Deadlines()
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers([deadlines])

        def serve(_: object) -> None:
            time.sleep(0.5)
            server.add_insecure_port(f"127.0.0.1:{absent}")
            server.start()

        assert call(f"127.0.0.1:{absent}", caller, serve, timeout=PATIENCE) == b""
        server.stop(1).wait()

    (left,) = deadlines.left
    assert 0 < left < PATIENCE - 0.4
    assert caller.reasons == [Reason.RELAYED]


@pytest.mark.parametrize("call", [_call, _call_with_a_stream], ids=["unary", "stream_unary"])
def test_closing_the_channel_cancels_a_call_that_waits(call: GrpcCall, absent: int) -> None:
    """Closing the channel cancels a call that waits for it."""
    install(Settings(destinations=[f"http://127.0.0.1:{absent}"]))
    error = call(f"127.0.0.1:{absent}", Caller(), lambda channel: channel.close())

    assert isinstance(error, grpc.RpcError)
    assert error.code() is grpc.StatusCode.CANCELLED  # type: ignore[attr-defined]


def test_closing_the_channel_cancels_an_aio_call_that_waits(absent: int) -> None:
    """Closing the channel cancels an aio call that waits for it."""
    install(Settings(destinations=[f"http://127.0.0.1:{absent}"]))
    error = _call_aio(f"127.0.0.1:{absent}", Caller(), lambda channel: channel.close())

    assert isinstance(error, asyncio.CancelledError)


@pytest.mark.parametrize("has_token", [True, False], ids=["token", "no token"])
def test_a_call_on_a_closed_channel_raises_grpcs_own_error(has_token: bool, absent: int) -> None:
    """A call on a closed channel immediately raises gRPC's own error."""
    install(Settings(destinations=[f"http://127.0.0.1:{absent}"]))
    caller = Caller()
    channel = grpc.insecure_channel(f"127.0.0.1:{absent}")
    method = channel.unary_unary("/tests.Party/unary_unary")
    channel.close()

    with caller.bound() if has_token else use_token(None), pytest.raises(ValueError, match="closed"):
        method(b"", wait_for_ready=True)
    assert Reason.RELAYED not in caller.reasons


def test_an_aio_call_that_waits_can_be_cancelled(absent: int) -> None:
    """Canceling an aio call that waits for its channel takes effect immediately."""
    install(Settings(destinations=[f"http://127.0.0.1:{absent}"]))

    async def run() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{absent}") as channel:
            with use_token(TOKEN):
                call = channel.unary_unary("/tests.Party/unary_unary")(b"", wait_for_ready=True)
            await asyncio.sleep(0.05)
            assert call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert await call.code() is grpc.StatusCode.CANCELLED

    asyncio.run(asyncio.wait_for(run(), PATIENCE))


def test_a_future_is_decided_when_it_is_made(absent: int) -> None:
    """A future's call is decided when it is created, because its interceptor must not block."""
    install(Settings(destinations=[f"http://127.0.0.1:{absent}"]))
    caller = Caller()
    with grpc.insecure_channel(f"127.0.0.1:{absent}", options=FAST) as channel:
        with caller.bound():
            future = channel.unary_unary("/tests.Party/unary_unary").future(b"", wait_for_ready=True)
        with grpc_party(address=f"127.0.0.1:{absent}"):
            assert future.result(PATIENCE) == LINE[0].encode()

    assert caller.reasons == [Reason.RELAYED]
