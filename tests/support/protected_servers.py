"""Servers whose boundary verifies tokens: all servers with their own interfaces, one ASGI server, and one WSGI server.

Each server calls the same function for every path or gRPC method and runs in threads of this process. A test
can therefore check whether the application ran. Requests are sent as exact bytes.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

import aiohttp.web_protocol
import grpc
import grpc.aio
import h2.config
import h2.connection
import h2.events
import httpx
import tornado.httpserver
import tornado.web
import tornado.websocket
from aiohttp import web

from otel_token_relay import Settings, current_token, install, installation, uninstall
from otel_token_relay import runtime as in_force
from otel_token_relay.authentication import Authenticator
from otel_token_relay.errors import TokenUnavailable
from otel_token_relay.patching import Patches
from otel_token_relay.runtime import Runtime, Terms
from otel_token_relay.servers import aiohttp as aiohttp_server
from otel_token_relay.servers import grpc as grpc_server
from otel_token_relay.servers import tornado as tornado_server
from tests.support.served import Reply, Server
from tests.support.servers import looping, serve_asgi, serve_wsgi

reached: list[str] = []
"""The application's paths and hooks that ran for a request."""

downstream: list[str] = []
"""The destination of the hop that ``/relay`` decides."""


def answer(path: str) -> str:
    """Return the caller, or, for ``/relay``, whether the token was relayed."""
    reached.append(path)
    if path == "/relay":
        try:
            httpx.get(downstream[0])
        except TokenUnavailable as error:
            return json.dumps({"withheld": error.reason.value})
        return json.dumps({"sent": True})
    token = current_token()
    subject = None if token is None or token.claims is None else token.claims["sub"]
    return json.dumps({"user": subject or "", "claims": subject})


@contextmanager
def installed(settings: Settings, authenticator: Authenticator | None = None) -> Iterator[None]:
    """Install the settings, and an authenticator that settings cannot describe if one is given."""
    install(settings)
    if authenticator is not None:
        installation._installed.runtime.terms = Terms(settings, authenticator)
    try:
        yield
    finally:
        uninstall()


@contextmanager
def _running(name: str, begin: Callable[[socket.socket], Awaitable[Callable[[], Awaitable[Any]]]]) -> Iterator[Server]:
    with looping() as loop, socket.create_server(("127.0.0.1", 0)) as listener:
        stop = asyncio.run_coroutine_threadsafe(begin(listener), loop).result(30)
        try:
            yield Server(name, listener.getsockname()[1])
        finally:
            asyncio.run_coroutine_threadsafe(stop(), loop).result(30)


def run_tornado(app: tornado.web.Application) -> AbstractContextManager[Server]:
    """Serve *app* with Tornado's HTTP server."""

    async def begin(listener: socket.socket) -> Callable[[], Awaitable[Any]]:
        server = tornado.httpserver.HTTPServer(app)
        twin = socket.socket(fileno=socket.dup(listener.fileno()))
        twin.setblocking(False)
        server.add_sockets([twin])

        async def stop() -> None:
            server.stop()
            await server.close_all_connections()

        return stop

    return _running("tornado", begin)


