"""The ASGI boundary binds the caller's token, joins other boundaries, and changes nothing else."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import httpx
import pytest
from opentelemetry import context as otel_context
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware, asgi_getter

from otel_token_relay import Settings, TokenRelayPropagator, credentials, current_token, install, uninstall, use_token
from otel_token_relay.boundary import BOUNDARY_KEY
from otel_token_relay.configured_authenticator import build_authenticator
from otel_token_relay.patching import Patches
from otel_token_relay.runtime import Runtime
from otel_token_relay.servers import asgi
from otel_token_relay.servers.asgi import (
    EnclosedApp,
    TokenRelayMiddleware,
    enclose,
    patch,
    patcher,
    path_without_mount,
    whole_path,
)
from otel_token_relay.stream_limits import seconds_left
from tests.support import apps
from tests.support.apps import NONE
from tests.support.enforcement import settings_for
from tests.support.issuers import Issuer
from tests.support.servers import get, serve_asgi
from tests.support.telemetry import recording
from tests.support.tokens import AUDIENCE, claims, make_token

A, B = "token-of-a", "token-of-b"


@pytest.fixture(autouse=True)
def _clean():
    """Start with nothing installed and no kept contexts, and restore this state after the test."""
    textmap = propagate.get_global_textmap()
    apps.kept.clear()
    yield
    uninstall()
    propagate.set_global_textmap(textmap)


class Recorder:
    """An application that records the visible token and keeps its context."""

    def __init__(self):
        self.saw = []
        self.context = None

    async def __call__(self, scope, receive, send):
        self.saw.append(apps.seen())
        self.context = otel_context.get_current()


def bearer(token):
    return [] if token is None else [(b"authorization", f"Bearer {token}".encode())]


def request(token=None, kind="http", **parts):
    """Return a scope as a server creates it."""
    address = {"server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "scheme": "http"}
    parts = {"path": "/", "raw_path": b"/", "query_string": b"", "root_path": "", "method": "GET", **parts}
    return {"type": kind, "asgi": {"version": "3.0"}, **address, "headers": bearer(token), **parts}


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message):
    """Accept and discard the message."""


def middleware(app, **settings):
    return TokenRelayMiddleware(app, Settings(**settings))


def run(app, *scopes):
    """Serve the requests one after the other in one task, as some servers do."""

    async def serve():
        for scope in scopes:
            await app(scope, receive, send)

    asyncio.run(serve())


def test_each_request_in_one_task_has_its_own_token():
    """Each request in a task has its own token, and the previous request's token does not remain."""
    recorder = Recorder()

    run(middleware(recorder), request(A), request(), request(B), request("x y"))

    assert recorder.saw == [A, NONE, B, NONE]


def test_the_context_of_a_request_relays_nothing_afterwards():
    """A request's context relays nothing after the application returns, because the lease has ended."""
    recorder = Recorder()

    run(middleware(recorder), request(A))

    assert otel_context.get_current() == Context()
    token = otel_context.attach(recorder.context)
    assert apps.hop() == (None, "lease_ended")
    otel_context.detach(token)


def test_an_exception_is_propagated_unchanged():
    """The boundary propagates an exception without wrapping it, and ends the lease."""
    error = apps.Boom()

    async def app(scope, receive, send):
        apps.keep()
        raise error

    with pytest.raises(apps.Boom) as raised:
        run(middleware(app), request(A))

    assert raised.value is error
    assert apps.report() == '[["none", "lease_ended"]]'


def test_a_canceled_request_ends_its_lease():
    """Canceling a request's task ends its lease, and no token remains bound."""

    async def app(scope, receive, send):
        apps.keep()
        await asyncio.sleep(60)

    async def serve():
        task = asyncio.ensure_future(middleware(app)(request(A), receive, send))
        while not apps.kept:
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(serve())

    assert apps.report() == '[["none", "lease_ended"]]'


def test_lifespan_is_passed_through_unchanged():
    """The boundary passes lifespan events to the application unchanged, because they are not requests."""
    got = []

    async def app(*arguments):
        got.extend(arguments)

    scope = {"type": "lifespan"}
    run(middleware(app), scope)

    assert got[0] is scope
    assert scope == {"type": "lifespan"}
    assert got[1:] == [receive, send]


