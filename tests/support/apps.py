"""The same small application for every framework. The application responds with the token that its code sees.

    /token   the token that the handler sees
    /stream  three pieces, each with the token that the body sees while it is generated
    /slow    many pieces, for clients that disconnect
    /keep    like /token; keeps the context after the request
    /boom    like /keep, then raises an error
    /kept    what the kept contexts see now, and why they relay nothing; forgets the contexts
    /peek    like /kept, but keeps the contexts
    /socket  (frameworks with WebSockets) like /keep, then like /token for each message
    /later   (Starlette, FastAPI) background work that records the token that it sees

Only the function that builds an application imports its framework.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import sys
import time
import types
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from otel_token_relay import Reason, Settings, current_token, install
from otel_token_relay.relay import Relay

NONE = "none"
SLOW_PIECES = 400
SLOW_STEP_SECONDS = 0.01
SETTLE_SECONDS = 20

kept: list[contextvars.Context] = []
noted: list[str] = []


class Boom(Exception):
    """The error that the /boom route raises."""


def seen() -> str:
    """Return the caller's token that the calling code sees."""
    token = current_token()
    return NONE if token is None else token.reveal()


def keep() -> str:
    """Keep the current context, and return the token that is visible in it."""
    kept.append(contextvars.copy_context())
    return seen()


def hop() -> tuple[str | None, str]:
    """Decide a hop to a listed destination, and return the header's value and the reason."""
    relay = Relay(Settings(destinations=("http://listed",)))
    reasons: list[Reason] = []
    relay._record = lambda reason, *_, **__: reasons.append(reason)  # type: ignore[assignment]
    relay._is_watched = lambda _: True  # type: ignore[method-assign]
    value = relay.decide(None, lambda _: ("http", "listed", 80), lambda *_: False)
    return value, str(reasons[-1])


def peek() -> str:
    """Return, as JSON, each kept context's token and its reason for relaying nothing."""
    return json.dumps([[context.run(seen), context.run(hop)[1]] for context in kept])


def report() -> str:
    """Return the result of `peek`, and forget the contexts."""
    found = peek()
    kept.clear()
    return found


