"""The WSGI boundary binds the caller's token for requests and streams, and changes nothing else."""

import contextvars
import gc
import io
import threading
import time
from wsgiref.util import FileWrapper

import pytest
from opentelemetry import context as otel_context
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware, wsgi_getter

from otel_token_relay import Settings, TokenRelayPropagator, current_token, install, uninstall, use_token
from otel_token_relay.boundary import BOUNDARY_KEY
from otel_token_relay.configured_authenticator import build_authenticator
from otel_token_relay.patching import Patches
from otel_token_relay.runtime import Runtime
from otel_token_relay.servers import wsgi
from otel_token_relay.servers.wsgi import EnclosedApp, TokenRelayMiddleware, patch
from otel_token_relay.stream_limits import seconds_left
from tests.support import apps
from tests.support.apps import NONE
from tests.support.enforcement import settings_for
from tests.support.servers import get, serve_wsgi
from tests.support.telemetry import recording
from tests.support.tokens import claims, make_token

A, B = "token-of-a", "token-of-b"
ENDED = '[["none", "lease_ended"]]'


@pytest.fixture(autouse=True)
def _clean():
    """Start with nothing installed and no kept contexts, and restore this state after the test."""
    textmap = propagate.get_global_textmap()
    apps.kept.clear()
    yield
    uninstall()
    propagate.set_global_textmap(textmap)
    assert otel_context.get_current() == Context(), "a context is still attached to the thread"


def environ(token=None, **parts):
    """Return an environ as a server creates it."""
    credentials = {} if token is None else {"HTTP_AUTHORIZATION": f"Bearer {token}"}
    return {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/",
        "SERVER_NAME": "a",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        **credentials,
        **parts,
    }


def start_response(status, headers, exc_info=None):
    """Accept a status and headers."""


def middleware(app, **settings):
    return TokenRelayMiddleware(app, Settings(**settings))


def streaming(environ, start_response):
    start_response("200 OK", [])
    apps.keep()
    return apps.pieces()


def listing(environ, start_response):
    start_response("200 OK", [])
    return [apps.keep().encode()]


def read(app, environment):
    """Serve one request as a server does, and return the response body."""
    body = app(environment, start_response)
    try:
        return b"".join(body).decode()
    finally:
        close = getattr(body, "close", None)
        if close is not None:
            close()


def test_each_request_on_one_thread_has_its_own_token():
    """Each request on a thread has its own token, and the previous request's token does not remain."""
    app = middleware(listing)

    assert [read(app, environ(token)) for token in (A, None, B, "x y", f"{A}, Bearer {B}")] == [A, NONE, B, NONE, NONE]


@pytest.mark.parametrize("app", [listing, streaming], ids=["list", "stream"])
def test_the_context_of_a_request_relays_nothing_afterwards(app):
    """A request's context relays nothing after the response, because the lease has ended."""
    assert set(read(middleware(app), environ(A)).split()) == {A}

    assert apps.report() == ENDED


@pytest.mark.parametrize("place", ["call", "stream", "close"])
def test_an_exception_is_propagated_unchanged(place):
    """An exception at any point is propagated unchanged, the lease ends, and no context remains attached to the
    thread.
    """
    error = apps.Boom()

    class Body:
        def __iter__(self):
            yield b""
            if place == "stream":
                raise error

        def close(self):
            apps.keep()
            if place == "close":
                raise error

    def app(environ, start_response):
        apps.keep()
        if place == "call":
            raise error
        return Body()

    with pytest.raises(apps.Boom) as raised:
        read(middleware(app), environ(A))

    assert raised.value is error
    assert set(apps.report().strip("[]").split("], [")) == {'"none", "lease_ended"'}


def test_two_streams_on_one_thread_are_separate():
    """Each step of a stream runs in its own context, so a server can alternate between two responses on one thread."""
    app = middleware(streaming)
    bodies = [app(environ(token), start_response) for token in (A, B, None)]

    pieces = [[next(body).decode().strip() for body in bodies] for _ in range(3)]

    assert pieces == [[A, B, NONE]] * 3
    for body in bodies:
        body.close()


