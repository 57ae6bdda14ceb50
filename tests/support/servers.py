"""Real servers on loopback, in threads of this process and in processes of their own.

Every listening socket is bound here, to a free port, and listens before its server runs, so that
nobody waits for a server: the first connection does.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 90

UVICORNS = ("uvicorn-h11-asyncio", "uvicorn-h11-uvloop", "uvicorn-httptools-asyncio", "uvicorn-httptools-uvloop")
ASGI_SERVERS = (*UVICORNS, "hypercorn")
WSGI_SERVERS = ("wsgiref", "gunicorn-sync", "gunicorn-gthread")


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    text: str
    headers: http.client.HTTPMessage


class Client:
    """One connection to one server, kept alive until `close`."""

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
        """Send one request; *headers* may name one twice."""
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
    """Send one request over a connection of its own."""
    client = Client(port)
    try:
        return client.call(path, token, **options)
    finally:
        client.close()


@contextmanager
def raw_connection(port: int) -> Iterator[socket.socket]:
    """Open a connection for requests that no client library would send."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as connection:
        yield connection


def read_answer(stream: Any) -> str:
    """Read the body of one answer that has a Content-Length from a socket's file."""
    length = 0
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return str(stream.read(length).decode())


def listening_socket() -> socket.socket:
    """Give a socket that listens on a free port of loopback."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(256)
    return listener


@contextmanager
def serve_asgi(app: Any, kind: str = "uvicorn-h11-asyncio", **config: Any) -> Iterator[int]:
    """Serve an ASGI application in a thread, and give the port."""
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
    # One connection must not keep a server's only thread.
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
    """Serve a WSGI application with wsgiref: one thread for all requests, or one for each."""
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
    """Give this process's environment without its OpenTelemetry settings, and with *variables*."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "COVERAGE", "PYTHONPATH"))
    }
    exporters = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}
    return {**inherited, **exporters, **variables}


@contextmanager
def process(command: Sequence[str], **variables: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run a server in its own process, on the socket whose number takes the place of ``{fd}``.

    Yields:
        The port and the process.
    """
    with listening_socket() as listener:
        fd = listener.fileno()
        child = subprocess.Popen(
            [argument.replace("{fd}", str(fd)) for argument in command],
            cwd=ROOT,
            env=environment(**variables),
            pass_fds=(fd,),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port = listener.getsockname()[1]
        # The child's copy is the only one from here on: if it dies, connections are refused.
        listener.close()
        try:
            yield port, child
        finally:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(10)
            if child.poll() is None:
                child.kill()
                child.wait(10)


def script(name: str) -> str:
    """Give the path of a console script of this environment."""
    return str(Path(sys.executable).with_name(name))


def gunicorn_command(app: str, worker: str, *, threads: int = 4) -> list[str]:
    """Give the command that serves ``module:app`` with one worker of that class."""
    command = [script("gunicorn"), "--bind", "fd://{fd}", "--worker-class", worker, "--workers", "1"]
    command += ["--log-level", "critical", "--graceful-timeout", "1", "--no-control-socket"]
    return [*command, *(["--threads", str(threads)] if worker == "gthread" else []), app]


def uvicorn_command(app: str, *options: str) -> list[str]:
    """Give the command that serves ``module:app``."""
    return [script("uvicorn"), "--fd", "{fd}", "--log-level", "critical", "--lifespan", "off", *options, app]