def report_when_over() -> str:
    """Return the report when all kept requests have ended.

    The client can be faster than the application, which returns after the last byte is sent.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while any(context.run(seen) != NONE for context in kept) and time.monotonic() < deadline:
        time.sleep(0.01)
    return report()


def pieces() -> Iterator[bytes]:
    for _ in range(3):
        yield seen().encode() + b"\n"


def slow_pieces() -> Iterator[bytes]:
    keep()
    for _ in range(SLOW_PIECES):
        yield seen().encode() * 100 + b"\n"
        time.sleep(SLOW_STEP_SECONDS)


async def async_pieces() -> AsyncIterator[bytes]:
    for _ in range(3):
        yield seen().encode() + b"\n"
        await asyncio.sleep(0)


async def async_slow_pieces() -> AsyncIterator[bytes]:
    keep()
    for _ in range(SLOW_PIECES):
        yield seen().encode() * 100 + b"\n"
        await asyncio.sleep(SLOW_STEP_SECONDS)


ANSWERS: dict[str, Callable[[], str]] = {"token": seen, "keep": keep, "kept": report, "peek": peek}


def fail() -> None:
    keep()
    raise Boom


# ASGI


def starlette() -> Any:
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.responses import PlainTextResponse, StreamingResponse
    from starlette.routing import Mount, Route, WebSocketRoute

    async def respond(request: Any) -> Any:
        await request.body()
        return PlainTextResponse(ANSWERS[request.url.path.rpartition("/")[2]]())

    async def boom(_: Any) -> None:
        fail()

    async def stream(_: Any) -> Any:
        return StreamingResponse(async_pieces())

    async def thread_stream(_: Any) -> Any:
        return StreamingResponse(pieces())

    async def slow(_: Any) -> Any:
        return StreamingResponse(async_slow_pieces())

    async def note() -> None:
        await asyncio.sleep(0.05)
        noted.append(seen())

    async def later(_: Any) -> Any:
        return PlainTextResponse(seen(), background=BackgroundTask(note))

    async def socket(websocket: Any) -> None:
        await websocket.accept()
        await websocket.send_text(keep())
        async for _ in websocket.iter_text():
            await websocket.send_text(seen())

    routes = [Route(f"/{name}", respond, methods=["GET", "POST"]) for name in ANSWERS]
    routes += [Route("/boom", boom), Route("/stream", stream), Route("/thread-stream", thread_stream)]
    routes += [Route("/slow", slow), Route("/later", later), WebSocketRoute("/socket", socket)]
    inner = Starlette(routes=[Route(f"/{name}", respond) for name in ANSWERS])
    return Starlette(routes=[*routes, Mount("/mounted", inner)])


def fastapi() -> Any:
    from fastapi import BackgroundTasks, FastAPI, WebSocket
    from fastapi.responses import PlainTextResponse, StreamingResponse

    def fresh() -> Any:
        app = FastAPI()
        for name, function in ANSWERS.items():
            app.add_api_route(f"/{name}", endpoint(function), methods=["GET", "POST"], response_model=None)
        return app

    def endpoint(function: Callable[[], str]) -> Any:
        async def respond() -> PlainTextResponse:
            return PlainTextResponse(function())

        respond.__annotations__.clear()
        return respond

    app = fresh()

    # A synchronous endpoint runs in a worker thread with a copy of the context.
    def boom() -> None:
        fail()

    async def stream() -> StreamingResponse:
        return StreamingResponse(async_pieces())

    async def thread_stream() -> StreamingResponse:
        return StreamingResponse(pieces())

    async def slow() -> StreamingResponse:
        return StreamingResponse(async_slow_pieces())

    async def note() -> None:
        await asyncio.sleep(0.05)
        noted.append(seen())

    async def later(tasks: BackgroundTasks) -> PlainTextResponse:
        tasks.add_task(note)
        return PlainTextResponse(seen())

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(keep())
        async for _ in websocket.iter_text():
            await websocket.send_text(seen())

    # Annotations are strings in this module, and FastAPI would resolve them in the module's global namespace.
    later.__annotations__ = {"tasks": BackgroundTasks}
    socket.__annotations__ = {"websocket": WebSocket}
    handlers = {"boom": boom, "stream": stream, "thread-stream": thread_stream, "slow": slow, "later": later}
    for name, handler in handlers.items():
        handler.__annotations__.pop("return", None)
        app.add_api_route(f"/{name}", handler, response_model=None)
    app.add_api_websocket_route("/socket", socket)
    app.mount("/mounted", fresh())
    return app


def falcon_asgi() -> Any:
    import falcon.asgi

    class Route:
        def __init__(self, name: str) -> None:
            self.name = name

        async def on_get(self, request: Any, response: Any) -> None:
            response.content_type = "text/plain"
            if self.name == "boom":
                fail()
            elif self.name == "stream":
                response.stream = async_pieces()
            elif self.name == "slow":
                response.stream = async_slow_pieces()
            else:
                response.text = ANSWERS[self.name]()

        async def on_post(self, request: Any, response: Any) -> None:
            await request.stream.read()
            await self.on_get(request, response)

        async def on_websocket(self, request: Any, websocket: Any) -> None:
            await websocket.accept()
            await websocket.send_text(keep())
            with contextlib.suppress(falcon.WebSocketDisconnected):
                while await websocket.receive_text():
                    await websocket.send_text(seen())

    app = falcon.asgi.App()
    app.add_error_handler(Boom, _let_out_async)
    for name in (*ANSWERS, "boom", "stream", "slow", "socket"):
        app.add_route(f"/{name}", Route(name))
    return app


async def _let_out_async(_request: Any, _response: Any, error: Exception, _params: Any, **_: Any) -> None:
    raise error


def plain_asgi() -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        name = scope["path"].rpartition("/")[2]
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": keep()})
            while (await receive())["type"] != "websocket.disconnect":
                await send({"type": "websocket.send", "text": seen()})
            return
        while (await receive()).get("more_body"):
            pass
        if name == "boom":
            fail()
        is_there = name in (*ANSWERS, "stream", "slow")
        await send({"type": "http.response.start", "status": 200 if is_there else 404, "headers": []})
        if name in ("stream", "slow"):
            async for piece in async_pieces() if name == "stream" else async_slow_pieces():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "http.response.body", "body": ANSWERS.get(name, keep)().encode()})

    return app


def middleware_asgi() -> Any:
    """Return a plain application that the package's middleware wraps, without an installation."""
    from otel_token_relay.servers.asgi import TokenRelayMiddleware

    return TokenRelayMiddleware(plain_asgi(), Settings())