@pytest.mark.parametrize("linger", [0, 60], ids=["no-linger", "linger"])
def test_a_reused_scope_is_a_new_request(linger):
    """A scope that a server reuses is a new request, even if the previous lease has not ended."""
    recorder = Recorder()
    scope = request(A)
    app = middleware(recorder, linger=linger)

    run(app, scope)
    scope["headers"] = bearer(B)
    run(app, scope)
    with use_token(None):  # as inside `send`, where servers start the next request
        run(app, scope)
    scope["headers"] = []
    run(app, scope)

    assert recorder.saw == [A, B, B, NONE]


def test_nested_boundaries_act_as_one():
    """Nested boundaries share one lease, which ends with the outermost boundary, and code between them has the
    token.
    """
    recorder = Recorder()

    async def between(scope, receive, send):
        await middleware(recorder)(scope, receive, send)
        recorder.saw.append(apps.seen())
        token = otel_context.attach(recorder.context)
        recorder.saw.append(apps.seen())
        otel_context.detach(token)

    run(middleware(between), request(A))

    assert recorder.saw == [A, A, A]


@pytest.mark.parametrize("inner", [None, B], ids=["removed", "exchanged"])
@pytest.mark.parametrize("copied", [True, False], ids=["copied-scope", "same-scope"])
def test_credentials_that_a_middleware_changes_are_used(inner, copied):
    """The boundary uses the current header, because a gateway can remove or replace it or send a sub-request."""
    recorder = Recorder()

    async def gateway(scope, receive, send):
        inward = dict(scope) if copied else scope
        inward["headers"] = bearer(inner)
        await middleware(recorder)(inward, receive, send)
        recorder.saw.append(apps.seen())

    run(middleware(gateway), request(A))

    assert recorder.saw == [inner or NONE, A]


def test_a_worker_that_another_request_has_started_serves_each_request_with_its_own_token():
    """A worker that starts in one request's context and reads from a queue serves each request with its own token."""
    recorder = Recorder()
    inner = middleware(recorder)

    async def serve():
        queue = asyncio.Queue()
        workers = []

        async def work():
            while True:
                scope, done = await queue.get()
                await inner(scope, receive, send)
                done.set_result(None)

        async def enqueue(scope, receive, send):
            if not workers:
                workers.append(asyncio.ensure_future(work()))
            done = asyncio.get_running_loop().create_future()
            await queue.put((scope, done))
            await done

        # A's request and lease are still open while B's request is being served.
        released = asyncio.Event()

        async def slow(scope, receive, send):
            await enqueue(scope, receive, send)
            await released.wait()

        first = asyncio.ensure_future(middleware(slow)(request(A), receive, send))
        while not recorder.saw:
            await asyncio.sleep(0)
        await middleware(enqueue)(request(B), receive, send)
        await middleware(enqueue)(request(), receive, send)
        released.set()
        await first
        workers[0].cancel()

    asyncio.run(serve())

    assert recorder.saw == [A, B, NONE]


@pytest.mark.parametrize("bound", [None, B], ids=["hidden", "exchanged"])
def test_a_token_bound_explicitly_in_between_is_used(bound):
    """A token that `use_token` binds around the inner application takes precedence."""
    recorder = Recorder()

    async def between(scope, receive, send):
        with use_token(bound):
            await middleware(recorder)(scope, receive, send)

    run(middleware(between), request(A))

    assert recorder.saw == [bound or NONE]


def test_an_empty_context_is_bound_again():
    """Instrumentation without the package's propagator drops the bound token, and the next boundary binds it again."""
    recorder = Recorder()

    async def forgetful(scope, receive, send):
        token = otel_context.attach(Context())
        try:
            await middleware(recorder)(scope, receive, send)
        finally:
            otel_context.detach(token)

    run(middleware(forgetful), request(A))

    assert recorder.saw == [A]


