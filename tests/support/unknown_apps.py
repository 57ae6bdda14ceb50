"""Applications without a supported framework, and servers that code starts.

For each request, an application sends three requests to the destination in ``ECHO``: before the response, in the
middle of the streamed response, and from a thread after the response. The ``?n=…`` query contains the request's
number, which the destination records. Each WebSocket message contains the number of a request.

    python -m tests.support.unknown_apps SERVER PORT
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

PAUSE = 0.02
"""Seconds between the parts of a response, so that concurrent requests overlap."""


def hop(step: str, number: str) -> bytes:
    """Send a request to the destination. Return the token that the destination received."""
    with urllib.request.urlopen(f"{os.environ['ECHO']}/{step}?n={number}", timeout=60) as response:
        return bytes(response.read()) + b"\n"


def number_in(query: str | bytes) -> str:
    """Return a request's number."""
    text = query.decode() if isinstance(query, bytes) else query
    return text.partition("n=")[2]


def start_late_work(number: str) -> None:
    """Start a thread that keeps the request's context and uses it after the response."""

    def work() -> None:
        hop("wait", number)  # the destination responds after the test receives the whole response
        hop("late", number)

    threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True).start()


async def hop_elsewhere(step: str, number: str) -> bytes:
    """Run `hop` in a thread, so that concurrent requests can be served."""
    return await asyncio.to_thread(hop, step, number)


async def steps(number: str) -> tuple[bytes, Callable[[], Any]]:
    """Run all steps before the response. Return the first line and a function that returns the second line."""
    before = await hop_elsewhere("before", number)
    start_late_work(number)

    async def middle() -> bytes:
        await asyncio.sleep(PAUSE)
        return await hop_elsewhere("middle", number)

    return before, middle


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    """Serve HTTP and WebSockets; the application also runs on trio."""
    import anyio.to_thread

    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            seen = await anyio.to_thread.run_sync(hop, "socket", message["text"])
            await send({"type": "websocket.send", "text": seen.decode().strip()})
        return
    number = number_in(scope["query_string"])
    before = await anyio.to_thread.run_sync(hop, "before", number)
    start_late_work(number)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": before, "more_body": True})
    await anyio.sleep(PAUSE)
    middle = await anyio.to_thread.run_sync(hop, "middle", number)
    await send({"type": "http.response.body", "body": middle, "more_body": False})


def create_asgi_app() -> Any:
    """Return the ASGI application."""
    return asgi_app


def wsgi_app(environ: Any, start_response: Any) -> Iterator[bytes]:
    """Serve HTTP with a streamed response."""
    number = number_in(environ["QUERY_STRING"])
    before = hop("before", number)
    start_late_work(number)
    start_response("200 OK", [("Content-Type", "text/plain")])

    def body() -> Iterator[bytes]:
        yield before
        time.sleep(PAUSE)
        yield hop("middle", number)

    return body()


async def rsgi_app(scope: Any, protocol: Any) -> None:
    """Serve HTTP and WebSockets."""
    if scope.proto == "ws":
        transport = await protocol.accept()
        while (message := await transport.receive()).kind == 2:  # a text message
            await transport.send_str((await hop_elsewhere("socket", message.data)).decode().strip())
        protocol.close()
        return
    before, middle = await steps(number_in(scope.query_string))
    transport = protocol.response_stream(200, [("content-type", "text/plain")])
    await transport.send_bytes(before)
    await transport.send_bytes(await middle())


def create_sanic() -> Any:
    """Return an application for Sanic's own server."""
    from sanic import Sanic
    from sanic.worker.manager import WorkerManager

    WorkerManager.THRESHOLD = 900  # startup time limit for workers, in tenths of a second, on a slow machine
    app = Sanic("unknown")

    async def serve(request: Any) -> None:
        before, middle = await steps(number_in(request.query_string))
        response = await request.respond(content_type="text/plain")
        await response.send(before)
        await response.send(await middle())

    async def talk(request: Any, socket: Any) -> None:
        async for message in socket:
            await socket.send((await hop_elsewhere("socket", message)).decode().strip())

    app.add_route(serve, "/", name="root")
    app.add_route(serve, "/open", name="open")
    app.add_websocket_route(talk, "/socket")
    return app


async def aiohttp_handler(request: Any) -> Any:
    """Serve a request for ``aiohttp.web.Server``."""
    from aiohttp import web

    if request.path == "/socket":
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str((await hop_elsewhere("socket", message.data)).decode().strip())
        return socket
    before, middle = await steps(number_in(request.query_string))
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(before)
    await response.write(await middle())
    await response.write_eof()
    return response


def _tornado_writer(connection: Any, query: str) -> Any:
    from tornado.httputil import HTTPHeaders, ResponseStartLine

    async def write() -> None:
        before, middle = await steps(number_in(query))
        await connection.write_headers(ResponseStartLine("HTTP/1.1", 200, "OK"), HTTPHeaders(), before)
        await connection.write(await middle())
        connection.finish()

    return write()