def contrib_asgi() -> Any:
    """Return a plain application that OpenTelemetry's middleware wraps."""
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    return OpenTelemetryMiddleware(plain_asgi(), tracer_provider=recording_provider())


def django_asgi() -> Any:
    _set_up_django()
    from django.core.handlers.asgi import ASGIHandler

    return ASGIHandler()


def quart() -> Any:
    import quart

    app = quart.Quart(__name__)

    @app.get("/<name>")
    async def respond(name: str) -> Any:
        if name == "boom":
            fail()
        if name in ("stream", "slow"):
            return quart.Response(async_pieces() if name == "stream" else async_slow_pieces())
        return ANSWERS[name]()

    @app.websocket("/socket")
    async def socket() -> None:
        await quart.websocket.send(keep())
        while await quart.websocket.receive():
            await quart.websocket.send(seen())

    @app.errorhandler(Boom)
    async def failed(_: Exception) -> Any:
        return "", 500

    return app


def litestar() -> Any:
    import litestar
    from litestar.response import Stream

    def route(name: str) -> Any:
        async def respond() -> Any:
            if name == "boom":
                fail()
            if name in ("stream", "slow"):
                return Stream(async_pieces() if name == "stream" else async_slow_pieces())
            return ANSWERS[name]()

        respond.__annotations__ = {"return": Any}
        return litestar.get(f"/{name}", media_type="text/plain", name=name)(respond)

    async def socket(socket: Any) -> None:
        await socket.accept()
        await socket.send_text(keep())
        with contextlib.suppress(litestar.exceptions.WebSocketDisconnect):
            while await socket.receive_text():
                await socket.send_text(seen())

    socket.__annotations__ = {"socket": litestar.WebSocket, "return": None}
    routes = [route(name) for name in (*ANSWERS, "boom", "stream", "slow")]
    return litestar.Litestar([*routes, litestar.websocket("/socket")(socket)], logging_config=None, openapi_config=None)


# WSGI


def flask() -> Any:
    from flask import Flask, Response, stream_with_context

    app = Flask(__name__)
    app.config["PROPAGATE_EXCEPTIONS"] = True
    for name, function in ANSWERS.items():
        app.add_url_rule(f"/{name}", name, function, methods=["GET", "POST"])
    app.add_url_rule("/boom", "boom", fail)
    app.add_url_rule("/stream", "stream", lambda: Response(pieces()))
    app.add_url_rule("/stream-with-context", "swc", lambda: Response(stream_with_context(pieces())))
    app.add_url_rule("/slow", "slow", lambda: Response(slow_pieces()))
    return app


def falcon() -> Any:
    import falcon

    class Route:
        def __init__(self, name: str) -> None:
            self.name = name

        def on_get(self, request: Any, response: Any) -> None:
            response.content_type = "text/plain"
            if self.name == "boom":
                fail()
            elif self.name == "stream":
                response.stream = pieces()
            elif self.name == "slow":
                response.stream = slow_pieces()
            else:
                response.text = ANSWERS[self.name]()

    app = falcon.App()
    app.add_error_handler(Boom, _let_out)
    for name in (*ANSWERS, "boom", "stream", "slow"):
        app.add_route(f"/{name}", Route(name))
    return app