def test_server_code_runs_without_the_token():
    """Work that a server starts inside `receive` and `send` runs without the caller's token."""
    seen = []

    async def watching_receive():
        seen.append(apps.seen())
        return await receive()

    async def watching_send(message):
        seen.append(apps.seen())

    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start"})
        seen.append(apps.seen())

    asyncio.run(middleware(app)(request(A), watching_receive, watching_send))

    assert seen == [NONE, NONE, A]


def test_headers_that_can_be_read_only_once_are_kept_for_the_application():
    """Headers that are an iterator, as the specification allows, remain readable for the application."""
    got = []

    async def app(scope, receive, send):
        got.extend([apps.seen(), list(scope["headers"])])

    run(middleware(app), request(headers=iter(bearer(A))))

    assert got == [A, bearer(A)]


@pytest.mark.parametrize("headers", [[("authorization", f"Bearer {A}")], [(b"authorization", None)], [(None, None)]])
def test_invalid_headers_from_a_server_bind_no_token(headers):
    """A request with invalid headers is served without a token."""
    recorder = Recorder()

    run(middleware(recorder), request(headers=headers))

    assert recorder.saw == [NONE]


@pytest.mark.parametrize("place", ["outside", "inside", "both", "installed"])
@pytest.mark.parametrize("framework", ["plain", "starlette", "fastapi"])
def test_opentelemetry_middleware_works_in_any_position(framework, place):
    """Each request has its own token, and its lease ends, regardless of the position of OpenTelemetry's middleware."""
    if place == "installed" or framework != "plain":
        install(Settings())
    else:
        propagate.set_global_textmap(_propagator())
    inner = {"plain": apps.plain_asgi, "starlette": apps.starlette, "fastapi": apps.fastapi}[framework]()
    app = middleware(inner) if place in ("inside", "both") else inner
    app = OpenTelemetryMiddleware(app, tracer_provider=apps.recording_provider())
    app = middleware(app) if place in ("outside", "both") else app

    with serve_asgi(app) as port:
        responses = [get(port, "/keep", token).text for token in (A, None, B)]

    assert responses == [A, NONE, B]
    assert apps.report_when_over() == '[["none", "lease_ended"], ["none", "no_token"], ["none", "lease_ended"]]'


def _propagator():
    from otel_token_relay import TokenRelayPropagator

    return TokenRelayPropagator(Settings())


@pytest.mark.parametrize("name", ["starlette", "fastapi"])
@pytest.mark.parametrize("path", ["/token", "/mounted/token", "/thread-stream", "/stream"])
def test_endpoints_mounted_applications_and_streams_see_the_token(name, path):
    """Handlers in tasks and threads, mounted applications, and both kinds of generators see the token."""
    install(Settings())
    with serve_asgi(apps.ASGI_APPS[name]()) as port:
        for token in (A, None, B):
            assert set(get(port, path, token).text.split()) == {token or NONE}


def test_a_django_async_view_sees_the_token():
    """Asynchronous and synchronous Django views see the token."""
    install(Settings())
    with serve_asgi(apps.django_asgi()) as port:
        assert [get(port, "/async-token", token).text for token in (A, None)] == [A, NONE]


@pytest.mark.parametrize("outer", ["starlette", "fastapi"])
def test_an_application_called_in_process_has_the_token_of_that_call(outer):
    """An application that is called through httpx's ASGITransport gets that request's token, or none."""
    install(Settings())
    inner = apps.ASGI_APPS[outer]()
    seen = []

    async def app(scope, receive, send):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(inner), base_url="http://inner") as client:
            for token in (B, None):
                headers = {} if token is None else {"Authorization": f"Bearer {token}"}
                seen.append((await client.get("/token", headers=headers)).text)
        seen.append(apps.seen())

    run(middleware(app), request(A))

    assert seen == [B, NONE, A]


def test_an_uninstalled_application_is_restored():
    """The framework binds no token after `uninstall`."""
    from starlette.applications import Starlette

    original = vars(Starlette)["__call__"]
    install(Settings())
    assert vars(Starlette)["__call__"] is not original
    uninstall()

    assert vars(Starlette)["__call__"] is original
    with serve_asgi(apps.starlette()) as port:
        assert get(port, "/token", A).text == NONE


