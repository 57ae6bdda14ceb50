"""Tests for behavior that is specific to gRPC channels; `test_all_clients.py` covers all clients."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import threading

import grpc
import grpc.aio
import pytest
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcInstrumentorClient

from otel_token_relay import Settings, install, use_token
from otel_token_relay.clients.grpc import _Channel, _read_credentials, _target_of
from tests.support.loopback import grpc_party
from tests.support.queued import Caller

ALICE = "alice-token-0001"
BOB = "bob-token-0000001"

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


@pytest.fixture
def party():
    """Run a gRPC server on a free port and on a Unix socket."""
    with tempfile.TemporaryDirectory() as directory:
        socket = f"unix:{directory}/grpc"
        with grpc_party(address=socket) as party:
            party.socket = socket
            party.target = party.url.removeprefix("http://")
            yield party


def call(target, kind="unary_unary", *, open_channel=None):
    """Make one call over a new channel."""
    request = iter([b"one", b"two"]) if kind.startswith("stream") else b"one"
    with (open_channel or grpc.insecure_channel)(target) as channel:
        result = getattr(channel, kind)(f"/tests.Party/{kind}")(request, timeout=30)
        return b"".join(result) if kind.endswith("stream") else result


def call_aio(target, kind="unary_unary", *, open_channel=None):
    """Make one call over a new channel with grpc.aio."""

    async def run():
        request = iter([b"one", b"two"]) if kind.startswith("stream") else b"one"
        async with (open_channel or grpc.aio.insecure_channel)(target) as channel:
            method = getattr(channel, kind)(f"/tests.Party/{kind}")
            result = method(request, timeout=30)
            if kind.endswith("stream"):
                return b"".join([response async for response in result])
            return await result

    return asyncio.run(run())


@pytest.fixture(params=[call, call_aio], ids=["sync", "aio"])
def send(request):
    """Return the function that makes a call with either grpc or grpc.aio."""
    return request.param


@pytest.fixture(params=["plain", "instrumented first", "instrumented later"])
def relay(request, party):
    """Enable the relay for the server, with and without instrumentation."""
    instrumentors = GrpcInstrumentorClient(), GrpcAioInstrumentorClient()
    if request.param == "instrumented first":
        for instrumentor in instrumentors:
            instrumentor.instrument()
    install(Settings(destinations=[party.url]))
    if request.param == "instrumented later":
        for instrumentor in instrumentors:
            instrumentor.instrument()
    yield
    if request.param != "plain":
        for instrumentor in reversed(instrumentors):
            instrumentor.uninstrument()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_call_carries_its_callers_token(relay, send, party, kind):
    """Each kind of call carries its caller's token, and an anonymous call carries none."""
    for user in (ALICE, BOB, None, ALICE):
        with use_token(user):
            send(party.target, kind)

    assert party.lines() == [[f"Bearer {ALICE}"], [f"Bearer {BOB}"], [], [f"Bearer {ALICE}"]]


def test_every_form_of_a_call_carries_its_callers_token(relay, party):
    """A call carries its caller's token whether it is a direct call, a future, or a call with a call object."""
    with grpc.insecure_channel(party.target) as channel:
        method = channel.unary_unary("/tests.Party/unary_unary")
        for user in (ALICE, None):
            with use_token(user):
                method(b"")
                method.future(b"").result()
                method.with_call(b"")

    assert party.lines() == [[f"Bearer {ALICE}"]] * 3 + [[]] * 3


def test_no_token_is_sent_to_a_target_without_exactly_one_host(send, party):
    """A target without exactly one host gets no token, even if every host is listed."""
    install(Settings(destinations=["http://*:*", "https://*:*"]))
    with use_token(ALICE):
        send(party.socket)
        send(f"ipv4:{party.target},{party.target}")
        send(f"ipv4:{party.target}")

    assert party.lines() == [[], [], [f"Bearer {ALICE}"]]


def test_credentials_that_write_no_authorization_allow_relaying(send, party):
    """A call carries the token if the channel credentials only define how to connect."""
    install(Settings(destinations=[party.url]))
    module = grpc if send is call else grpc.aio
    with use_token(ALICE):
        send(party.target, open_channel=lambda t: module.secure_channel(t, grpc.local_channel_credentials()))

    assert party.lines() == [[f"Bearer {ALICE}"]]


@pytest.mark.parametrize(
    ("credentials", "scheme", "has_credentials"),
    [
        pytest.param(grpc.ssl_channel_credentials, "https", False, id="TLS"),
        pytest.param(grpc.local_channel_credentials, "http", False, id="local"),
        pytest.param(grpc.compute_engine_channel_credentials, "https", True, id="cloud"),
        pytest.param(lambda _=None: object(), "https", True, id="unknown"),
    ],
)
def test_scheme_and_credentials_of_a_channel(credentials, scheme, has_credentials):
    """Only a channel that is known to use plain TLS, or no TLS, carries the token."""
    if credentials is grpc.compute_engine_channel_credentials:
        made = credentials(grpc.access_token_call_credentials("own"))
    else:
        made = credentials()
    channel = _read_credentials("a:1", made, ())

    assert (channel.scheme, channel.has_credentials) == (scheme, has_credentials)


