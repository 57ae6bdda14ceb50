"""The boundary for ASGI applications: FastAPI, Starlette, Django, Falcon and more.

Source: ASGI specification 3.0, HTTP and WebSocket connection scopes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from functools import partial
from operator import is_
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context

from otel_token_relay.authentication import Authenticator, ErrorResponse, RequestPath
from otel_token_relay.context import with_token
from otel_token_relay.patching import Function, Patches
from otel_token_relay.runtime import Runtime, Terms, TermsInForce
from otel_token_relay.servers.boundary import BOUNDARY_KEY, Boundary
from otel_token_relay.settings import Settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Route = Callable[[Scope], str | None]

# Above this number of header lines, inner boundaries compare the lines instead of reading them again: some servers
# do not limit the number.
_MANY_LINES: Final = 64


class TokenRelayMiddleware:
    """Bind each request's token around an ASGI application, if the application's framework is not hooked.

    Make this the outermost middleware. Inner boundaries reuse its boundary.

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
    """Return the path by which applications route, that is, the path without ``root_path``.

    Returns:
        The path; ``None`` if applications would derive different paths: some remove the mount point only as whole
        segments, some as a prefix, and some wherever it occurs.
    """
    path: str = scope.get("path", "")
    mount: str = scope.get("root_path") or ""
    name = mount.strip("/")
    if not name or name not in path:
        return path
    is_segment = mount == f"/{name}" and (path == mount or path.startswith(f"{mount}/"))
    return path[len(mount) :] if is_segment else None


def whole_path(scope: Scope) -> str:
    """Return the path by which an application routes if it does not support mount points."""
    path: str = scope.get("path", "")
    return path


def patch(owner: type, runtime: Runtime, patches: Patches, route: Route = path_without_mount) -> None:
    """Put the boundary around ``owner.__call__``, which accepts scope, receive and send."""

    def build(original: Function) -> Function:
        async def __call__(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
            if runtime.relay.is_closed:
                await original(self, scope, receive, send)
                return

            # `partial` saves another coroutine: a request passes through several of these wrappers.
            await serve(partial(original, self), scope, receive, send, runtime.terms, route)

        return __call__

    patches.wrap(owner, "__call__", build)


def patcher(class_name: str, route: Route = path_without_mount) -> Callable[[ModuleType, Runtime, Patches], None]:
    """Return a hook that patches the class with this name in a module.

    Args:
        class_name: The name of the application class.
        route: Returns the path that applications of this class use to route requests.
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
) -> None:
    """Bind this request's token, or none, until *app* returns. Run *app* if the authenticator accepts the request.

    Every scope except ``lifespan`` is a request, even if only this server and this application know the scope's
    type.
    """
    settings, authenticator = terms
    if scope["type"] == "lifespan":
        await app(scope, receive, send)
        return
    headers = scope.get("headers") or ()
    if type(headers) is not list and not isinstance(headers, (list, tuple)):
        # The specification allows any iterable, and the application must still be able to read the headers.
        scope["headers"] = headers = list(headers)

    def values_of(name: str) -> list[bytes]:
        nonlocal headers
        wanted = name.encode("latin-1")
        size = len(wanted)
        while True:
            try:
                # Indexing consumes nothing of a pair that can be read only once. Values of any length are
                # passed on undecoded, because `parse_credentials` checks the length first.
                return [pair[1] for pair in headers if len(pair[0]) == size and pair[0].lower() == wanted]
            except TypeError:
                kept = [_keep(pair) for pair in headers]
                if all(map(is_, kept, headers)):
                    raise
                scope["headers"] = headers = kept

    outer: Boundary | None = scope.get(BOUNDARY_KEY)
    if outer is not None and outer.still_applies_to(values_of, headers):
        await (
            app(scope, receive, send)
            if authenticator is None
            else _enter(app, scope, receive, send, outer, authenticator, route)
        )
        return

    scope[BOUNDARY_KEY] = boundary = Boundary(values_of, settings)
    if len(headers) > _MANY_LINES and set(map(type, headers)) == {tuple}:
        boundary.lines = headers[:]
    attached = otel_context.attach(boundary.context())
    try:
        if boundary.token is not None:
            receive, send = _without_token(receive), _without_token(send)
        await (
            app(scope, receive, send)
            if authenticator is None
            else _enter(app, scope, receive, send, boundary, authenticator, route)
        )
    finally:
        boundary.close()
        otel_context.detach(attached)


def _keep(pair: Any) -> Any:
    """Return *pair* in a form that can be read repeatedly. The specification allows any iterable."""
    return pair if isinstance(pair, (tuple, list)) or not isinstance(pair, Iterable) else tuple(pair)


async def _enter(
    app: App, scope: Scope, receive: Receive, send: Send, boundary: Boundary, authenticator: Authenticator, route: Route
) -> None:
    error_response = await boundary.check_async(authenticator, _path(scope, route))
    if error_response is None:
        await app(scope, receive, send)
    elif scope["type"] == "http":
        # RFC 9110, section 9.3.2: HEAD gets the headers of GET, without a body.
        await _respond("http", send, error_response, b"" if scope.get("method") == "HEAD" else error_response.body)
    elif scope["type"] == "websocket":
        # If the server can respond to a handshake, it sends the error response. Otherwise, the connection is
        # closed before it is accepted, and the server responds with 403.
        await receive()
        if "websocket.http.response" in (scope.get("extensions") or {}):
            await _respond("websocket.http", send, error_response, error_response.body)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
    else:
        # An unknown protocol's response format is unknown, too. According to the specification, an application
        # rejects a scope by raising an exception.
        raise RuntimeError(f"the application was not called for this scope: {error_response.error}")


def _path(scope: Scope, route: Route) -> RequestPath:
    # Exclusions are HTTP paths; a path in another protocol may mean something else.
    routed = route(scope) if scope["type"] in ("http", "websocket") else None
    return RequestPath(routed, scope.get("path", ""), partial(_header_values, scope))


def _header_values(scope: Scope) -> Iterator[str]:
    return (value.decode("latin-1") for _, value in scope.get("headers") or ())


async def _respond(kind: str, send: Send, error_response: ErrorResponse, body: bytes) -> None:
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in error_response.headers]
    await send({"type": f"{kind}.response.start", "status": error_response.status, "headers": headers})
    await send({"type": f"{kind}.response.body", "body": body})


def _without_token(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return a callable that runs the server's own code without the token.

    Within ``receive`` and ``send``, a server starts the connection's next request and registers callbacks. The
    event loop keeps the current context for both.
    """

    async def outside(*message: Any) -> Any:
        attached = otel_context.attach(with_token(None))
        try:
            return await call(*message)
        finally:
            otel_context.detach(attached)

    return outside
