"""Real loopback servers, in threads and in separate processes, and the table of servers.

Every listening socket is bound here to a free port and listens before its server runs. Tests do not wait for a
server to start, because the first connection waits in the backlog.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import http.client
import io
import os
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from otel_token_relay import Settings, install, uninstall
from tests.support import apps, processes

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 90

UVICORNS = ("uvicorn-h11-asyncio", "uvicorn-h11-uvloop", "uvicorn-httptools-asyncio", "uvicorn-httptools-uvloop")
ASGI_SERVERS = (*UVICORNS, "hypercorn")
WSGI_SERVERS = ("wsgiref", "gunicorn-sync", "gunicorn-gthread")


@dataclass(frozen=True)
class Answer:
    """A response."""

    status: int
    text: str
    headers: http.client.HTTPMessage


class Client:
    """A connection to a server that remains open until `close` is called."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)

    def call(
        self,
        path: str,
        token: str | None = None,
        *,
        headers: Sequence[tuple[str, str]] = (),
        method: str = "GET",
        body: bytes | None = None,
    ) -> Answer:
        """Send one request. *headers* can repeat a name."""
        self._connection.putrequest(method, path)
        if token is not None:
            self._connection.putheader("Authorization", f"Bearer {token}")
        for name, value in headers:
            self._connection.putheader(name, value)
        if body is not None:
            self._connection.putheader("Content-Length", str(len(body)))
        self._connection.endheaders(body)
        response = self._connection.getresponse()
        text = response.read().decode("latin-1")
        return Answer(response.status, text, response.headers)

    def close(self) -> None:
        self._connection.close()


def get(port: int, path: str, token: str | None = None, **options: Any) -> Answer:
    """Send one request over a new connection."""
    client = Client(port)
    try:
        return client.call(path, token, **options)
    finally:
        client.close()


@contextmanager
def raw_connection(port: int) -> Iterator[socket.socket]:
    """Open a connection for requests that a client library cannot send."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as connection:
        yield connection


def read_answer(stream: Any) -> str:
    """Read a response body with a Content-Length from a socket's file."""
    length = 0
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return str(stream.read(length).decode())


def listening_socket() -> socket.socket:
    """Return a socket that listens on a free loopback port."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(256)
    return listener


@contextmanager
def serve_asgi(app: Any, kind: str = "uvicorn-h11-asyncio", **config: Any) -> Iterator[int]:
    """Serve an ASGI application in a thread, and yield the port."""
    server = _hypercorn(app) if kind == "hypercorn" else _uvicorn(app, kind, config)
    with server as port:
        yield port


@contextmanager
def _uvicorn(app: Any, kind: str, config: Mapping[str, Any]) -> Iterator[int]:
    import uvicorn

    _, parser, loop = kind.split("-")
    options = {"http": parser, "loop": loop, "log_config": None, "lifespan": "off", "access_log": False, **config}
    server = uvicorn.Server(uvicorn.Config(app, **options))
    with listening_socket() as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(TIMEOUT_SECONDS)


@contextmanager
def _hypercorn(app: Any) -> Iterator[int]:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.errorlog = None
    config.graceful_timeout = 0.1
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    with listening_socket() as listener:
        config.bind = [f"fd://{os.dup(listener.fileno())}"]

        def run() -> None:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(serve(app, config, shutdown_trigger=stop.wait, mode="asgi"))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(TIMEOUT_SECONDS)


class _QuietHandler(WSGIRequestHandler):
    # A persistent connection must not occupy the server's only thread.
    protocol_version = "HTTP/1.0"

    def log_message(self, format: str, *args: Any) -> None: ...

    def get_stderr(self) -> Any:
        return io.StringIO()


class _ThreadingWSGIServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None: ...


@contextmanager
def serve_wsgi(app: Any, *, threads: bool = False) -> Iterator[int]:
    """Serve a WSGI application with wsgiref, in one thread for all requests or in one thread for each."""
    server = (_ThreadingWSGIServer if threads else WSGIServer)(("127.0.0.1", 0), _QuietHandler)
    server.set_app(app)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(TIMEOUT_SECONDS)


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without its OpenTelemetry settings, plus *variables*."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "COVERAGE", "PYTHONPATH"))
    }
    exporters = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}
    return {**inherited, **exporters, **variables}


@contextmanager
def process(
    command: Sequence[str], *, stdout: Any = subprocess.DEVNULL, stderr: Any = subprocess.DEVNULL, **variables: str
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run a server in a separate process. ``{fd}`` in the command is replaced with the number of the listening socket.

    Yields:
        The port and the process.
    """
    with listening_socket() as listener:
        fd = listener.fileno()
        child = processes.start(
            [argument.replace("{fd}", str(fd)) for argument in command],
            cwd=ROOT,
            env=environment(**variables),
            pass_fds=(fd,),
            stdout=stdout,
            stderr=stderr,
        )
        port = listener.getsockname()[1]
        # Only the child has the socket now, so connections are refused if the child ends.
        listener.close()
        try:
            yield port, child
        finally:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(10)
            processes.end(child)