@pytest.mark.parametrize("contrib", [False, True], ids=["ours", "contrib-within"])
@pytest.mark.parametrize("steps", [0, 1], ids=["unread", "half-read"])
@pytest.mark.parametrize("ending", ["closed", "forgotten"])
def test_a_body_that_is_not_read_completely_leaves_no_token(ending, steps, contrib):
    """A body that is closed early, or dropped without being closed, leaves no lease or context open."""
    propagate.set_global_textmap(TokenRelayPropagator(Settings()))
    inner = OpenTelemetryMiddleware(streaming, tracer_provider=apps.recording_provider()) if contrib else streaming
    body = middleware(inner)(environ(A), start_response)
    for _ in range(steps):
        assert next(body).decode().strip() == A
    # OpenTelemetry's middleware is a generator, which does not call the application until the body is read.
    if ending == "closed":
        body.close()
    del body
    gc.collect()

    assert otel_context.get_current() == Context()
    assert apps.seen() == NONE
    assert apps.report() in (ENDED, "[]")


def test_close_of_the_body_has_the_token():
    """The body's `close` method, in which frameworks run code at the end of a request, sees the token."""
    seen = []

    class Body:
        def __iter__(self):
            return iter([b"x"])

        def close(self):
            seen.append(apps.keep())

    read(middleware(lambda *_: Body()), environ(A))

    assert seen == [A]
    assert apps.report() == ENDED


@pytest.mark.parametrize("body", [[b"x"], (b"x",), b"x"], ids=["list", "tuple", "bytes"])
def test_a_body_without_code_is_passed_on_unchanged(body):
    """A body of a type that servers recognize, and that runs no code, is passed on unchanged."""
    assert middleware(lambda *_: body)(environ(A), start_response) is body


def test_a_file_wrapper_is_passed_on_unchanged():
    """A file wrapper is passed on unchanged, so the server can recognize it and send the file directly."""

    def app(environ, start_response):
        return environ["wsgi.file_wrapper"](io.BytesIO(b"file"))

    body = middleware(app)(environ(A, **{"wsgi.file_wrapper": FileWrapper}), start_response)

    assert type(body) is FileWrapper


class Sequence:
    """A body that has a length but is not a list."""

    def __len__(self):
        return 1

    def __iter__(self):
        yield apps.seen().encode()


@pytest.mark.parametrize("body", [lambda: [apps.seen().encode()], Sequence], ids=["list", "sequence"])
def test_wsgiref_computes_the_content_length(body):
    """wsgiref computes the content length of a one-piece body, as it does without the boundary."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return body()

    with serve_wsgi(middleware(app)) as port:
        response = get(port, "/", A)

    assert (response.text, response.headers["Content-Length"]) == (A, str(len(A)))


def test_a_stream_has_no_length():
    """The boundary does not add a length to a stream."""
    body = middleware(streaming)(environ(A), start_response)

    assert not hasattr(body, "__len__")
    body.close()


def test_the_write_callable_works():
    """The legacy `write` callable works with the boundary."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])(apps.seen().encode())
        return []

    with serve_wsgi(middleware(app)) as port:
        assert get(port, "/", A).text == A


@pytest.mark.parametrize("linger", [0, 60], ids=["no-linger", "linger"])
def test_a_reused_environ_is_a_new_request(linger):
    """An environ that a server reuses is a new request, even if the previous lease has not ended."""
    app = middleware(listing, linger=linger)
    same = environ(A)

    saw = [read(app, same)]
    same["HTTP_AUTHORIZATION"] = f"Bearer {B}"
    saw += [read(app, same)]
    with use_token(None):
        saw += [read(app, same)]
    del same["HTTP_AUTHORIZATION"]
    saw += [read(app, same)]

    assert saw == [A, B, B, NONE]


@pytest.mark.parametrize("inner", [None, B], ids=["removed", "exchanged"])
def test_credentials_that_a_middleware_changes_are_used(inner):
    """The boundary uses the current header, because a gateway can remove or replace it or send a sub-request."""

    def gateway(environment, start_response):
        inward = {**environment, **environ(inner)}
        if inner is None:
            inward.pop("HTTP_AUTHORIZATION")
        return [read(middleware(listing), inward).encode(), b" ", apps.seen().encode()]

    assert read(middleware(gateway), environ(A)).split() == [inner or NONE, A]