@pytest.mark.parametrize(
    ("target", "host", "port"),
    [
        ("profile-service:50051", "profile-service", 50051),
        ("profile-service", "profile-service", 443),
        ("dns:profile-service:1", "profile-service", 1),
        ("dns:///profile-service.svc:1", "profile-service.svc", 1),
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("[::1]:1", "::1", 1),
        ("ipv4:127.0.0.1:1", "127.0.0.1", 1),
        ("ipv6:[::1]:1", "::1", 1),
    ],
)
def test_host_and_port_of_a_target(target, host, port):
    """If a target has no port, port 443 is used, with and without TLS."""
    assert _target_of((_Channel("http", target, False, 3), None)) == ("http", host, port)


@pytest.mark.parametrize(
    "target",
    [
        "unix:/tmp/socket",
        "unix:1234",
        "unix-abstract:name",
        "vsock:1:2",
        "xds:///profile-service",
        "xds:1",
        "ipv4:127.0.0.1:1,127.0.0.2:1",
        "ipv6:[::1]:1,[::2]:1",
        "dns://8.8.8.8/profile-service:1",
        "dns:unix:1",
        "google-c2p:///profile-service",
        "user@profile-service:1",
        "profile-service:1/path",
        "profile%2dservice:1",
        "profile-service:https",
        "https://profile-service",
        "",
    ],
)
def test_a_target_without_exactly_one_host_is_not_a_destination(target):
    """A target without exactly one host is an error, regardless of the list of destinations."""
    with pytest.raises(ValueError, match="exactly one host"):
        _target_of((_Channel("http", target, False, 3), None))


def test_interceptors_of_the_application_are_kept(party, send):
    """The application's interceptors are kept, whether they are passed by keyword or by position."""
    install(Settings(destinations=[party.url]))
    if send is call:
        calls = []

        class Sync(grpc.UnaryUnaryClientInterceptor):
            def intercept_unary_unary(self, continuation, details, request):
                calls.append(dict(details.metadata or ()))
                return continuation(details, request)

        with use_token(ALICE):
            call(party.target, open_channel=lambda t: grpc.intercept_channel(grpc.insecure_channel(t), Sync()))
    else:
        calls = []

        class Async(grpc.aio.UnaryUnaryClientInterceptor):
            async def intercept_unary_unary(self, continuation, details, request):
                calls.append(dict(details.metadata or ()))
                return await continuation(details, request)

        with use_token(ALICE):
            call_aio(party.target, open_channel=lambda t: grpc.aio.insecure_channel(t, None, None, [Async()]))
            call_aio(party.target, open_channel=lambda t: grpc.aio.insecure_channel(t, interceptors=[Async()]))

    assert calls
    assert calls == [{}] * len(party.requests)
    assert party.lines() == [[f"Bearer {ALICE}"]] * len(calls)


def wait_for_ready(channel):
    """Make a call that waits until the channel is connected."""
    return channel.unary_unary("/tests.Party/unary_unary")(b"", wait_for_ready=True, timeout=30)


def test_a_call_that_waits_for_its_channel_carries_the_token(party, relay):
    """Calls with grpc and grpc.aio carry the token when the channel is ready."""

    async def run():
        async with grpc.aio.insecure_channel(party.target) as channel:
            return await wait_for_ready(channel)

    with use_token(ALICE):
        with grpc.insecure_channel(party.target) as channel:
            assert wait_for_ready(channel) == f"Bearer {ALICE}".encode()
        assert asyncio.run(run()) == f"Bearer {ALICE}".encode()
    assert party.lines() == [[f"Bearer {ALICE}"]] * 2


def test_a_call_on_a_closed_channel_gets_grpcs_own_error(party, relay):
    """The relay does not wait for a channel that is closed."""
    channel = grpc.insecure_channel(party.target)
    channel.close()
    with use_token(ALICE), pytest.raises(ValueError, match="closed channel"):
        wait_for_ready(channel)
    assert party.lines() == []


def test_a_call_is_canceled_if_its_channel_is_closed_while_it_waits():
    """The application gets the error that gRPC itself reports."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        install(Settings(destinations=[f"http://127.0.0.1:{port}"]))
        channel, caller, errors = grpc.insecure_channel(f"127.0.0.1:{port}"), Caller(), []

        def run():
            with caller.bound():
                try:
                    wait_for_ready(channel)
                except grpc.RpcError as error:
                    errors.append(error.code())

        thread = threading.Thread(target=run)
        thread.start()
        assert caller.decided.wait(20)
        channel.close()
        thread.join(20)
    assert errors == [grpc.StatusCode.CANCELLED]
    assert caller.reasons == []