def script(name: str) -> str:
    """Return the path of a console script in this environment."""
    return str(Path(sys.executable).with_name(name))


def gunicorn_command(app: str, worker: str, *, threads: int = 4) -> list[str]:
    """Return the command that serves ``module:app`` with one worker of the specified class."""
    command = [script("gunicorn"), "--bind", "fd://{fd}", "--worker-class", worker, "--workers", "1"]
    command += ["--log-level", "critical", "--graceful-timeout", "1", "--no-control-socket"]
    return [*command, *(["--threads", str(threads)] if worker == "gthread" else []), app]


def uvicorn_command(app: str, *options: str) -> list[str]:
    """Return the command that serves ``module:app``."""
    return [script("uvicorn"), "--fd", "{fd}", "--log-level", "critical", "--lifespan", "off", *options, app]


# This table contains every application on every server that supports it.


class Served:
    """A running server, and the functions that call it."""

    def __init__(self, port: int) -> None:
        self.port = port

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """Yield an object with a ``call`` method, like `Client`, that keeps its connection open."""
        client = Client(self.port)
        try:
            yield client
        finally:
            client.close()

    def get(self, path: str, token: str | None = None, **options: Any) -> Answer:
        """Send one request over a new connection."""
        with self.connection() as connection:
            response: Answer = connection.call(path, token, **options)
            return response

    def abandon(self, path: str, token: str) -> str:
        """Disconnect as soon as the response contains the token, and return the received data."""
        received = b""
        with raw_connection(self.port) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
            while token.encode() not in received and (piece := connection.recv(65536)):
                received += piece
        return received.decode("latin-1")


_GRPC_STREAMS = ("/stream", "/slow")
# The gRPC status for metadata that gRPC rejects.
_GRPC_STATUSES = {"RESOURCE_EXHAUSTED": 431, "INTERNAL": 400}