def test_a_thread_with_another_requests_context_serves_each_request_with_its_own_token():
    """A worker that starts in A's context serves B's request with B's token while A's request is open."""

    def app_of_b(environment, start_response):
        stale = contexts[0]
        token = otel_context.attach(stale)
        try:
            return [read(middleware(listing), environment).encode()]
        finally:
            otel_context.detach(token)

    contexts = []
    responses = []

    def app_of_a(environment, start_response):
        contexts.append(otel_context.get_current())
        thread = threading.Thread(target=lambda: responses.append(read(middleware(app_of_b), environ(B))))
        thread.start()
        thread.join()
        return [apps.seen().encode()]

    assert read(middleware(app_of_a), environ(A)) == A
    assert responses == [B]


@pytest.mark.parametrize("bound", [None, B], ids=["hidden", "exchanged"])
def test_a_token_bound_explicitly_in_between_is_used(bound):
    """A token that `use_token` binds around the inner application takes precedence."""

    def between(environment, start_response):
        with use_token(bound):
            return [read(middleware(listing), environment).encode()]

    assert read(middleware(between), environ(A)) == (bound or NONE)


@pytest.mark.parametrize("place", ["outside", "inside", "both", "installed"])
@pytest.mark.parametrize("framework", ["plain-middleware", "flask", "falcon"])
def test_opentelemetry_middleware_works_in_any_position(framework, place):
    """Each request has its own token, and its lease ends, regardless of the position of OpenTelemetry's middleware."""
    if place == "installed" or framework != "plain-middleware":
        install(Settings())
    else:
        propagate.set_global_textmap(TokenRelayPropagator(Settings()))
    inner = apps.plain_wsgi() if framework == "plain-middleware" else apps.WSGI_APPS[framework]()
    app = middleware(inner) if place in ("inside", "both") else inner
    app = OpenTelemetryMiddleware(app, tracer_provider=apps.recording_provider())
    app = middleware(app) if place in ("outside", "both") else app

    with serve_wsgi(app) as port:
        responses = [get(port, "/keep", token).text for token in (A, None, B)]
        streams = [set(get(port, "/stream", token).text.split()) for token in (A, None, B)]

    assert responses == [A, NONE, B]
    assert streams == [{A}, {NONE}, {B}]
    assert apps.report_when_over() == '[["none", "lease_ended"], ["none", "no_token"], ["none", "lease_ended"]]'


def test_flask_streams_see_the_token_with_and_without_its_context():
    """Flask streams see the token with and without Flask's request context."""
    install(Settings())
    with serve_wsgi(apps.flask()) as port:
        for path in ("/stream", "/stream-with-context"):
            assert set(get(port, path, A).text.split()) == {A}


def test_flask_with_another_middleware_is_covered():
    """A Flask application whose ``wsgi_app`` is wrapped by a middleware is covered."""
    install(Settings())
    app = apps.flask()
    outer = []
    wsgi_app = app.wsgi_app

    def around(environment, start_response):
        outer.append(apps.seen())
        return wsgi_app(environment, start_response)

    app.wsgi_app = around
    with serve_wsgi(app) as port:
        assert [get(port, "/token", token).text for token in (A, None)] == [A, NONE]

    assert outer == [A, NONE]


# Each change that a middleware between two boundaries can make to an environ, with the owner of the resulting token.


def swapped(environment):
    environment["HTTP_AUTHORIZATION"] = f"Bearer {B}"
    return environment


def dropped(environment):
    del environment["HTTP_AUTHORIZATION"]
    return environment


def doubled(environment):
    environment["HTTP_AUTHORIZATION"] += f", Bearer {B}"
    return environment


def equal_value(environment):
    environment["HTTP_AUTHORIZATION"] = "".join(["Bearer ", A])
    return environment


def more_headers(environment):
    environment["HTTP_X_REQUEST_ID"] = "1"
    return environment


def copied(environment):
    return dict(environment)


def exchanged(environment):
    return {**environment, "HTTP_AUTHORIZATION": f"Bearer {B}"}


def dropped_in_copy(environment):
    return {key: value for key, value in environment.items() if key != "HTTP_AUTHORIZATION"}