def _let_out(_request: Any, _response: Any, error: Exception, _params: Any) -> None:
    raise error


def plain_wsgi() -> Any:
    def app(environ: Any, start_response: Any) -> Any:
        name = environ["PATH_INFO"].rpartition("/")[2]
        if name == "boom":
            fail()
        if name not in (*ANSWERS, "stream", "slow"):
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [keep().encode()]
        start_response("200 OK", [("Content-Type", "text/plain")])
        if name in ("stream", "slow"):
            return pieces() if name == "stream" else slow_pieces()
        return [ANSWERS[name]().encode()]

    return app


def middleware_wsgi() -> Any:
    """Return a plain application that the package's middleware wraps, without an installation."""
    from otel_token_relay.servers.wsgi import TokenRelayMiddleware

    return TokenRelayMiddleware(plain_wsgi(), Settings())


def contrib_wsgi() -> Any:
    """Return a plain application that OpenTelemetry's middleware wraps."""
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

    return OpenTelemetryMiddleware(plain_wsgi(), tracer_provider=recording_provider())


def django_wsgi() -> Any:
    _set_up_django()
    from django.core.handlers.wsgi import WSGIHandler

    return WSGIHandler()


def _set_up_django() -> None:
    import django
    from django.conf import settings
    from django.http import HttpResponse, StreamingHttpResponse
    from django.urls import path

    if settings.configured:
        return

    def is_asgi(request: Any) -> bool:
        return hasattr(request, "scope")

    def respond(function: Callable[[], str]) -> Any:
        return lambda _: HttpResponse(function(), content_type="text/plain")

    async def async_token(_: Any) -> Any:
        return HttpResponse(seen())

    def stream(request: Any) -> Any:
        return StreamingHttpResponse(async_pieces() if is_asgi(request) else pieces())

    def slow(request: Any) -> Any:
        return StreamingHttpResponse(async_slow_pieces() if is_asgi(request) else slow_pieces())

    def boom(_: Any) -> None:
        fail()

    urls = types.ModuleType("tests_django_urls")
    routes = [path(name, respond(function)) for name, function in ANSWERS.items()]
    urls.urlpatterns = [  # type: ignore[attr-defined]
        *routes,
        path("async-token", async_token),
        path("stream", stream),
        path("slow", slow),
        path("boom", boom),
    ]
    sys.modules[urls.__name__] = urls
    settings.configure(
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=urls.__name__,
        SECRET_KEY="only for tests",
        DEBUG_PROPAGATE_EXCEPTIONS=False,
        LOGGING_CONFIG=None,
    )
    django.setup()


# Servers that have their own protocols


def aiohttp_web(*middlewares: Any) -> Any:
    # Look up the class as an attribute, because instrumentation replaces it.
    from aiohttp import web

    app = web.Application(middlewares=[*middlewares])
    app.router.add_get("/{name}", aiohttp_handler(_write_by_itself))
    return app


def aiohttp_handler(stream: Callable[[Any, AsyncIterator[bytes]], Any]) -> Any:
    from aiohttp import web

    async def respond(request: Any) -> Any:
        name = request.path[1:]
        if name == "boom":
            fail()
        if name in ("stream", "slow"):
            return await stream(request, async_pieces() if name == "stream" else async_slow_pieces())
        if name == "socket":
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            await socket.send_str(keep())
            async for _ in socket:
                await socket.send_str(seen())
            return socket
        return web.Response(text=ANSWERS.get(name, keep)(), status=200 if name in ANSWERS else 404)

    return respond


async def _write_by_itself(request: Any, pieces: AsyncIterator[bytes]) -> Any:
    from aiohttp import web

    response = web.StreamResponse()
    await response.prepare(request)
    async for piece in pieces:
        await response.write(piece)
    return response


async def write_afterwards(_: Any, pieces: AsyncIterator[bytes]) -> Any:
    """Return the body to aiohttp, which runs its generator after the handler returns."""
    from aiohttp import web

    return web.Response(body=pieces)