def test_an_inner_boundary_does_not_parse_the_same_header_again(monkeypatch):
    """All boundaries use the credentials that the outer boundary parsed, while the header remains the same text."""
    parsed = []
    parse = credentials.parse_credentials
    monkeypatch.setattr(
        credentials, "parse_credentials", lambda *args, **rest: parsed.append(1) or parse(*args, **rest)
    )
    recorder = Recorder()
    app = TokenRelayMiddleware(TokenRelayMiddleware(recorder, Settings()), Settings())

    asyncio.run(app(request(A), receive, send))
    asyncio.run(app(request(B), receive, send))

    assert recorder.saw == [A, B]
    assert len(parsed) == 2


# Each change that a middleware between two boundaries can make to a scope, with the owner of the resulting token.


def swapped(scope):
    scope["headers"][-1] = (b"authorization", f"Bearer {B}".encode())
    return scope


def changed_pair(scope):
    scope["headers"][-1][1] = f"Bearer {B}".encode()
    return scope


def renamed_pair(scope):
    scope["headers"][-1][0] = b"x-authorization"
    return scope


def dropped(scope):
    del scope["headers"][-1]
    return scope


def emptied(scope):
    scope["headers"] = []
    return scope


def doubled(scope):
    scope["headers"].append((b"authorization", f"Bearer {B}".encode()))
    return scope


def equal_list(scope):
    scope["headers"] = [tuple(bytes(bytearray(part)) for part in pair) for pair in scope["headers"]]
    return scope


def more_headers(scope):
    scope["headers"].insert(0, (b"x-request-id", b"1"))
    return scope


def copied(scope):
    return {**scope, "headers": list(scope["headers"])}


def exchanged(scope):
    return {**scope, "headers": bearer(B)}


def dropped_in_copy(scope):
    return {**scope, "headers": []}


CHANGES = {
    "line swapped in place": (swapped, B),
    "value of a mutable pair": (changed_pair, B),
    "name of a mutable pair": (renamed_pair, None),
    "line dropped in place": (dropped, None),
    "new empty list": (emptied, None),
    "second line": (doubled, None),
    "new equal list": (equal_list, A),
    "another header": (more_headers, A),
    "copied scope": (copied, A),
    "copied scope, exchanged": (exchanged, B),
    "copied scope, dropped": (dropped_in_copy, None),
}
each_change = pytest.mark.parametrize(("change", "user"), CHANGES.values(), ids=CHANGES.keys())


def mutable_request(token):
    """Return a scope whose header lines are lists, which the specification permits."""
    return request(token) | {"headers": [[b"host", b"a"], *map(list, bearer(token))]}


def by_hand(app):
    return TokenRelayMiddleware(app, Settings())


def by_server(app):
    install(Settings())
    return EnclosedApp(app)


def by_hook(app):
    """Return an application of a class that has a hook."""

    class Framework:
        async def __call__(self, scope, receive, send):
            await app(scope, receive, send)

    patch(Framework, Runtime(Settings()), Patches())
    return Framework()


PLACES = [by_hand, by_server, by_hook]
each_outer = pytest.mark.parametrize("outer", PLACES, ids=lambda place: f"outer-{place.__name__}")
each_inner = pytest.mark.parametrize("inner", PLACES, ids=lambda place: f"inner-{place.__name__}")


@each_change
@each_outer
@each_inner
def test_an_inner_boundary_uses_what_the_scope_contains_now(outer, inner, change, user):
    """The inner boundary uses the scope's current credentials, and the outer boundary's token is restored afterward."""
    recorder = Recorder()
    innermost = inner(recorder)

    async def middleware(scope, receive, send):
        await innermost(change(scope), receive, send)
        recorder.saw.append(apps.seen())

    run(outer(middleware), mutable_request(A))

    assert recorder.saw == [user or NONE, A]