CHANGES = {
    "value swapped in place": (swapped, B),
    "dropped in place": (dropped, None),
    "second credentials": (doubled, None),
    "equal value": (equal_value, A),
    "another header": (more_headers, A),
    "copied environ": (copied, A),
    "copied environ, exchanged": (exchanged, B),
    "copied environ, dropped": (dropped_in_copy, None),
}
each_change = pytest.mark.parametrize(("change", "user"), CHANGES.values(), ids=CHANGES.keys())


def by_hand(app):
    return TokenRelayMiddleware(app, Settings())


def by_server(app):
    install(Settings())
    return EnclosedApp(app)


def by_hook(app):
    """Return an application of a class that has a hook."""

    class Framework:
        def __call__(self, environment, start_response):
            return app(environment, start_response)

    patch(Framework, Runtime(Settings()), Patches())
    return Framework()


PLACES = [by_hand, by_server, by_hook]
each_outer = pytest.mark.parametrize("outer", PLACES, ids=lambda place: f"outer-{place.__name__}")
each_inner = pytest.mark.parametrize("inner", PLACES, ids=lambda place: f"inner-{place.__name__}")


def extracted(environment):
    """Return the token that instrumentation binds for the environ."""
    token = current_token(TokenRelayPropagator(Settings()).extract(environment, getter=wsgi_getter))
    return NONE if token is None else token.reveal()


@each_change
@each_outer
@each_inner
def test_an_inner_boundary_uses_what_the_environ_contains_now(outer, inner, change, user):
    """The inner boundary uses the environ's current credentials, and the outer boundary's token is restored
    afterward.
    """
    innermost = inner(listing)

    def between(environment, start_response):
        return [read(innermost, change(environment)).encode(), b" ", apps.seen().encode()]

    assert read(outer(between), environ(A)).split() == [user or NONE, A]


@each_change
@each_outer
def test_extract_uses_what_the_environ_contains_now(outer, change, user):
    """An environ without credentials keeps the binding in its request's thread and binds no token elsewhere."""
    seen = []

    def app(environment, start_response):
        environment = change(environment)
        seen.append(extracted(environment))
        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: seen.append(context.run(extracted, environment)))
        thread.start()
        thread.join()
        return []

    read(outer(app), environ(A))

    here = A if user is None and change is not doubled else user or NONE
    assert seen == [here, user or NONE]


@each_outer
@each_inner
def test_the_environ_of_another_request_has_its_own_token(outer, inner):
    """A's environ has A's token even while it is served in the context of B's request."""
    innermost = inner(listing)
    both = []
    saw = []

    def between(environment, start_response):
        both.append(environment)
        if len(both) == 1:
            read(outer(between), environ(B))
        else:
            saw.extend([read(innermost, both[0]), read(innermost, both[1]), extracted(both[0]), apps.seen()])
        return []

    read(outer(between), environ(A))

    assert saw == [A, B, A, B]


@each_outer
@each_inner
def test_after_the_response_an_environ_is_a_new_request(outer, inner):
    """An environ that is used after the response is a new request with its own lease, and the kept context relays
    nothing.
    """
    environment = environ(A)
    contexts = []

    def app(environment, start_response):
        contexts.append(otel_context.get_current())
        return [apps.seen().encode()]

    assert read(outer(app), environment) == A
    boundary = environment[BOUNDARY_KEY]
    token = otel_context.attach(contexts[0])
    try:
        assert not boundary.encloses(environment)
        assert apps.hop() == (None, "lease_ended")
        assert read(inner(app), environment) == A
        assert apps.hop() == (None, "lease_ended")
    finally:
        otel_context.detach(token)

    assert environment[BOUNDARY_KEY] is not boundary


@each_outer
@each_inner
def test_an_unchanged_environ_is_joined_without_being_read_again(outer, inner, monkeypatch):
    """The inner boundary and `extract` compare an unchanged environ only once."""
    innermost = inner(listing)
    located = []
    locate = wsgi._locate_in
    monkeypatch.setattr(wsgi, "_locate_in", lambda *args: located.append(1) or locate(*args))

    def app(environment, start_response):
        return [read(innermost, environment).encode(), b" ", extracted(environment).encode()]

    assert read(outer(app), environ(A)).split() == [A, A]
    assert located == [1]