def serve_aiohttp(*middlewares: Any) -> AbstractContextManager[Server]:
    """Run an aiohttp.web server with a WebSocket on /ws."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.path == "/ws":
            reached.append("/ws")
            connection = web.WebSocketResponse()
            await connection.prepare(request)
            await connection.send_str(answer("message"))
            await connection.close()
            return connection
        return web.Response(text=answer(request.path), content_type="application/json")

    async def begin(listener: socket.socket) -> Callable[[], Awaitable[Any]]:
        app = web.Application(middlewares=[*middlewares])
        app.router.add_route("*", "/{name:.*}", handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        return runner.cleanup

    return _running("aiohttp.web", begin)


def serve_tornado() -> AbstractContextManager[Server]:
    """Run a Tornado server with a synchronous handler, an asynchronous ``prepare``, a streamed body, and a
    WebSocket.
    """

    class Quiet(tornado.web.RequestHandler):
        def on_finish(self) -> None:
            reached.append("on_finish")

        def get(self) -> None:
            self.set_header("Content-Type", "application/json")
            self.write(answer(self.request.path))

        post = get

    class Prepared(Quiet):
        async def prepare(self) -> None:
            reached.append("prepare")
            await asyncio.sleep(0)

    @tornado.web.stream_request_body
    class Streamed(Quiet):
        def prepare(self) -> None:
            reached.append("prepare")

        def data_received(self, chunk: bytes) -> None:
            reached.append("data_received")

    class Socket(tornado.websocket.WebSocketHandler):
        async def open(self) -> None:
            reached.append("/ws")
            await self.write_message(answer("message"))
            self.close()

        def on_close(self) -> None:
            reached.append("on_close")

    routes = [("/ws", Socket), ("/prepared", Prepared), ("/streamed", Streamed), ("/.*", Quiet)]

    def log(handler: tornado.web.RequestHandler) -> None:
        reached.append(f"log {handler.get_status()}")

    app = tornado.web.Application(routes, log_function=log)  # type: ignore[arg-type]  # its own stub is too narrow
    return run_tornado(app)


_STATUSES = {"0": 200, "16": 401, "7": 403, "14": 503, "12": 404}

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class GrpcServer:
    """A gRPC server, as a client on the wire sees it."""

    name = "grpc"

    def __init__(self, port: int) -> None:
        self.port = port

    def send(self, *authorization: bytes, target: str = "/", headers: tuple[bytes, ...] = ()) -> Reply:
        """Call the specified method with exactly these metadata entries, without the space after each header's colon.

        Returns:
            The trailing metadata, and the HTTP status that corresponds to the gRPC status.
        """
        fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", target.encode()), (b":authority", b"a")]
        fields += [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
        fields += [(b"authorization", value.removeprefix(b" ")) for value in authorization]
        for line in headers:
            name, _, value = line.partition(b":")
            fields.append((name.lower(), value.strip()))
        config = h2.config.H2Configuration(
            header_encoding=None,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
        )
        connection = h2.connection.H2Connection(config)
        connection.initiate_connection()
        connection.send_headers(1, fields)
        connection.send_data(1, b"\0\0\0\0\0", end_stream=True)
        found: dict[str, str] = {}
        body = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as wire:
            wire.sendall(connection.data_to_send())
            while chunk := wire.recv(65536):
                for event in connection.receive_data(chunk):
                    if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                        found |= {key.decode(): value.decode() for key, value in event.headers}
                    elif isinstance(event, h2.events.DataReceived):
                        body += event.data
                    elif isinstance(
                        event, (h2.events.StreamEnded, h2.events.StreamReset, h2.events.ConnectionTerminated)
                    ):
                        code = found.get("grpc-status", "reset")
                        return Reply(_STATUSES.get(code, 500), found, body[5:])
                wire.sendall(connection.data_to_send())
        return Reply(500, found, b"")


class _Methods(grpc.GenericRpcHandler):
    """All methods, for which the last part of the name is the kind."""

    def __init__(self, is_aio: bool) -> None:
        self._is_aio = is_aio

    def service(self, details: Any) -> Any:
        path = details.method
        kind = path.rpartition("/")[2]
        kind = kind if kind in KINDS else "unary_unary"
        incoming, _, outgoing = kind.partition("_")

        def answer_one(request: Any, context: Any) -> bytes:
            if incoming == "stream":
                list(request)
            return answer(path).encode()

        def answer_many(request: Any, context: Any) -> Iterator[bytes]:
            yield answer_one(request, context)
            yield answer_one((), context)

        async def answer_one_async(request: Any, context: Any) -> bytes:
            if incoming == "stream":
                async for _ in request:
                    pass
            return answer(path).encode()

        async def answer_many_async(request: Any, context: Any) -> AsyncIterator[bytes]:
            yield await answer_one_async(request, context)
            yield answer(path).encode()

        methods = (answer_one_async, answer_many_async) if self._is_aio else (answer_one, answer_many)
        return getattr(grpc, f"{kind}_rpc_method_handler")(methods[outgoing == "stream"])


@contextmanager
def serve_grpc(*interceptors: Any) -> Iterator[GrpcServer]:
    """Run a gRPC server with threads."""
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, interceptors=interceptors)
        server.add_generic_rpc_handlers([_Methods(is_aio=False)])
        port = server.add_insecure_port("127.0.0.1:0")
        contextvars.Context().run(server.start)
        try:
            yield GrpcServer(port)
        finally:
            server.stop(0).wait()


@contextmanager
def serve_grpc_aio(*interceptors: Any, is_aio: bool = True) -> Iterator[GrpcServer]:
    """Run a gRPC server with an event loop, whose methods can still run in threads."""

    async def begin() -> tuple[Any, int]:
        server = grpc.aio.server(interceptors=interceptors, migration_thread_pool=pool)
        server.add_generic_rpc_handlers([_Methods(is_aio)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    # The threads end first, because gRPC makes them put the messages that a method yields into a queue of the loop.
    with looping() as loop, ThreadPoolExecutor(2) as pool:
        server, port = asyncio.run_coroutine_threadsafe(begin(), loop).result(30)
        try:
            yield GrpcServer(port)
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(30)


@contextmanager
def serve_starlette() -> Iterator[Server]:
    """Run a Starlette application in uvicorn, with a WebSocket on /ws."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocket

    async def handle(request: Request) -> Response:
        return Response(answer(request.url.path), media_type="application/json")

    async def talk(connection: WebSocket) -> None:
        reached.append("/ws")
        await connection.accept()
        await connection.send_text(answer("message"))
        await connection.close()

    routes = [WebSocketRoute("/ws", talk), Route("/{name:path}", handle, methods=["GET", "POST"])]
    with serve_asgi(Starlette(routes=routes), ws="websockets-sansio") as port:
        yield Server("starlette", port)