@each_change
@each_outer
def test_extract_uses_what_the_scope_contains_now(outer, change, user):
    """A scope without credentials keeps the binding in its own request and binds no token elsewhere."""
    seen = []

    def extract(scope):
        token = current_token(TokenRelayPropagator(Settings()).extract(scope, getter=asgi_getter))
        seen.append(NONE if token is None else token.reveal())

    async def app(scope, receive, send):
        scope = change(scope)
        extract(scope)
        await asyncio.gather(asyncio.to_thread(extract, scope))

    run(outer(app), mutable_request(A))

    here = A if user is None and change is not doubled else user or NONE
    assert seen == [here, user or NONE]


@each_outer
@each_inner
def test_the_scope_of_another_request_has_its_own_token(outer, inner):
    """A's scope has A's token even while it is served in the context of B's request."""
    recorder = Recorder()
    innermost = inner(recorder)
    scopes = []

    async def middleware(scope, receive, send):
        scopes.append(scope)
        if len(scopes) == 1:
            await outer(middleware)(mutable_request(B), receive, send)
        else:
            await innermost(scopes[0], receive, send)
            await innermost(scopes[1], receive, send)
            token = current_token(TokenRelayPropagator(Settings()).extract(scopes[0], getter=asgi_getter))
            recorder.saw.append(token.reveal())
            recorder.saw.append(apps.seen())

    run(outer(middleware), mutable_request(A))

    assert recorder.saw == [A, B, A, B]


@each_outer
@each_inner
def test_after_the_response_a_scope_is_a_new_request(outer, inner):
    """A scope that is used after the response is a new request with its own lease, and the kept context relays
    nothing.
    """
    recorder = Recorder()
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await recorder(scope, receive, send)

    run(outer(app), mutable_request(A))
    boundary = scopes[0][BOUNDARY_KEY]

    async def later():
        token = otel_context.attach(recorder.context)
        try:
            assert not boundary.encloses(scopes[0])
            assert apps.hop() == (None, "lease_ended")
            await inner(recorder)(scopes[0], receive, send)
            assert apps.hop() == (None, "lease_ended")
        finally:
            otel_context.detach(token)

    asyncio.run(later())

    assert recorder.saw == [A, A]
    assert scopes[0][BOUNDARY_KEY] is not boundary


@each_outer
@each_inner
def test_an_unchanged_scope_is_joined_without_being_read_again(outer, inner, monkeypatch):
    """The inner boundary and `extract` each compare an unchanged scope once, if its header pairs are tuples."""
    recorder = Recorder()
    innermost = inner(recorder)
    located = []
    locate = asgi.locate
    monkeypatch.setattr(asgi, "locate", lambda *args: located.append(1) or locate(*args))

    async def app(scope, receive, send):
        await innermost(scope, receive, send)
        token = current_token(TokenRelayPropagator(Settings()).extract(scope, getter=asgi_getter))
        recorder.saw.append(token.reveal())

    run(outer(app), request(A))

    assert recorder.saw == [A, A]
    assert located == [1]


@pytest.fixture
def verifying(issuer: Issuer) -> Iterator[Issuer]:
    """Install verification of the issuer's tokens, except on two paths."""
    build_authenticator.cache_clear()
    excluded = ("/healthz", "/public/*")
    install(settings_for(issuer, verify_exclude=excluded, verify_streams="exp"))
    yield issuer
    uninstall()
    build_authenticator.cache_clear()


def exchange(app: Any, scope: dict[str, Any]) -> list[dict[str, Any]]:
    """Serve one request, and return the messages that the server gets."""
    sent: list[dict[str, Any]] = []

    async def keep(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, keep))
    return sent


def status_of(app: Any, path: str = "/", token: str | None = None, **parts: Any) -> int | None:
    """Return the status of the error response, or `None` if the application is called."""
    sent = exchange(app, request(token, path=path, raw_path=path.encode(), **parts))
    return sent[0]["status"] if sent else None


def test_a_rejected_http_request_gets_the_error_response(verifying: Issuer) -> None:
    """A request without a valid token gets the challenge in place of the application's response, and the response to
    HEAD has no body.
    """
    recorder = Recorder()
    app, token = EnclosedApp(recorder), make_token(claims(verifying.url))

    start, body = exchange(app, request())
    head_start, head_body = exchange(app, request(method="HEAD"))
    assert status_of(app, token=token[:-8] + "AAAAAAAA") == 401
    assert recorder.saw == []

    headers = dict(start["headers"])
    assert (start["type"], start["status"]) == ("http.response.start", 401)
    assert headers[b"www-authenticate"].startswith(b'Bearer realm="api"')
    assert headers[b"content-length"] == str(len(body["body"])).encode() != b"0"
    assert head_start == start
    assert head_body == {"type": "http.response.body", "body": b""}

    assert status_of(app, token=token) is None
    assert recorder.saw == [token]