_tasks: set[Any] = set()


def _run(coroutine: Any) -> None:
    task = asyncio.get_running_loop().create_task(coroutine)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


def tornado_callback(request: Any) -> None:
    """Serve a Tornado request without handlers."""
    _run(_tornado_writer(request.connection, request.query))


def tornado_delegate() -> Any:
    """Return a delegate that serves every Tornado request."""
    from tornado import httputil

    class Message(httputil.HTTPMessageDelegate):
        def __init__(self, connection: Any) -> None:
            self.connection = connection

        def headers_received(self, start_line: Any, headers: Any) -> None:
            self.query = start_line.path

        def finish(self) -> None:
            _run(_tornado_writer(self.connection, self.query))

    class Server(httputil.HTTPServerConnectionDelegate):
        def start_request(self, server_conn: object, request_conn: Any) -> Any:
            return Message(request_conn)

    return Server()


def tornado_handlers() -> Any:
    """Return an application with HTTP and WebSocket handlers."""
    from tornado.web import Application, RequestHandler
    from tornado.websocket import WebSocketHandler

    class Handler(RequestHandler):
        async def get(self) -> None:
            before, middle = await steps(number_in(self.request.query))
            self.write(before)
            await self.flush()
            self.write(await middle())

    class Socket(WebSocketHandler):
        async def on_message(self, message: Any) -> None:
            await self.write_message((await hop_elsewhere("socket", message)).decode().strip())

    return Application([("/socket", Socket), (".*", Handler)])


# Servers that code starts. Each function serves on the port until the process ends.


def _uvicorn(port: int) -> None:
    import uvicorn

    uvicorn.Server(uvicorn.Config(asgi_app, port=port, log_level="warning")).run()


def _hypercorn(port: int) -> None:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    asyncio.run(serve(asgi_app, config))


def _granian(port: int) -> None:
    from granian.server.embed import Server

    asyncio.run(Server(asgi_app, address="127.0.0.1", port=port, interface="asginl").serve())


def _waitress(port: int) -> None:
    import waitress

    waitress.serve(wsgi_app, listen=f"127.0.0.1:{port}", threads=8)


def _werkzeug(port: int) -> None:
    from werkzeug.serving import run_simple

    run_simple("127.0.0.1", port, wsgi_app, threaded=True)


def _wsgiref(port: int) -> None:
    from wsgiref.simple_server import make_server

    make_server("127.0.0.1", port, wsgi_app).serve_forever()


def _cheroot(port: int) -> None:
    from cheroot.wsgi import Server

    Server(("127.0.0.1", port), wsgi_app).start()


def _gevent(port: int) -> None:
    from gevent import monkey

    monkey.patch_all()
    from gevent.pywsgi import WSGIServer

    WSGIServer(("127.0.0.1", port), wsgi_app).serve_forever()


def _aiohttp(port: int) -> None:
    from aiohttp import web

    async def serve() -> None:
        runner = web.ServerRunner(web.Server(aiohttp_handler))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()

    asyncio.run(serve())


def _tornado(create: Callable[[], Any]) -> Callable[[int], None]:
    def run(port: int) -> None:
        from tornado.httpserver import HTTPServer

        async def serve() -> None:
            HTTPServer(create()).listen(port, "127.0.0.1")
            await asyncio.Event().wait()

        asyncio.run(serve())

    return run


def _tornado_wsgi() -> Any:
    from concurrent.futures import ThreadPoolExecutor

    from tornado.wsgi import WSGIContainer

    return WSGIContainer(wsgi_app, ThreadPoolExecutor(8))


def _tornado_wsgi_on_the_loop() -> Any:
    from tornado.wsgi import WSGIContainer

    return WSGIContainer(wsgi_app)


IN_CODE: dict[str, Callable[[int], None]] = {
    "uvicorn": _uvicorn,
    "hypercorn": _hypercorn,
    "granian": _granian,
    "waitress": _waitress,
    "werkzeug": _werkzeug,
    "wsgiref": _wsgiref,
    "cheroot": _cheroot,
    "gevent": _gevent,
    "aiohttp": _aiohttp,
    "tornado-callback": _tornado(lambda: tornado_callback),
    "tornado-delegate": _tornado(tornado_delegate),
    "tornado-handlers": _tornado(tornado_handlers),
    "tornado-wsgi": _tornado(_tornado_wsgi_on_the_loop),
    "tornado-wsgi-threads": _tornado(_tornado_wsgi),
}

# Django's runserver serves the callable that WSGI_APPLICATION specifies.
DEBUG = True
SECRET_KEY = "only for tests"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS: list[str] = []
ROOT_URLCONF = __name__
urlpatterns: list[Any] = []
WSGI_APPLICATION = f"{__name__}.wsgi_app"

if __name__ == "__main__":
    IN_CODE[sys.argv[1]](int(sys.argv[2]))