@contextmanager
def serve_flask() -> Iterator[Server]:
    """Run a WSGI application in wsgiref."""
    import flask

    app = flask.Flask("protected")

    @app.route("/", defaults={"name": ""}, methods=["GET", "POST"])
    @app.route("/<path:name>", methods=["GET", "POST"])
    def handle(name: str) -> flask.Response:
        return flask.Response(answer(f"/{name}"), mimetype="application/json")

    with serve_wsgi(app, threads=True) as port:
        yield Server("flask", port)


Protected = Server | GrpcServer
Serve = Callable[[Settings, Authenticator | None], AbstractContextManager[Any]]


def _hooked(serve: Callable[[], AbstractContextManager[Any]]) -> Serve:
    @contextmanager
    def run(settings: Settings, authenticator: Authenticator | None = None) -> Iterator[Any]:
        with installed(settings, authenticator), serve() as server:
            yield server

    return run


def _by_hand(serve: Callable[[Any], AbstractContextManager[Any]], build: Callable[..., Any]) -> Serve:
    return lambda settings, authenticator=None: serve(build(settings, authenticator))


HOOKED: dict[str, Serve] = {
    "Starlette": _hooked(serve_starlette),
    "Flask": _hooked(serve_flask),
    "aiohttp.web": _hooked(serve_aiohttp),
    "Tornado": _hooked(serve_tornado),
    "gRPC": _hooked(serve_grpc),
    "gRPC aio": _hooked(serve_grpc_aio),
    "gRPC aio, synchronous methods": _hooked(lambda: serve_grpc_aio(is_aio=False)),
}

BY_HAND: dict[str, Serve] = {
    "aiohttp.web by hand": _by_hand(serve_aiohttp, aiohttp_server.TokenRelayMiddleware),
    "gRPC by hand": _by_hand(serve_grpc, grpc_server.server_interceptor),
    "gRPC aio by hand": _by_hand(serve_grpc_aio, grpc_server.aio_server_interceptor),
}

ROWS = HOOKED | BY_HAND

_PATCHES: dict[str, tuple[Any, ModuleType, Callable[[], AbstractContextManager[Any]]]] = {
    "aiohttp.web": (aiohttp_server.patch, aiohttp.web_protocol, serve_aiohttp),
    "Tornado": (tornado_server.patch, tornado.web, serve_tornado),
    "gRPC": (grpc_server.patch, grpc, serve_grpc),
    "gRPC aio": (grpc_server.patch, grpc.aio, serve_grpc_aio),
}

OWN_INTERFACE = tuple(_PATCHES)


@contextmanager
def serving_behind(authenticator: Authenticator, name: str) -> Iterator[Any]:
    """Run one of `OWN_INTERFACE` with only its own hook, which can remain installed between tests."""
    patch, module, serve = _PATCHES[name]
    runtime, patches = Runtime(Settings()), Patches()
    runtime.terms = Terms(Settings(), authenticator)
    in_force.installed = runtime
    patch(module, runtime, patches)
    try:
        with serve() as server:
            yield server
    finally:
        patches.undo()
        in_force.installed = None