@pytest.fixture
def verifying(issuer):
    """Install verification of the issuer's tokens, except on two paths."""
    build_authenticator.cache_clear()
    excluded = ("/healthz", "/\N{LATIN SMALL LETTER E WITH ACUTE}", "/public/*")
    install(settings_for(issuer, verify_exclude=excluded, verify_streams="exp"))
    yield issuer
    uninstall()
    build_authenticator.cache_clear()


def status_of(path="/", token=None, **parts):
    """Return the status of the response to one request; the application responds with 204."""
    statuses = []

    def app(environment, start):
        start("204 No Content", [])
        return []

    EnclosedApp(app)(environ(token, PATH_INFO=path, **parts), lambda status, headers: statuses.append(status[:3]))
    return int(statuses[0])


def test_a_rejected_request_gets_the_error_response(verifying):
    """The response to HEAD has the same headers as the response to GET, but no body."""
    responses = []

    def refused(method):
        return EnclosedApp(listing)(environ(REQUEST_METHOD=method), lambda *response: responses.append(response))

    body, empty = refused("GET"), refused("HEAD")
    (status, headers), head = responses
    assert status == "401 Unauthorized"
    assert dict(headers)["Content-Length"] == str(len(body[0])) != "0"
    assert dict(headers)["WWW-Authenticate"].startswith("Bearer")
    assert (head, empty) == ((status, headers), [b""])
    assert status_of(token=make_token(claims(verifying.url))) == 204


def test_a_rejected_request_is_recorded_as_the_server_received_it(verifying, monkeypatch):
    """The span of a rejected request has its method, path, and status, and continues the caller's trace."""
    traceparent = "00-aaaabbbbccccddddeeeeffff00001111-2222333344445555-01"
    with recording(monkeypatch) as telemetry:
        assert status_of("/me", SCRIPT_NAME="/api", REQUEST_METHOD="DELETE", HTTP_TRACEPARENT=traceparent) == 401
        (span,) = telemetry.server_spans

    assert (span.name, span.attributes["url.path"], span.attributes["http.scheme"]) == ("DELETE", "/api/me", "http")
    assert span.attributes["http.status_code"] == 401
    assert f"{span.context.trace_id:x}" == "aaaabbbbccccddddeeeeffff00001111"


def test_exclusions_apply_to_the_decoded_path_below_the_mount_point(verifying):
    """An exclusion does not apply if a header might have set the mount point."""
    assert status_of("/healthz") == 204
    assert status_of("/\u00c3\u00a9") == 204
    assert status_of("/e") == status_of("") == 401
    assert status_of("/healthz", SCRIPT_NAME="/api") == 204
    assert status_of("/healthz", SCRIPT_NAME="/api", HTTP_X_SCRIPT_NAME="/api") == 401


def test_a_preflight_request_needs_no_token(verifying):
    """A request with a body is not a preflight request."""
    preflight = {"HTTP_ORIGIN": "https://a.example", "HTTP_ACCESS_CONTROL_REQUEST_METHOD": "PUT"}
    assert status_of(REQUEST_METHOD="OPTIONS", **preflight) == 204
    assert status_of(REQUEST_METHOD="OPTIONS", CONTENT_LENGTH="5", **preflight) == 401
    assert status_of(REQUEST_METHOD="OPTIONS") == 401


def test_an_enclosed_application_has_the_attributes_of_the_original():
    """An application is not enclosed a second time."""
    enclosed = wsgi.enclose(listing)
    assert wsgi.enclose(enclosed) is enclosed
    assert enclosed.__name__ == "listing"
    with pytest.raises(AttributeError, match="missing"):
        _ = enclosed.missing


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [("text/event-stream", ""), ("Text/Event-Stream; charset=utf-8", ""), ("text/plain", "ab"), (None, "ab")],
)
def test_an_event_stream_ends_with_its_token(verifying, monkeypatch, content_type, expected):
    """Other responses continue, and the application's iterable is closed in both cases."""
    monkeypatch.setattr(seconds_left, "__defaults__", (lambda: time.time() + 7200,))
    closed = []

    class Body:
        def __iter__(self):
            return iter((b"a", b"b"))

        def close(self):
            closed.append(True)

    def app(environment, start):
        start("200 OK", [] if content_type is None else [("Content-Type", content_type)])
        return Body()

    assert read(EnclosedApp(app), environ(make_token(claims(verifying.url)))) == expected
    assert closed == [True]