def tornado() -> Any:
    import tornado.web
    import tornado.websocket

    class Handler(tornado.web.RequestHandler):
        async def get(self, name: str) -> None:
            if name == "boom":
                fail()
            if name in ("stream", "slow"):
                async for piece in async_pieces() if name == "stream" else async_slow_pieces():
                    self.write(piece)
                    await self.flush()
            else:
                self.set_status(200 if name in ANSWERS else 404)
                self.write(ANSWERS.get(name, keep)())

        head = get

        def log_exception(self, *_: Any) -> None:
            """Do not log errors from /boom or from clients that disconnect."""

    class Socket(tornado.websocket.WebSocketHandler):
        async def open(self) -> None:
            await self.write_message(keep())

        async def on_message(self, message: Any) -> None:
            await self.write_message(seen())

    return tornado.web.Application([("/socket", Socket), ("/(.*)", Handler)], log_function=lambda _: None)


def grpc_handlers() -> Any:
    """Return the same application as the methods of a gRPC service, with an additional client-streaming /upload
    method.
    """
    import grpc

    def method(name: str) -> Callable[[bytes, Any], bytes]:
        return lambda request, context: _respond_or_fail(name).encode()

    def stream(pieces: Callable[[], Iterator[bytes]]) -> Any:
        def respond(request: bytes, context: Any) -> Iterator[bytes]:
            yield from pieces()

        return grpc.unary_stream_rpc_method_handler(respond)

    def upload(requests: Iterator[bytes], context: Any) -> bytes:
        return " ".join(seen() for _ in requests).encode()

    handlers = {name: grpc.unary_unary_rpc_method_handler(method(name)) for name in (*ANSWERS, "boom")}
    handlers |= {"stream": stream(pieces), "slow": stream(slow_pieces)}
    handlers["upload"] = grpc.stream_unary_rpc_method_handler(upload)
    return grpc.method_handlers_generic_handler("tests.Server", handlers)


def grpc_aio_handlers() -> Any:
    import grpc

    def method(name: str) -> Any:
        async def respond(request: bytes, context: Any) -> bytes:
            return _respond_or_fail(name).encode()

        return grpc.unary_unary_rpc_method_handler(respond)

    def stream(pieces: Callable[[], AsyncIterator[bytes]]) -> Any:
        async def respond(request: bytes, context: Any) -> AsyncIterator[bytes]:
            async for piece in pieces():
                yield piece

        return grpc.unary_stream_rpc_method_handler(respond)

    async def upload(requests: AsyncIterator[bytes], context: Any) -> bytes:
        return " ".join([seen() async for _ in requests]).encode()

    handlers = {name: method(name) for name in (*ANSWERS, "boom")}
    handlers |= {"stream": stream(async_pieces), "slow": stream(async_slow_pieces)}
    handlers["upload"] = grpc.stream_unary_rpc_method_handler(upload)
    return grpc.method_handlers_generic_handler("tests.Server", handlers)


def _respond_or_fail(name: str) -> str:
    if name == "boom":
        fail()
    return ANSWERS[name]()


ASGI_APPS: dict[str, Callable[[], Any]] = {
    "fastapi": fastapi,
    "starlette": starlette,
    "django": django_asgi,
    "falcon": falcon_asgi,
    "quart": quart,
    "litestar": litestar,
    "plain-middleware": middleware_asgi,
    "plain-contrib": contrib_asgi,
}
WSGI_APPS: dict[str, Callable[[], Any]] = {
    "flask": flask,
    "django": django_wsgi,
    "falcon": falcon,
    "plain-middleware": middleware_wsgi,
    "plain-contrib": contrib_wsgi,
}


def recording_provider() -> Any:
    """Return an SDK tracer provider that samples all spans and exports none."""
    from opentelemetry.sdk.trace import TracerProvider

    return TracerProvider()


def installed_wsgi(name: str) -> Any:
    """Install the package and return the named application, for a server in a separate process."""
    if name != "plain-middleware":
        install()
    return WSGI_APPS[name]()
