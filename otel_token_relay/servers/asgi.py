"""The boundary for ASGI applications, such as FastAPI, Starlette, Django, and Falcon.

Source: ASGI specification 3.0 for HTTP and WebSocket connection scopes.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from functools import partial
from itertools import compress, repeat
from operator import eq, itemgetter, methodcaller
from types import ModuleType
from typing import Any, Final

from otel_token_relay import refusals
from otel_token_relay import runtime as in_force
from otel_token_relay.authentication import Authenticator, ErrorResponse, RequestPath
from otel_token_relay.boundary import BOUNDARY_KEY, Boundary
from otel_token_relay.context import TOKEN_KEY, bind
from otel_token_relay.credentials import Source, locate
from otel_token_relay.otel import attach, detach, get_current
from otel_token_relay.patching import Function, Patches
from otel_token_relay.runtime import Runtime, Terms, TermsInForce
from otel_token_relay.settings import Settings
from otel_token_relay.stream_limits import POLICY_VIOLATION, Limit, is_event_stream, limits_streams, seconds_left

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Route = Callable[[Scope], str | None]

# The scope key that indicates that an outer boundary will end the response.
_ENDING_KEY: Final = "otel_token_relay.ends_with_token"


class TokenRelayMiddleware:
    """ASGI middleware that binds each request's token. Use this middleware if the application's framework is not
    hooked.

    Make this the outermost middleware. Inner boundaries reuse this middleware's boundary.

    Args:
        app: The ASGI 3 application.
        settings: ``None`` to use the installed settings or, if there are none, the environment variables.
    """

    def __init__(self, app: App, settings: Settings | None = None) -> None:
        self.app = app
        self._terms = TermsInForce(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve(self.app, scope, receive, send, self._terms())


def path_without_mount(scope: Scope) -> str | None:
    """Return the path that applications use for routing, without ``root_path``.

    Returns:
        The path, or ``None`` if different applications would derive different paths. Some applications remove the mount
        point only if it consists of whole segments. Other applications remove any matching prefix or every occurrence
        of the mount point.
    """
    path: str = scope.get("path", "")
    mount: str = scope.get("root_path") or ""
    name = mount.strip("/")
    if not name or name not in path:
        return path
    is_segment = mount == f"/{name}" and (path == mount or path.startswith(f"{mount}/"))
    return path[len(mount) :] if is_segment else None


def whole_path(scope: Scope) -> str:
    """Return the full path, which applications without support for mount points use for routing."""
    path: str = scope.get("path", "")
    return path


def patch(owner: type, runtime: Runtime, patches: Patches, route: Route = path_without_mount) -> None:
    """Enclose ``owner.__call__`` in the boundary. The method must accept ``scope``, ``receive``, and ``send``."""
    relay = runtime.relay

    def build(original: Function) -> Function:
        def __call__(self: Any, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
            boundary: Boundary | None = scope.get(BOUNDARY_KEY)
            authenticator = runtime.terms.authenticator
            if relay.is_closed or (
                boundary is not None
                and boundary.encloses(scope)
                and (authenticator is None or boundary.is_verified_for(authenticator, scope.get("path", "")))
            ):
                return original(self, scope, receive, send)  # type: ignore[no-any-return]
            return serve(partial(original, self), scope, receive, send, runtime.terms, route)

        return _as_coroutine_function(__call__)

    patches.wrap(owner, "__call__", build)


def _as_coroutine_function(function: Callable[..., Awaitable[None]]) -> Function:
    """Mark a function that returns a coroutine as a coroutine function, because servers check applications for this
    mark.

    A real coroutine function would create an additional coroutine in each boundary of each request.
    """
    if sys.version_info >= (3, 12):
        import inspect

        return inspect.markcoroutinefunction(function)

    async def __call__(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
        await function(self, scope, receive, send)

    return __call__


class EnclosedApp:
    """A wrapper that runs an application inside a boundary if the relay is installed when the server calls the wrapper.

    Attribute lookups are forwarded to the application.
    """

    def __init__(self, app: App) -> None:
        self.__wrapped__ = app

    def _serve(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        installed = in_force.installed
        if installed is None:
            return self.__wrapped__(scope, receive, send)
        return serve(self.__wrapped__, scope, receive, send, installed.terms, is_at_server=True)

    __call__: Function = _as_coroutine_function(_serve)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)


def enclose(app: App) -> EnclosedApp:
    """Enclose an application in a boundary. An application that is already enclosed is returned unchanged."""
    return app if isinstance(app, EnclosedApp) else EnclosedApp(app)


def patcher(class_name: str, route: Route = path_without_mount) -> Callable[[ModuleType, Runtime, Patches], None]:
    """Return a hook that encloses the application class named *class_name* in the boundary.

    Args:
        class_name: The name of the application class.
        route: A function that returns the path that applications of this class use for routing.
    """

    def patch_class(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
        patch(getattr(module, class_name), runtime, patches, route)

    return patch_class


async def serve(
    app: App,
    scope: Scope,
    receive: Receive,
    send: Send,
    terms: Terms,
    route: Route = path_without_mount,
    is_at_server: bool = False,
) -> None:
    """Bind this request's token, or ``None``, until *app* returns. Run *app* if the authenticator accepts the request.

    Every scope except a ``lifespan`` scope is treated as a request, even if the scope's type is not in the
    specification.
    """
    settings, authenticator = terms
    if scope["type"] == "lifespan":
        await app(scope, receive, send)
        return
    if limits_streams(settings, authenticator):
        app = partial(_serve_until_expiry, app, settings)
    outer: Boundary | None = scope.get(BOUNDARY_KEY)
    if outer is not None and (outer.encloses(scope) or outer.still_applies_to(partial(_locate, scope))):
        if authenticator is None:
            await app(scope, receive, send)
        else:
            await _enter(app, scope, receive, send, outer, authenticator, route, is_at_server)
        return

    scope[BOUNDARY_KEY] = boundary = _AsgiBoundary(scope, settings)
    attached = attach(boundary.context())
    try:
        if boundary.token is not None:
            receive, send = _without_token(receive), _without_token(send)
        if authenticator is None:
            await app(scope, receive, send)
        else:
            await _enter(app, scope, receive, send, boundary, authenticator, route, is_at_server)
    finally:
        boundary.close()
        detach(attached)


class _AsgiBoundary(Boundary):
    """The boundary for one ASGI scope."""

    __slots__ = ("_lines",)

    def __init__(self, scope: Scope, settings: Settings) -> None:
        # Copy the header lines, because middleware can change the scope's own list and the pairs in the list.
        self._lines = lines = _header_lines(scope)
        values_of = _reader(lines)
        super().__init__(locate(values_of, settings), values_of, settings)

    def encloses(self, request: Any) -> bool:
        """Return whether the scope's headers and the current context still belong to this request."""
        # List comparison is fast, because Python compares the elements' identities first, in a single C loop.
        return (
            request.get("headers") == self._lines
            and self._is_responding
            and get_current().get(TOKEN_KEY, self) is self.token
        )


