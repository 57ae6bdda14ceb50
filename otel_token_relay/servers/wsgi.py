"""The boundary for WSGI applications: Flask, Django, Falcon and more.

Source: PEP 3333.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from functools import partial
from http import HTTPStatus
from types import ModuleType
from typing import Any, cast

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from otel_token_relay.authentication import Authenticator, RequestPath
from otel_token_relay.patching import Function, Patches
from otel_token_relay.runtime import Runtime, Terms, TermsInForce
from otel_token_relay.servers.boundary import BOUNDARY_KEY, Boundary
from otel_token_relay.settings import Settings

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]


class TokenRelayMiddleware:
    """Bind each request's token around a WSGI application, if the application's framework is not hooked.

    Make this the outermost middleware. Inner boundaries reuse its boundary.

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
    """Put the boundary around a method of *owner* that accepts environ and start_response."""

    def build(original: Function) -> Function:
        def application(self: Any, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
            if runtime.relay.is_closed:
                return original(self, environ, start_response)  # type: ignore[no-any-return]
            return serve(lambda e, s: original(self, e, s), environ, start_response, runtime.terms)

        return application

    patches.wrap(owner, name, build)


def patcher(class_name: str, *methods: str) -> Callable[[ModuleType, Runtime, Patches], None]:
    """Return a hook that patches the class with this name in a module."""

    def patch_class(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
        for method in methods or ("__call__",):
            patch(getattr(module, class_name), runtime, patches, method)

    return patch_class


def serve(
    app: App,
    environ: Environ,
    start_response: StartResponse,
    terms: Terms,
) -> Iterable[bytes]:
    """Bind this request's token, or none, and run *app* if the authenticator accepts the request.

    The token stays bound while the response is streamed.
    """
    settings, authenticator = terms

    def values_of(name: str) -> list[str]:
        value = environ.get("HTTP_" + name.upper().replace("-", "_"))
        return [] if value is None else [value]

    outer: Boundary | None = environ.get(BOUNDARY_KEY)
    if outer is not None and outer.still_applies_to(values_of):
        return _enter(app, environ, start_response, outer, authenticator)

    environ[BOUNDARY_KEY] = boundary = Boundary(values_of, settings)
    attached = otel_context.attach(boundary.context())
    try:
        body = _enter(app, environ, start_response, boundary, authenticator)
        context = otel_context.get_current()
    except BaseException:
        boundary.close()
        raise
    finally:
        otel_context.detach(attached)
    file_wrapper = environ.get("wsgi.file_wrapper")
    if type(body) in (list, tuple, bytes) or (isinstance(file_wrapper, type) and isinstance(body, file_wrapper)):
        # No more application code runs, and servers recognize these types: they derive Content-Length from
        # lists, tuples and bytes, and pass the file wrapper to sendfile.
        boundary.close()
        return body
    kind = _SizedBody if hasattr(body, "__len__") else _Body
    return kind(body, boundary, context)


def _enter(
    app: App, environ: Environ, start_response: StartResponse, boundary: Boundary, authenticator: Authenticator | None
) -> Iterable[bytes]:
    error_response = None if authenticator is None else boundary.check(authenticator, _path(environ))
    if error_response is None:
        return app(environ, start_response)
    phrase = HTTPStatus(error_response.status).phrase
    start_response(f"{error_response.status} {phrase}", list(error_response.headers))
    # RFC 9110, section 9.3.2: HEAD gets the headers of GET, without a body.
    # The body is one empty chunk, because Hypercorn does not start a response before its first chunk.
    return [b"" if environ.get("REQUEST_METHOD") == "HEAD" else error_response.body]


def _path(environ: Environ) -> RequestPath:
    """Return the decoded path. WSGI passes the path's bytes as Latin-1 (PEP 3333, "Unicode Issues")."""
    path: str = environ.get("PATH_INFO", "")
    whole = _as_text(environ.get("SCRIPT_NAME", "") + path)
    # Django and Werkzeug route an empty path like the root path.
    return RequestPath(_as_text(path) or "/", whole, partial(_header_values, environ))


def _as_text(path: str) -> str:
    return path.encode("latin-1", "replace").decode("utf-8", "replace")


def _header_values(environ: Environ) -> Iterator[str]:
    return (value for name, value in environ.items() if name.startswith("HTTP_") and isinstance(value, str))


class _Body:
    """A streamed response. Each step runs in the request's context, which is detached after the step.

    The context is kept from step to step, because instrumentation attaches its span in the first step and
    detaches it in the last one. Streams that a server interleaves do not see each other's contexts.
    """

    def __init__(self, body: Iterable[bytes], boundary: Boundary, context: Context) -> None:
        self._body = body
        self._iterator: Iterator[bytes] | None = None
        self._boundary = boundary
        self._context = context

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return cast("bytes", self._step(self._next))

    def _next(self) -> bytes:
        if self._iterator is None:
            self._iterator = iter(self._body)
        return next(self._iterator)

    def close(self) -> None:
        """Close the application's iterable and end the lease (PEP 3333, "Specification Details")."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                self._step(close)
        finally:
            self._boundary.close()

    def __del__(self) -> None:
        # This is for servers that do not call `close`. Releasing a generator ends it, and instrumentation that
        # detaches its span at that point would attach our context to the thread.
        if otel_context is None:  # at shutdown, after the interpreter has cleared this module
            return
        self._boundary.close()
        attached = otel_context.attach(self._context)
        try:
            del self._iterator, self._body
        finally:
            otel_context.detach(attached)

    def _step(self, step: Callable[[], Any]) -> Any:
        attached = otel_context.attach(self._context)
        try:
            return step()
        finally:
            self._context = otel_context.get_current()
            otel_context.detach(attached)


class _SizedBody(_Body):
    """A response with a known number of chunks, from which a server may derive Content-Length.

    Source: PEP 3333, "Handling the Content-Length Header".
    """

    def __len__(self) -> int:
        return len(cast("Sized", self._body))
