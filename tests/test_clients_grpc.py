"""gRPC channels: each kind of call, sync and aio, promise by promise."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.aio
import pytest
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcInstrumentorClient

from otel_token_relay import Settings, install, uninstall, use_token
from otel_token_relay.clients.grpc import _Channel, _parts_of, _read_credentials
from otel_token_relay.errors import TokenUnavailable

ALICE = "alice-token-0001"
BOB = "bob-token-0000001"

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class Party:
    """A gRPC server that notes the authorization entries of each call."""

    def __init__(self, port: int) -> None:
        self.target = f"127.0.0.1:{port}"
        self.url = f"http://{self.target}"
        self.seen: list[list[str]] = []

    def note(self, request, context) -> bytes:
        if isinstance(request, Iterator):
            list(request)
        self.seen.append([value for key, value in context.invocation_metadata() if key == "authorization"])
        return b"yes"

    def note_and_stream(self, request, context) -> Iterator[bytes]:
        yield self.note(request, context)


@pytest.fixture
def party():
    """The server, on a free port, and on a socket of the file system."""
    with ThreadPoolExecutor(4) as pool, tempfile.TemporaryDirectory() as directory:
        server = grpc.server(pool)
        party = Party(server.add_insecure_port("127.0.0.1:0"))
        party.socket = f"{directory}/grpc"
        server.add_insecure_port(f"unix:{party.socket}")
        handlers = {
            kind: getattr(grpc, f"{kind}_rpc_method_handler")(
                party.note_and_stream if kind.endswith("stream") else party.note
            )
            for kind in KINDS
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("tests.Party", handlers)])
        contextvars.Context().run(server.start)
        try:
            yield party
        finally:
            server.stop(1).wait()


def call(target, kind="unary_unary", *, metadata=None, open_channel=None, **options):
    """Make one call over a channel of its own."""
    request = iter([b"one", b"two"]) if kind.startswith("stream") else b"one"
    with (open_channel or grpc.insecure_channel)(target) as channel:
        answer = getattr(channel, kind)(f"/tests.Party/{kind}")(request, metadata=metadata, timeout=30, **options)
        return b"".join(answer) if kind.endswith("stream") else answer


def call_aio(target, kind="unary_unary", *, metadata=None, open_channel=None, **options):
    """The same with grpc.aio."""

    async def run():
        request = iter([b"one", b"two"]) if kind.startswith("stream") else b"one"
        async with (open_channel or grpc.aio.insecure_channel)(target) as channel:
            method = getattr(channel, kind)(f"/tests.Party/{kind}")
            answer = method(request, metadata=metadata, timeout=30, **options)
            if kind.endswith("stream"):
                return b"".join([response async for response in answer])
            return await answer

    return asyncio.run(run())


@pytest.fixture(params=[call, call_aio], ids=["sync", "aio"])
def send(request):
    """Both libraries in one."""
    yield request.param
    uninstall()


@pytest.fixture(params=["plain", "instrumented first", "instrumented later"])
def relay(request, party):
    """The relay is on for the server, and instrumentation is on or off."""
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
    uninstall()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_call_carries_its_callers_token(relay, send, party, kind):
    """Or none, where there is none."""
    for user in (ALICE, BOB, None, ALICE):
        with use_token(user):
            assert send(party.target, kind) == b"yes"

    assert party.seen == [[f"Bearer {ALICE}"], [f"Bearer {BOB}"], [], [f"Bearer {ALICE}"]]


def test_one_channel_serves_many_users(relay, party):
    """The token is that of the call, not that of whoever opened the channel."""
    with use_token(BOB), grpc.insecure_channel(party.target) as channel:
        method = channel.unary_unary("/tests.Party/unary_unary")
        for user in (ALICE, None):
            with use_token(user):
                method(b"")
                method.future(b"").result()
                method.with_call(b"")

    assert party.seen == [[f"Bearer {ALICE}"]] * 3 + [[]] * 3


def test_nothing_goes_to_a_target_that_is_not_listed(send, party):
    """The destination is the target, with its scheme."""
    install(Settings(destinations=[party.url.replace("http:", "https:"), "http://localhost:1"]))
    with use_token(ALICE):
        send(party.target)

    assert party.seen == [[]]


def test_nothing_goes_to_a_socket_of_the_file_system(send, party):
    """It has no host, whatever is listed."""
    install(Settings(destinations=["http://*:*", "https://*:*"]))
    with use_token(ALICE):
        send(f"unix:{party.socket}")
        send(f"ipv4:{party.target},{party.target}")
        send(f"ipv4:{party.target}")

    assert party.seen == [[], [], [f"Bearer {ALICE}"]]


def test_an_explicit_credential_wins(relay, send, party):
    """And stays the only one."""
    with use_token(ALICE):
        send(party.target, metadata=(("authorization", "Bearer own"), ("x-other", "1")))

    assert party.seen == [["Bearer own"]]


def test_an_explicit_credential_can_be_replaced(send, party):
    """Never beside ours."""
    install(Settings(destinations=[party.url], on_conflict="replace"))
    with use_token(ALICE):
        send(party.target, metadata=(("authorization", "Bearer own"),))

    assert party.seen == [[f"Bearer {ALICE}"]]


def _local(module):
    """Give a way to open a channel whose credentials write an authorization below every interceptor."""
    credentials = grpc.composite_channel_credentials(
        grpc.local_channel_credentials(), grpc.access_token_call_credentials("own")
    )
    return lambda target: module.secure_channel(target, credentials)


def test_credentials_of_the_channel_win(send, party):
    """Nobody sees what they will write, so nothing is written beside it."""
    install(Settings(destinations=["http://*:*", "https://*:*"]))
    module = grpc if send is call else grpc.aio
    with use_token(ALICE):
        send(party.target, open_channel=_local(module))

    assert party.seen == [["Bearer own"]]


def test_credentials_of_the_call_win(party, send):
    """They are added below every interceptor, too."""
    install(Settings(destinations=["http://*:*", "https://*:*"]))
    local = grpc.local_channel_credentials()
    module = grpc if send is call else grpc.aio
    with use_token(ALICE):
        for credentials in (None, grpc.access_token_call_credentials("own")):
            send(party.target, open_channel=lambda t: module.secure_channel(t, local), credentials=credentials)

    assert party.seen == [[f"Bearer {ALICE}"], ["Bearer own"]]


@pytest.mark.parametrize(
    ("credentials", "scheme", "has_credentials"),
    [
        pytest.param(grpc.ssl_channel_credentials, "https", False, id="TLS"),
        pytest.param(grpc.local_channel_credentials, "http", False, id="local"),
        pytest.param(grpc.compute_engine_channel_credentials, "https", True, id="of the cloud"),
        pytest.param(lambda _=None: object(), "https", True, id="unknown"),
    ],
)
def test_what_kind_of_channel_it_is(credentials, scheme, has_credentials):
    """Only what is known to be plain TLS or none may carry ours."""
    if credentials is grpc.compute_engine_channel_credentials:
        made = credentials(grpc.access_token_call_credentials("own"))
    else:
        made = credentials()
    channel = _read_credentials("a:1", made)

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
def test_a_target_that_names_one_host(target, host, port):
    """Without a port gRPC takes 443, with TLS and without."""
    assert _parts_of((_Channel("http", target, False, 3), None)) == ("http", host, port)


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
def test_a_target_that_names_no_host_or_several(target):
    """It is no destination, whatever is listed."""
    with pytest.raises(ValueError, match="one host"):
        _parts_of((_Channel("http", target, False, 3), None))


# A call of aio cancels itself when it is let go, and cannot if an interceptor has raised.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_required_token_that_is_missing_stops_the_call(send, party):
    """Before it is made."""
    install(Settings(destinations=[f"{party.url};required"]))

    with pytest.raises(TokenUnavailable):
        send(party.target)

    gc.collect()
    assert party.seen == []


def test_after_uninstall_nothing_is_relayed(relay, send, party):
    """Nor over a channel that is open still."""
    with use_token(ALICE), grpc.insecure_channel(party.target) as channel:
        uninstall()
        channel.unary_unary("/tests.Party/unary_unary")(b"")
        send(party.target)

    assert party.seen == [[], []]


def test_interceptors_of_the_application_stay(party, send):
    """Given by name or by position."""
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
    assert calls == [{}] * len(party.seen)
    assert party.seen == [[f"Bearer {ALICE}"]] * len(calls)
