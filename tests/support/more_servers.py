"""Servers that bring their own protocol or framework: aiohttp.web, Tornado, gRPC, Quart, Litestar.

Each row serves the same paths, and is called over one connection that is kept:

    /token   what the handler sees
    /stream  what the body sees while it is made, three times
    /keep    like /token; the context stays behind after the request
    /boom    like /keep, and fails
    /kept    what those contexts see by now; they are forgotten
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import http.client
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import tornado.httpserver
import tornado.web
from aiohttp import web
from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorServer, GrpcInstrumentorServer
from opentelemetry.instrumentation.tornado import TornadoInstrumentor

from otel_token_relay import Settings, current_token
from otel_token_relay.servers import aiohttp as aiohttp_server
from otel_token_relay.servers import grpc as grpc_server

NOTHING = "nothing"
FAILED = "failed"

Call = Callable[..., str]
"""``call(path, *credentials)``: one request with so many Authorization lines, and its answer."""

_kept: list[contextvars.Context] = []


class Boom(Exception):
    """What /boom raises."""


def seen() -> str:
    token = current_token()
    return NOTHING if token is None else token.reveal()


def keep() -> str:
    _kept.append(contextvars.copy_context())
    return seen()


def boom() -> str:
    keep()
    raise Boom


def kept() -> str:
    found = " ".join(context.run(seen) for context in _kept)
    _kept.clear()
    return found


ANSWERS: dict[str, Callable[[], str]] = {"token": seen, "keep": keep, "boom": boom, "kept": kept}


@dataclass(frozen=True)
class Server:
    """One server.

    Attributes:
        serve: ``with serve() as call`` runs it.
        instrumentor: Contrib's, if there is one.
        is_by_hand: Whether it has our middleware, and nothing needs to be installed.
    """

    name: str
    serve: Callable[[], AbstractContextManager[Call]]
    instrumentor: Callable[[], Any] | None = None
    is_by_hand: bool = False


@contextmanager
def _loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop in a thread, outside of the test's context."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    contextvars.Context().run(thread.start)
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


@contextmanager
def _running(start: Callable[[socket.socket], Awaitable[Callable[[], Awaitable[Any]]]]) -> Iterator[Call]:
    """Run what *start* starts, until what it gives is called; and a kept connection to it."""
    with _loop() as loop, socket.create_server(("127.0.0.1", 0)) as listener:
        stop = asyncio.run_coroutine_threadsafe(start(listener), loop).result(30)
        connection = http.client.HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=30)
        try:
            yield functools.partial(_get, connection)
        finally:
            connection.close()
            asyncio.run_coroutine_threadsafe(stop(), loop).result(30)


def _get(connection: http.client.HTTPConnection, path: str, *credentials: str) -> str:
    connection.putrequest("GET", path)
    for value in credentials:
        connection.putheader("Authorization", value)
    connection.endheaders()
    response = connection.getresponse()
    body = response.read().decode()
    return body if response.status == 200 else FAILED


async def _pieces() -> AsyncIterator[bytes]:
    for _ in range(3):
        yield seen().encode() + b" "
        await asyncio.sleep(0)


def _serve_aiohttp(*middlewares: Any) -> AbstractContextManager[Call]:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/stream":
            response = web.StreamResponse()
            await response.prepare(request)
            async for piece in _pieces():
                await response.write(piece)
            return response
        return web.Response(text=ANSWERS[request.path[1:]]())

    async def start(listener: socket.socket) -> Callable[[], Awaitable[Any]]:
        # By attribute: instrumentation puts a class of its own there.
        app = web.Application(middlewares=[*middlewares])
        app.router.add_get("/{name}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        return runner.cleanup

    return _running(start)


def _serve_aiohttp_body() -> AbstractContextManager[Call]:
    """The body is made after the handler has returned."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=_pieces() if request.path == "/stream" else ANSWERS[request.path[1:]]())

    async def start(listener: socket.socket) -> Callable[[], Awaitable[Any]]:
        runner = web.ServerRunner(web.Server(answer))
        await runner.setup()
        await web.SockSite(runner, listener).start()
        return runner.cleanup

    return _running(start)


def _serve_tornado() -> AbstractContextManager[Call]:
    class Handler(tornado.web.RequestHandler):
        async def get(self, name: str) -> None:
            if name == "stream":
                async for piece in _pieces():
                    self.write(piece)
                    await self.flush()
            else:
                self.write(ANSWERS[name]())

        def log_exception(self, *_: Any) -> None:
            """Keep quiet about /boom."""

    async def start(listener: socket.socket) -> Callable[[], Awaitable[Any]]:
        app = tornado.web.Application([("/(.*)", Handler)], log_function=lambda _: None)
        server = tornado.httpserver.HTTPServer(app)
        twin = socket.socket(fileno=socket.dup(listener.fileno()))
        twin.setblocking(False)
        server.add_sockets([twin])

        async def stop() -> None:
            server.stop()
            await server.close_all_connections()

        return stop

    return _running(start)


def _serve_asgi(build: Callable[[], Any]) -> Callable[[], AbstractContextManager[Call]]:
    async def start(listener: socket.socket) -> Callable[[], Awaitable[Any]]:
        import uvicorn

        server = uvicorn.Server(uvicorn.Config(build(), log_config=None, lifespan="off", access_log=False))
        serving = asyncio.ensure_future(server._serve([listener]))

        async def stop() -> None:
            server.should_exit = True
            await serving

        return stop

    return lambda: _running(start)


