"""The boundary for WSGI applications, such as Flask, Django, and Falcon.

Source: PEP 3333.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from functools import lru_cache, partial
from http import HTTPStatus
from types import ModuleType
from typing import Any, Final, cast

from opentelemetry.context import Context

from otel_token_relay import refusals
from otel_token_relay import runtime as in_force
from otel_token_relay.authentication import Authenticator, RequestPath
from otel_token_relay.boundary import BOUNDARY_KEY, Boundary
from otel_token_relay.context import TOKEN_KEY
from otel_token_relay.credentials import Source
from otel_token_relay.otel import attach, detach, get_current
from otel_token_relay.patching import Function, Patches
from otel_token_relay.runtime import Runtime, Terms, TermsInForce
from otel_token_relay.settings import Settings
from otel_token_relay.stream_limits import is_event_stream, limits_streams, seconds_left

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]

# The environ key that indicates that an outer boundary will end the response.
_ENDING_KEY: Final = "otel_token_relay.ends_with_token"


class TokenRelayMiddleware:
    """WSGI middleware that binds each request's token. Use this middleware if the application's framework is not
    hooked.

    Make this the outermost middleware. Inner boundaries reuse this middleware's boundary.

    Args:
        app: The WSGI application.
        settings: ``None`` to use the installed settings or, if there are none, the environment variables.
    """

    def __init__(self, app: App, settings: Settings | None = None) -> None:
        self.app = app
        self._terms = TermsInForce(settings)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        return serve(self.app, environ, start_response, self._terms())


def patch(owner: type, runtime: Runtime, patches: Patches, name: str = "__call__") -> None:
    """Enclose a method of *owner* in the boundary. The method must accept ``environ`` and ``start_response``."""
    relay = runtime.relay

    def build(original: Function) -> Function:
        def application(self: Any, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
            boundary: Boundary | None = environ.get(BOUNDARY_KEY)
            authenticator = runtime.terms.authenticator
            if relay.is_closed or (
                boundary is not None
                and boundary.encloses(environ)
                and (authenticator is None or boundary.is_verified_for(authenticator, _whole_path(environ)))
            ):
                return original(self, environ, start_response)  # type: ignore[no-any-return]
            return serve(partial(original, self), environ, start_response, runtime.terms)

        return application

    patches.wrap(owner, name, build)


class EnclosedApp:
    """A wrapper that runs an application inside a boundary if the relay is installed when the server calls the wrapper.

    Attribute lookups are forwarded to the application.
    """

    def __init__(self, app: App) -> None:
        self.__wrapped__ = app

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        installed = in_force.installed
        if installed is None:
            return self.__wrapped__(environ, start_response)
        return serve(self.__wrapped__, environ, start_response, installed.terms, is_at_server=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)


def enclose(app: App) -> EnclosedApp:
    """Enclose an application in a boundary. An application that is already enclosed is returned unchanged."""
    return app if isinstance(app, EnclosedApp) else EnclosedApp(app)


def patcher(class_name: str, *methods: str) -> Callable[[ModuleType, Runtime, Patches], None]:
    """Return a hook that encloses the application class named *class_name* in the boundary."""

    def patch_class(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
        for method in methods or ("__call__",):
            patch(getattr(module, class_name), runtime, patches, method)

    return patch_class


def serve(
    app: App,
    environ: Environ,
    start_response: StartResponse,
    terms: Terms,
    is_at_server: bool = False,
) -> Iterable[bytes]:
    """Bind this request's token, or ``None``. Run *app* if the authenticator accepts the request.

    The token remains bound while the response is being streamed.
    """
    settings, authenticator = terms
    if limits_streams(settings, authenticator):
        app = partial(_serve_until_expiry, app, settings)
    outer: Boundary | None = environ.get(BOUNDARY_KEY)
    if outer is not None and (outer.encloses(environ) or outer.still_applies_to(partial(_locate, environ))):
        return _enter(app, environ, start_response, outer, authenticator, is_at_server)

    environ[BOUNDARY_KEY] = boundary = _WsgiBoundary(environ, settings)
    attached = attach(boundary.context())
    try:
        body = _enter(app, environ, start_response, boundary, authenticator, is_at_server)
        context = get_current()
    except BaseException:
        boundary.close()
        raise
    finally:
        detach(attached)
    file_wrapper = environ.get("wsgi.file_wrapper")
    if type(body) in (list, tuple, bytes) or (isinstance(file_wrapper, type) and isinstance(body, file_wrapper)):
        # No more application code will run, so return the body unchanged. Servers recognize these types: they derive
        # Content-Length from lists, tuples, and bytes, and they pass the file wrapper to sendfile.
        boundary.close()
        return body
    kind = _SizedBody if hasattr(body, "__len__") else _Body
    return kind(body, boundary, context)


def _serve_until_expiry(
    app: App, settings: Settings, environ: Environ, start_response: StartResponse
) -> Iterable[bytes]:
    """Run *app*. If the response is an event stream, end it when the request's token expires."""
    seconds = seconds_left(environ[BOUNDARY_KEY], settings)
    if seconds is None or environ.get(_ENDING_KEY):
        return app(environ, start_response)
    environ[_ENDING_KEY] = True
    is_stream: list[bool] = []

    def watch(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
        types = [value for name, value in headers if name.lower() == "content-type"]
        is_stream[:] = [bool(types) and is_event_stream(types[0])]
        return start_response(status, headers, *more)

    body = app(environ, watch)
    if is_stream == [False] or type(body) in (list, tuple, bytes):
        return body
    return _EndingBody(body, is_stream, time.monotonic() + seconds)


class _EndingBody:
    """A response body. An event stream ends at the first step after *ends_at* on the monotonic clock.

    A step cannot be interrupted while it waits for the next event.
    """

    def __init__(self, body: Iterable[bytes], is_stream: list[bool], ends_at: float) -> None:
        self._body = body
        self._iterator: Iterator[bytes] | None = None
        self._is_stream = is_stream
        self._ends_at = ends_at

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._iterator is None:
            self._iterator = iter(self._body)
        self._check()
        chunk = next(self._iterator)
        self._check()  # the step might have taken a long time
        return chunk

    def _check(self) -> None:
        if self._is_stream == [True] and time.monotonic() >= self._ends_at:
            raise StopIteration

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            close()


class _WsgiBoundary(Boundary):
    """The boundary for one WSGI environ."""

    __slots__ = ("_keys", "_values")

    def __init__(self, environ: Environ, settings: Settings) -> None:
        self._keys = keys = _keys(settings.source_headers)
        self._values = values = [*map(environ.get, keys)]
        super().__init__(_locate_in(values, settings), partial(_lines_of, environ), settings)

    def encloses(self, request: Any) -> bool:
        """Return whether the environ's source headers and the current context still belong to this request."""
        return (
            [*map(request.get, self._keys)] == self._values
            and self._is_responding
            and get_current().get(TOKEN_KEY, self) is self.token
        )


@lru_cache(maxsize=32)
def _keys(names: Sequence[str]) -> tuple[str, ...]:
    """Return the environ keys for the headers in *names*."""
    return tuple("HTTP_" + name.upper().replace("-", "_") for name in names)


def _locate(environ: Environ, settings: Settings) -> Source:
    """Return the header that contains the credentials; see `otel_token_relay.credentials.locate`."""
    return _locate_in([*map(environ.get, _keys(settings.source_headers))], settings)


def _locate_in(values: Sequence[str | None], settings: Settings) -> Source:
    """Return the header that contains the credentials, given the values of all source headers."""
    for name, value in zip(settings.source_headers, values, strict=True):
        if value is not None:
            return name, (value,)
    return None


def _enter(
    app: App,
    environ: Environ,
    start_response: StartResponse,
    boundary: Boundary,
    authenticator: Authenticator | None,
    is_at_server: bool,
) -> Iterable[bytes]:
    error_response = None if authenticator is None else boundary.check(authenticator, _path(environ))
    if error_response is None:
        return app(environ, start_response)
    refusals.record(error_response, get_current(), partial(_describe, environ), is_at_server=is_at_server)
    phrase = HTTPStatus(error_response.status).phrase
    start_response(f"{error_response.status} {phrase}", list(error_response.headers))
    # A response to HEAD has the same headers as a response to GET, but no body (RFC 9110, section 9.3.2). Return a
    # single empty chunk, because Hypercorn does not start a response before the first chunk.
    return [b"" if environ.get("REQUEST_METHOD") == "HEAD" else error_response.body]


def _lines_of(environ: Environ, name: str) -> list[str]:
    """Return a header's values as a list. WSGI servers combine all lines of a header into a single value."""
    # An empty value is equivalent to a missing value (PEP 3333).
    keys = ("CONTENT_LENGTH",) if name == "content-length" else _keys((name,))
    return [value for value in map(environ.get, keys) if value]


def _describe(environ: Environ) -> refusals.HttpRequest:
    path, scheme = _whole_path(environ), environ["wsgi.url_scheme"]
    return refusals.HttpRequest(environ["REQUEST_METHOD"], path, scheme, partial(_lines_of, environ))


def _path(environ: Environ) -> RequestPath:
    """Return the decoded path. WSGI decodes the path's bytes as Latin-1 (PEP 3333, "Unicode Issues")."""
    # Django and Werkzeug treat an empty path as the root path.
    routed = _as_text(environ.get("PATH_INFO", "")) or "/"
    return RequestPath(
        routed,
        _whole_path(environ),
        partial(_header_values, environ),
        method=environ.get("REQUEST_METHOD", ""),
        values_of=partial(_lines_of, environ),
    )


def _whole_path(environ: Environ) -> str:
    return _as_text(environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""))