@pytest.mark.parametrize("extensions", [None, {"websocket.http.response": {}}], ids=["close", "response"])
def test_a_rejected_handshake_gets_the_response_that_the_server_supports(
    verifying: Issuer, extensions: dict[str, Any] | None
) -> None:
    """A rejected WebSocket handshake gets the error response if the server supports one; otherwise, it is closed."""
    recorder, token = Recorder(), make_token(claims(verifying.url))
    app = EnclosedApp(recorder)
    messages = exchange(app, request(kind="websocket", extensions=extensions))

    if extensions is None:
        assert messages == [{"type": "websocket.close", "code": 1008, "reason": ""}]
    else:
        assert [message["type"] for message in messages] == [
            "websocket.http.response.start",
            "websocket.http.response.body",
        ]
        assert messages[0]["status"] == 401
        assert b"www-authenticate" in dict(messages[0]["headers"])
        assert messages[1]["body"]
    assert recorder.saw == []
    assert exchange(app, request(token, kind="websocket", extensions=extensions)) == []
    assert recorder.saw == [token]


def test_a_scope_of_an_unknown_protocol_is_rejected_with_an_exception(verifying: Issuer) -> None:
    """A scope of an unknown protocol is never excluded, and is rejected with an exception."""
    recorder = Recorder()
    with pytest.raises(RuntimeError, match="the application was not called for this scope"):
        exchange(EnclosedApp(recorder), request(kind="webtransport", path="/healthz"))

    assert recorder.saw == []