def _header_lines(scope: Scope) -> list[tuple[Any, ...]] | None:
    """Return immutable copies of the header lines, or ``None`` if any line is not a pair.

    The specification allows any iterable for the headers and for each pair. If an iterable can be read only once, the
    scope gets a copy that the application can read.
    """
    headers = scope.get("headers") or ()
    if not isinstance(headers, (list, tuple)):
        scope["headers"] = headers = list(headers)
    try:
        lines = [*map(tuple, headers)]
    except TypeError:
        return None
    if lines != headers and any(not isinstance(pair, (list, tuple)) for pair in headers):
        scope["headers"] = lines.copy()
    return lines


def _locate(scope: Scope, settings: Settings) -> Source:
    """Return the header that contains the credentials; see `otel_token_relay.credentials.locate`."""
    return locate(_reader(_header_lines(scope)), settings)


def _reader(lines: list[tuple[Any, ...]] | None) -> Callable[[str], list[bytes]]:
    """Return a function that returns the values of the header with a given lowercase name.

    The values are not decoded, because `parse_credentials` checks their length first.
    """

    def values_of(name: str) -> list[bytes]:
        if lines is None:
            raise TypeError("a header line is not a pair")
        wanted = name.encode("latin-1")
        # This code runs for every request, and a Python loop would be several times slower.
        names = [*map(_lower, map(_name_of, lines))]
        if wanted not in names:
            return []
        return [line[1] for line in compress(lines, map(eq, names, repeat(wanted)))]

    return values_of


_name_of: Final = itemgetter(0)
_lower: Final = methodcaller("lower")