def _as_text(path: str) -> str:
    return path.encode("latin-1", "replace").decode("utf-8", "replace")


def _header_values(environ: Environ) -> Iterator[str]:
    return (value for name, value in environ.items() if name.startswith("HTTP_") and isinstance(value, str))


class _Body:
    """A streamed response. Each step runs in the request's context, which is detached after the step.

    The context is preserved between steps, because instrumentation attaches its span in the first step and detaches it
    in the last step. The contexts of interleaved streams remain separate.
    """

    def __init__(self, body: Iterable[bytes], boundary: Boundary, context: Context) -> None:
        self._body = body
        self._iterator: Iterator[bytes] | None = None
        self._boundary = boundary
        self._context = context

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        attached = attach(self._context)
        try:
            if self._iterator is None:
                self._iterator = iter(self._body)
            return next(self._iterator)
        finally:
            self._context = get_current()
            detach(attached)

    def close(self) -> None:
        """Close the application's iterable and end the lease (PEP 3333, "Specification Details")."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                attached = attach(self._context)
                try:
                    close()
                finally:
                    self._context = get_current()
                    detach(attached)
        finally:
            self._boundary.close()

    def __del__(self) -> None:
        # Some servers do not call `close`. Deleting a generator closes it, and instrumentation that detaches
        # its span at that point would attach our context to the thread.
        if attach is None:  # at shutdown, the interpreter might have cleared this module already
            return
        self._boundary.close()
        attached = attach(self._context)
        try:
            del self._iterator, self._body
        finally:
            detach(attached)


class _SizedBody(_Body):
    """A response with a known number of chunks, from which a server can derive Content-Length.

    Source: PEP 3333, "Handling the Content-Length Header".
    """

    def __len__(self) -> int:
        return len(cast("Sized", self._body))
