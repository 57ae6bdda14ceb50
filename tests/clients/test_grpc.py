"""Tests for behavior that is specific to gRPC channels; `test_all_clients.py` covers all clients."""

from __future__ import annotations

import asyncio
import tempfile

import grpc
import grpc.aio
import pytest
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcInstrumentorClient

from otel_token_relay import Settings, install, use_token
from otel_token_relay.clients.grpc import _Channel, _read_credentials, _target_of
from tests.support.loopback import grpc_party

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