def _quart() -> Any:
    import quart

    app = quart.Quart(__name__)

    @app.get("/<name>")
    async def answer(name: str) -> Any:
        return quart.Response(_pieces()) if name == "stream" else ANSWERS[name]()

    @app.errorhandler(Boom)
    async def fail(_: Exception) -> Any:
        return FAILED, 500

    return app


def _litestar() -> Any:
    import litestar
    from litestar.response import Stream

    def route(name: str) -> Any:
        async def answer() -> Any:
            return Stream(_pieces()) if name == "stream" else ANSWERS[name]()

        answer.__annotations__ = {"return": Any}
        return litestar.get(f"/{name}", media_type="text/plain", name=name)(answer)

    return litestar.Litestar([*map(route, (*ANSWERS, "stream"))], logging_config=None, openapi_config=None)


METHODS = ("token", "keep", "boom", "kept")


def _handlers() -> Any:
    def method(name: str) -> Callable[[bytes, Any], bytes]:
        return lambda request, context: ANSWERS[name]().encode()

    def stream(request: bytes, context: Any) -> Iterator[bytes]:
        for _ in range(3):
            yield seen().encode() + b" "

    handlers = {name: grpc.unary_unary_rpc_method_handler(method(name)) for name in METHODS}
    handlers["stream"] = grpc.unary_stream_rpc_method_handler(stream)
    handlers["upload"] = grpc.stream_unary_rpc_method_handler(
        lambda requests, context: " ".join(seen() for _ in requests).encode()
    )
    return grpc.method_handlers_generic_handler("tests.Server", handlers)


def _aio_handlers() -> Any:
    def method(name: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def answer(request: bytes, context: Any) -> bytes:
            return ANSWERS[name]().encode()

        return answer

    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        async for piece in _pieces():
            yield piece

    async def upload(requests: AsyncIterator[bytes], context: Any) -> bytes:
        return " ".join([seen() async for _ in requests]).encode()

    handlers = {name: grpc.unary_unary_rpc_method_handler(method(name)) for name in METHODS}
    handlers["stream"] = grpc.unary_stream_rpc_method_handler(stream)
    handlers["upload"] = grpc.stream_unary_rpc_method_handler(upload)
    return grpc.method_handlers_generic_handler("tests.Server", handlers)


def _call_grpc(channel: grpc.Channel, path: str, *credentials: str) -> str:
    metadata = [("authorization", value) for value in credentials]
    method = f"/tests.Server{path}"
    try:
        if path == "/stream":
            return b"".join(channel.unary_stream(method)(b"", metadata=metadata, timeout=30)).decode()
        if path == "/upload":
            return channel.stream_unary(method)(iter([b""] * 3), metadata=metadata, timeout=30).decode()
        return channel.unary_unary(method)(b"", metadata=metadata, timeout=30).decode()
    except grpc.RpcError:
        return FAILED


def _serve_grpc(*interceptors: Any) -> AbstractContextManager[Call]:
    @contextmanager
    def serve() -> Iterator[Call]:
        with ThreadPoolExecutor(2) as pool:
            server = grpc.server(pool, interceptors=interceptors)
            server.add_generic_rpc_handlers([_handlers()])
            port = server.add_insecure_port("127.0.0.1:0")
            contextvars.Context().run(server.start)
            try:
                with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                    yield functools.partial(_call_grpc, channel)
            finally:
                server.stop(1).wait()

    return serve()


def _serve_grpc_aio(*interceptors: Any, handlers: Callable[[], Any] = _aio_handlers) -> AbstractContextManager[Call]:
    @contextmanager
    def serve() -> Iterator[Call]:
        async def start() -> tuple[Any, int]:
            server = grpc.aio.server(interceptors=interceptors, migration_thread_pool=pool)
            server.add_generic_rpc_handlers([handlers()])
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            return server, port

        with ThreadPoolExecutor(2) as pool, _loop() as loop:
            server, port = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
            try:
                with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                    yield functools.partial(_call_grpc, channel)
            finally:
                asyncio.run_coroutine_threadsafe(server.stop(1), loop).result(30)

    return serve()


HTTP_ROWS = [
    Server("aiohttp.web", _serve_aiohttp, AioHttpServerInstrumentor),
    Server("aiohttp.web Server", _serve_aiohttp_body),
    Server(
        "aiohttp.web by hand",
        lambda: _serve_aiohttp(aiohttp_server.TokenRelayMiddleware(Settings())),
        AioHttpServerInstrumentor,
        is_by_hand=True,
    ),
    Server("Tornado", _serve_tornado, TornadoInstrumentor),
    Server("Quart", _serve_asgi(_quart)),
    Server("Litestar", _serve_asgi(_litestar)),
]

GRPC_ROWS = [
    Server("gRPC", _serve_grpc, GrpcInstrumentorServer),
    Server(
        "gRPC by hand",
        lambda: _serve_grpc(grpc_server.server_interceptor(Settings())),
        GrpcInstrumentorServer,
        is_by_hand=True,
    ),
    Server("gRPC aio", _serve_grpc_aio, GrpcAioInstrumentorServer),
    Server("gRPC aio, synchronous methods", lambda: _serve_grpc_aio(handlers=_handlers)),
    Server(
        "gRPC aio by hand",
        lambda: _serve_grpc_aio(grpc_server.aio_server_interceptor(Settings())),
        GrpcAioInstrumentorServer,
        is_by_hand=True,
    ),
]

ROWS = HTTP_ROWS + GRPC_ROWS