async def _enter(
    app: App,
    scope: Scope,
    receive: Receive,
    send: Send,
    boundary: Boundary,
    authenticator: Authenticator,
    route: Route,
    is_at_server: bool,
) -> None:
    error_response = await boundary.check_async(authenticator, _path(scope, route))
    if error_response is None:
        await app(scope, receive, send)
    elif scope["type"] == "http":
        refusals.record(error_response, get_current(), partial(_describe, scope), is_at_server=is_at_server)
        # A response to HEAD has the same headers as a response to GET, but no body (RFC 9110, section 9.3.2).
        await _respond("http", send, error_response, b"" if scope.get("method") == "HEAD" else error_response.body)
    elif scope["type"] == "websocket":
        # Send the error response if the server supports HTTP responses to a WebSocket handshake. Otherwise, close the
        # connection before accepting it, which causes the server to respond with 403.
        await receive()
        can_respond = "websocket.http.response" in (scope.get("extensions") or {})
        describe = partial(_describe, scope, None if can_respond else 403)
        refusals.record(error_response, get_current(), describe, is_at_server=is_at_server)
        if can_respond:
            await _respond("websocket.http", send, error_response, error_response.body)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
    else:
        # The response format of an unknown protocol is also unknown. According to the specification, an application
        # rejects a scope by raising an exception.
        raise RuntimeError(f"the application was not called for this scope: {error_response.error}")


async def _serve_until_expiry(app: App, settings: Settings, scope: Scope, receive: Receive, send: Send) -> None:
    """Run *app*. End a long-lived response when the request's token expires."""
    boundary: Boundary = scope[BOUNDARY_KEY]
    seconds = seconds_left(boundary, settings)
    kind = scope["type"]
    if seconds is None or kind not in ("http", "websocket") or _ENDING_KEY in scope:
        await app(scope, receive, send)
        return
    scope[_ENDING_KEY] = True
    limit = Limit(seconds)

    async def watch(message: Message) -> None:
        if kind == "websocket":
            starts, stops = message["type"] == "websocket.accept", message["type"] == "websocket.close"
        else:
            starts = message["type"] == "http.response.start" and is_event_stream(_content_type(message))
            stops = message["type"] == "http.response.body" and not message.get("more_body", False)
        if stops:
            limit.stop()
        await send(message)
        if starts:
            limit.start()

    is_over, _ = await limit.run(partial(app, scope, receive, watch))
    if is_over and kind == "websocket":
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": ""})
    elif is_over:
        await send({"type": "http.response.body", "body": b""})


def _content_type(message: Message) -> str | None:
    values = [value for name, value in message.get("headers") or () if bytes(name).lower() == b"content-type"]
    return bytes(values[0]).decode("latin-1") if values else None


def _values_of(scope: Scope, name: str) -> list[bytes]:
    wanted = name.encode("latin-1")
    return [value for key, value in scope["headers"] if key.lower() == wanted]


def _describe(scope: Scope, status: int | None = None) -> refusals.HttpRequest:
    method = scope["method"] if scope["type"] == "http" else "GET"
    return refusals.HttpRequest(method, scope["path"], scope.get("scheme"), partial(_values_of, scope), status)


def _path(scope: Scope, route: Route) -> RequestPath:
    # Exclusions apply only to HTTP and WebSocket paths, because paths might have a different meaning in other
    # protocols.
    routed = route(scope) if scope["type"] in ("http", "websocket") else None
    return RequestPath(
        routed,
        scope.get("path", ""),
        partial(_header_values, scope),
        method=scope.get("method", "") if scope["type"] == "http" else "",
        values_of=partial(_values_of, scope),
        is_encoded=b"%" in (scope.get("raw_path") or b"").partition(b"?")[0],
    )


def _header_values(scope: Scope) -> Iterator[str]:
    return (value.decode("latin-1") for _, value in scope.get("headers") or ())


async def _respond(kind: str, send: Send, error_response: ErrorResponse, body: bytes) -> None:
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in error_response.headers]
    await send({"type": f"{kind}.response.start", "status": error_response.status, "headers": headers})
    await send({"type": f"{kind}.response.body", "body": body})


def _without_token(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return a function that runs the server's own code without the token.

    In ``receive`` and ``send``, a server can start the connection's next request or register callbacks. The event loop
    later runs such code in the context in which the code was scheduled.
    """

    async def outside(*message: Any) -> Any:
        attached = attach(bind(None, get_current()))
        try:
            return await call(*message)
        finally:
            detach(attached)

    return outside