class _GrpcConnection:
    """A gRPC channel with the interface of a connection, in which headers become metadata."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def start(self, path: str, token: str | None, headers: Sequence[tuple[str, str]]) -> Any:
        metadata = [] if token is None else [("authorization", f"Bearer {token}")]
        metadata += [(name.lower(), value) for name, value in headers]
        method, options = f"/tests.Server{path}", {"metadata": metadata, "timeout": TIMEOUT_SECONDS}
        if path in _GRPC_STREAMS:
            return self._channel.unary_stream(method)(b"", **options)
        if path == "/upload":
            return self._channel.stream_unary(method)(iter([b""] * 3), **options)
        return self._channel.unary_unary(method)(b"", **options)

    def call(self, path: str, token: str | None = None, *, headers: Sequence[tuple[str, str]] = ()) -> Answer:
        import grpc

        try:
            response = self.start(path, token, headers)
            text = b"".join(response) if path in _GRPC_STREAMS else response
            return Answer(200, text.decode(), http.client.HTTPMessage())
        except ValueError:  # the gRPC client refuses to send this metadata
            return Answer(400, "", http.client.HTTPMessage())
        except grpc.RpcError as error:
            return Answer(_GRPC_STATUSES.get(error.code().name, 500), "", http.client.HTTPMessage())


class GrpcServed(Served):
    """A running gRPC server."""

    @contextmanager
    def connection(self) -> Iterator[_GrpcConnection]:
        import grpc

        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            yield _GrpcConnection(channel)

    def abandon(self, path: str, token: str) -> str:
        received = ""
        with self.connection() as connection:
            response = connection.start(path, token, ())
            while token not in received:
                received += next(response).decode()
            response.cancel()
        return received


@dataclass(frozen=True)
class Server:
    """An application and the server that runs it.

    Attributes:
        serve: ``with serve(settings, variables) as port`` runs the server. *variables* are environment variables
            for a server in a separate process.
        reach: The protocol for calls, HTTP or gRPC.
        needs_install: Whether a hook installs the boundary, instead of a middleware in the application.
        instrumentor: The OpenTelemetry instrumentor to enable while the server runs.
        is_here: Whether the server runs in this process.
        has_sockets: Whether the server supports WebSockets.
        can_be_abandoned: Whether the server stops a stream after the client disconnects.
    """

    name: str
    serve: Callable[[Settings, Mapping[str, str]], AbstractContextManager[int]]
    reach: Callable[[int], Served] = Served
    needs_install: bool = True
    instrumentor: Callable[[], Any] | None = None
    is_here: bool = True
    has_sockets: bool = False
    can_be_abandoned: bool = True


@contextmanager
def served(
    server: Server, settings: Settings | None = None, instrumentation: Mapping[str, Any] | None = None, **variables: str
) -> Iterator[Served]:
    """Run the server with the installation and instrumentation that its row requires."""
    settings = settings or Settings()
    if server.needs_install and server.is_here:
        install(settings)
    instrumentor = server.instrumentor() if server.instrumentor else None
    if instrumentor is not None:
        with warnings.catch_warnings():
            # aiohttp deprecates subclassing Application, which its instrumentation does.
            warnings.simplefilter("ignore", DeprecationWarning)
            instrumentor.instrument(**(instrumentation or {}))
    try:
        with server.serve(settings, variables) as port:
            yield server.reach(port)
    finally:
        if instrumentor is not None:
            instrumentor.uninstrument()
        uninstall()


def _asgi_row(name: str, kind: str) -> Server:
    def serve(settings: Settings, variables: Mapping[str, str]) -> AbstractContextManager[int]:
        return serve_asgi(apps.ASGI_APPS[name](), kind)

    # Django's WebSockets need Channels, which is a separate application.
    by_hand = name == "plain-middleware"
    return Server(f"{name}-on-{kind}", serve, needs_install=not by_hand, has_sockets=name != "django")


def _wsgi_row(name: str, kind: str) -> Server:
    @contextmanager
    def serve(settings: Settings, variables: Mapping[str, str]) -> Iterator[int]:
        if kind == "wsgiref":
            with serve_wsgi(apps.WSGI_APPS[name](), threads=True) as port:
                yield port
        else:
            app = f"tests.support.apps:installed_wsgi('{name}')"
            with process(gunicorn_command(app, kind.removeprefix("gunicorn-")), **variables) as (port, _):
                yield port

    by_hand = name == "plain-middleware"
    return Server(f"{name}-on-{kind}", serve, needs_install=not by_hand, is_here=kind == "wsgiref")


@contextmanager
def looping() -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop in a thread, outside the test's context."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    contextvars.Context().run(thread.start)
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(TIMEOUT_SECONDS)
        loop.close()


@contextmanager
def _started(start: Callable[[socket.socket], Awaitable[Callable[[], Awaitable[Any]]]]) -> Iterator[int]:
    """Run *start* on a socket. To stop the server, call the function that *start* returns."""
    with looping() as loop, listening_socket() as listener:
        listener.setblocking(False)
        stop = asyncio.run_coroutine_threadsafe(start(listener), loop).result(TIMEOUT_SECONDS)
        try:
            yield listener.getsockname()[1]
        finally:
            asyncio.run_coroutine_threadsafe(stop(), loop).result(TIMEOUT_SECONDS)


def _serve_aiohttp(settings: Settings, *, by_hand: bool = False, app: bool = True) -> AbstractContextManager[int]:
    from aiohttp import web

    from otel_token_relay.servers.aiohttp import TokenRelayMiddleware

    async def start(listener: socket.socket) -> Callable[[], Awaitable[Any]]:
        runner: Any
        if app:
            middlewares = [TokenRelayMiddleware(settings)] if by_hand else []
            runner = web.AppRunner(apps.aiohttp_web(*middlewares), access_log=None, shutdown_timeout=1)
        else:
            runner = web.ServerRunner(web.Server(apps.aiohttp_handler(apps.write_afterwards)), shutdown_timeout=1)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        return runner.cleanup  # type: ignore[no-any-return]

    return _started(start)


def _serve_tornado() -> AbstractContextManager[int]:
    from tornado.httpserver import HTTPServer

    async def start(listener: socket.socket) -> Callable[[], Awaitable[Any]]:
        server = HTTPServer(apps.tornado())
        server.add_sockets([listener])

        async def stop() -> None:
            server.stop()
            await server.close_all_connections()

        return stop

    return _started(start)


@contextmanager
def _serve_grpc(settings: Settings, *, by_hand: bool = False) -> Iterator[int]:
    import grpc

    from otel_token_relay.servers.grpc import TokenRelayMiddleware

    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, interceptors=[TokenRelayMiddleware(settings)] if by_hand else [])
        server.add_generic_rpc_handlers([apps.grpc_handlers()])
        port = server.add_insecure_port("127.0.0.1:0")
        contextvars.Context().run(server.start)
        try:
            yield port
        finally:
            server.stop(1).wait()


@contextmanager
def _serve_grpc_aio(settings: Settings, *, by_hand: bool = False, threads: bool = False) -> Iterator[int]:
    import grpc.aio

    from otel_token_relay.servers.grpc import aio_server_interceptor

    async def start() -> tuple[Any, int]:
        interceptors = [aio_server_interceptor(settings)] if by_hand else []
        server = grpc.aio.server(interceptors=interceptors, migration_thread_pool=pool)
        server.add_generic_rpc_handlers([apps.grpc_handlers() if threads else apps.grpc_aio_handlers()])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    with ThreadPoolExecutor(4) as pool, looping() as loop:
        server, port = asyncio.run_coroutine_threadsafe(start(), loop).result(TIMEOUT_SECONDS)
        try:
            yield port
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(1), loop).result(TIMEOUT_SECONDS)


def _aiohttp_instrumentor() -> Any:
    from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor

    return AioHttpServerInstrumentor()


def _tornado_instrumentor() -> Any:
    from opentelemetry.instrumentation.tornado import TornadoInstrumentor

    return TornadoInstrumentor()


def _grpc_instrumentor() -> Any:
    from opentelemetry.instrumentation.grpc import GrpcInstrumentorServer

    return GrpcInstrumentorServer()


def _grpc_aio_instrumentor() -> Any:
    from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorServer

    return GrpcAioInstrumentorServer()


def _own_rows(
    name: str, serve: Callable[..., AbstractContextManager[int]], instrumentor: Callable[[], Any], **others: Any
) -> list[Server]:
    """Return the rows of a server with its own protocol: plain and instrumented, with the hook and with explicit
    middleware.
    """
    return [
        Server(
            f"{name}{', by hand' * by_hand}{', instrumented' * instrumented}",
            lambda settings, _, by_hand=by_hand: serve(settings, by_hand=by_hand),  # type: ignore[misc]
            needs_install=not by_hand,
            instrumentor=instrumentor if instrumented else None,
            **others,
        )
        for by_hand in (False, True)
        for instrumented in (False, True)
    ]


SERVERS = [
    *[_asgi_row(name, kind) for kind in ASGI_SERVERS for name in apps.ASGI_APPS],
    *[_wsgi_row(name, kind) for kind in WSGI_SERVERS for name in apps.WSGI_APPS],
    *_own_rows("aiohttp.web", _serve_aiohttp, _aiohttp_instrumentor, has_sockets=True),
    Server("aiohttp.web Server", lambda settings, _: _serve_aiohttp(settings, app=False), has_sockets=True),
    Server("tornado", lambda *_: _serve_tornado(), has_sockets=True),
    Server("tornado, instrumented", lambda *_: _serve_tornado(), instrumentor=_tornado_instrumentor, has_sockets=True),
    *_own_rows("grpc", _serve_grpc, _grpc_instrumentor, reach=GrpcServed),
    *_own_rows("grpc-aio", _serve_grpc_aio, _grpc_aio_instrumentor, reach=GrpcServed),
    Server(
        "grpc-aio, in threads",
        lambda settings, _: _serve_grpc_aio(settings, threads=True),
        reach=GrpcServed,
        # With or without the boundary, the thread of a synchronous method blocks forever in `send`.
        can_be_abandoned=False,
    ),
]

# One application for each server, for the server tests.
ONE_FOR_EACH_SERVER = [
    server for server in SERVERS if "-on-" not in server.name or server.name.startswith(("starlette-on-", "flask-on-"))
]