def test_a_rejected_request_is_recorded_as_the_server_received_it(
    verifying: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The span of a rejected request has its method, path, and status, and continues the caller's trace."""
    traceparent = (b"traceparent", b"00-aaaabbbbccccddddeeeeffff00001111-2222333344445555-01")
    with recording(monkeypatch) as telemetry:
        app = EnclosedApp(Recorder())
        exchange(app, request(path="/api/me", root_path="/api", method="DELETE", headers=[traceparent]))
        exchange(app, request(kind="websocket", path="/ws"))
        rejected, closed = telemetry.server_spans

    assert (rejected.name, rejected.attributes["url.path"]) == ("DELETE", "/api/me")
    assert rejected.attributes["http.scheme"] == "http"
    assert rejected.attributes["http.status_code"] == 401
    assert f"{rejected.context.trace_id:x}" == "aaaabbbbccccddddeeeeffff00001111"
    assert (closed.name, closed.attributes["url.path"], closed.attributes["http.status_code"]) == ("GET", "/ws", 403)


@pytest.mark.parametrize(
    ("path", "root_path", "expected"),
    [
        ("/healthz", "", "/healthz"),
        ("/healthz", "/api", "/healthz"),
        ("/api/healthz", "/api", "/healthz"),
        ("/api", "/api", ""),
        ("/apis/healthz", "/api", None),
        ("/healthz/api", "/api", None),
        ("/api/healthz", "api/", None),
    ],
)
def test_the_mount_point_is_removed_only_if_every_application_would(
    path: str, root_path: str, expected: str | None
) -> None:
    """The mount point is removed if it consists of whole segments; otherwise, the path is unknown if it contains the
    mount point.
    """
    scope = {"path": path, "root_path": root_path}
    assert path_without_mount(scope) == expected
    assert whole_path(scope) == path
    assert (path_without_mount({}), whole_path({})) == ("", "")


def test_an_excluded_path_needs_no_token_unless_the_client_chose_its_mount_point(verifying: Issuer) -> None:
    """Exclusions apply to the path without the mount point, unless a header may have set the mount point, and not to
    encoded paths below a prefix.
    """
    app = EnclosedApp(Recorder())

    assert status_of(app, "/healthz") is None
    assert status_of(app, "/api/healthz", root_path="/api") is None
    assert status_of(app, "/api/healthz") == 401
    assert status_of(app, "/api/healthz", root_path="/api", headers=[(b"x-script-name", b"/api")]) == 401
    assert status_of(app, "/public/a") is None
    assert exchange(app, request(path="/public/a", raw_path=b"/public/%61"))[0]["status"] == 401


def test_a_preflight_request_needs_no_token(verifying: Issuer) -> None:
    """A CORS preflight request needs no token, but a request with a different method or without its headers does."""
    app = EnclosedApp(Recorder())
    preflight = [(b"Origin", b"https://a.example"), (b"Access-Control-Request-Method", b"PUT")]

    assert status_of(app, method="OPTIONS", headers=preflight) is None
    assert status_of(app, method="OPTIONS") == 401
    assert status_of(app, method="PUT", headers=preflight) == 401


@pytest.mark.parametrize(("route", "mounted"), [(path_without_mount, None), (whole_path, 401)])
def test_a_hooked_class_is_routed_as_its_framework_does(verifying: Issuer, route: Any, mounted: int | None) -> None:
    """The hook for a framework's class applies exclusions to the path that the framework uses for routing."""

    class Framework:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    module = ModuleType("framework")
    module.App = Framework  # type: ignore[attr-defined]
    made = Runtime(Settings(verify="enforce", issuers=(verifying.url,), audience=(AUDIENCE,), verify_exclude=("/a",)))
    patches = Patches()
    patcher("App", route)(module, made, patches)

    assert status_of(Framework(), "/a") is None
    assert status_of(Framework(), "/b") == 401
    assert status_of(Framework(), "/mount/a", root_path="/mount") == mounted
    patches.undo()
    assert status_of(Framework(), "/b") is None


def test_an_enclosed_application_is_enclosed_once_and_has_its_own_attributes() -> None:
    """An enclosed application has the attributes of the original, and is not enclosed a second time."""
    recorder = Recorder()
    enclosed = enclose(recorder)

    assert enclosed is not recorder
    assert enclose(enclosed) is enclosed
    assert enclosed.saw is recorder.saw
    with pytest.raises(AttributeError, match="missing"):
        _ = enclosed.missing


@pytest.fixture
def expired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the time of a long-lived response be up as soon as the response starts."""
    monkeypatch.setattr(seconds_left, "__defaults__", (lambda: time.time() + 7200,))


@pytest.mark.usefixtures("expired")
@pytest.mark.parametrize(
    ("content_type", "has_ended"),
    [(b"text/event-stream", True), (b"Text/Event-Stream; charset=utf-8", True), (b"text/plain", False), (None, False)],
)
def test_an_event_stream_ends_with_its_token(verifying: Issuer, content_type: bytes | None, has_ended: bool) -> None:
    """An event stream is canceled and completed when the token expires, but other responses continue."""
    events: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [] if content_type is None else [(b"Content-Type", content_type)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            await asyncio.wait_for(asyncio.Event().wait(), 20) if has_ended else await asyncio.sleep(0.01)
            await send({"type": "http.response.body", "body": b"last"})
        except asyncio.CancelledError:
            events.append("canceled")
            raise

    enclosed = EnclosedApp(EnclosedApp(app))
    sent = exchange(enclosed, request(make_token(claims(verifying.url))))

    assert [message.get("body") for message in sent] == [None, b"first", b"" if has_ended else b"last"]
    assert not sent[-1].get("more_body", False)
    assert events == (["canceled"] if has_ended else [])


@pytest.mark.usefixtures("expired")
def test_a_websocket_is_closed_when_its_token_expires(verifying: Issuer) -> None:
    """An accepted WebSocket is closed with the code for a policy violation when its token expires."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await asyncio.wait_for(asyncio.Event().wait(), 20)

    assert exchange(EnclosedApp(app), request(make_token(claims(verifying.url)), kind="websocket")) == [
        {"type": "websocket.accept"},
        {"type": "websocket.close", "code": 1008, "reason": ""},
    ]
