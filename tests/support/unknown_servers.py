"""Server processes that run `tests.support.unknown_apps`, and the destination that records the relayed tokens."""

from __future__ import annotations

import importlib.util
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.issuers import wait_until
from tests.support.processes import BIN, INSTRUMENT, RELAY, Service, service, unused_port

APPS = "tests.support.unknown_apps"
NOTHING = "nothing"


class Destination:
    """A listed server that responds with the token that it receives.

    Attributes:
        url: Its origin.
        received: The token, or `NOTHING`, for each step and number of a request.
        released: An event that requests for ``/wait`` wait for.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.received: dict[tuple[str, str], str] = {}
        self.released = threading.Event()

    def has(self, step: str, *numbers: str) -> bool:
        """Return whether the step of each of these requests has arrived."""
        return all((step, number) in self.received for number in numbers)


@contextmanager
def destination() -> Iterator[Destination]:
    """Run a destination on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            target = urlsplit(self.path)
            lines = self.headers.get_all("Authorization", [NOTHING])
            token = ",".join(line.removeprefix("Bearer ") for line in lines)
            running.received[target.path.strip("/"), parse_qs(target.query)["n"][0]] = token
            if target.path == "/wait":
                running.released.wait(60)
            self.send_response(200)
            self.send_header("Content-Length", str(len(token)))
            self.end_headers()
            self.wfile.write(token.encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Do not log requests."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 128

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Ignore the error of a server that is stopped while it waits."""

    server = Server(("127.0.0.1", 0), Handler)
    running = Destination(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.released.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


@dataclass(frozen=True)
class Configuration:
    """A way to run a server.

    Attributes:
        command: The arguments of ``opentelemetry-instrument``. ``{port}`` is replaced with the port. The first word
            is a console script or ``python``.
        needs: The modules that the server requires.
        is_short: Whether the configuration also runs without ``FULL_MATRIX``.
        has_sockets: Whether the server supports WebSockets.
        is_http2: Whether the test uses HTTP/2.
        environ: More variables.
    """

    command: str
    needs: tuple[str, ...]
    is_short: bool = False
    has_sockets: bool = False
    is_http2: bool = False
    environ: Mapping[str, str] = ()  # type: ignore[assignment]

    def arguments(self, port: int) -> list[str]:
        """Return the command that serves on the port."""
        program, *options = self.command.format(port=port).split()
        return [sys.executable if program == "python" else str(BIN / program), *options]


def _asgi(command: str, *needs: str, **options: Any) -> Configuration:
    return Configuration(command, needs, has_sockets=True, **options)


def _in_code(name: str, *needs: str, **options: Any) -> Configuration:
    return Configuration(f"python -m {APPS} {name} {{port}}", needs, **options)


_UVICORN = f"uvicorn {APPS}:asgi_app --port {{port}} --log-level warning"
_HYPERCORN = f"hypercorn {APPS}:asgi_app --bind 127.0.0.1:{{port}}"
_GRANIAN = "granian --host 127.0.0.1 --port {port} --no-log --interface"
_GUNICORN = "gunicorn --bind 127.0.0.1:{port} --log-level warning --graceful-timeout 1 --no-control-socket"
_SANIC = f"sanic {APPS}:create_sanic --factory --host 127.0.0.1 --port {{port}} --no-motd"
_DJANGO = {"DJANGO_SETTINGS_MODULE": APPS}

CONFIGURATIONS: dict[str, Configuration] = {
    "uvicorn h11": _asgi(f"{_UVICORN} --http h11", "uvicorn", "h11", is_short=True),
    "uvicorn httptools": _asgi(f"{_UVICORN} --http httptools", "uvicorn", "httptools"),
    "uvicorn --workers": _asgi(f"{_UVICORN} --workers 2 --timeout-worker-healthcheck 90", "uvicorn"),
    "uvicorn --reload": _asgi(f"{_UVICORN} --reload --reload-dir tests/attacks", "uvicorn"),
    "uvicorn --factory": _asgi(
        f"uvicorn {APPS}:create_asgi_app --factory --port {{port}} --log-level warning", "uvicorn"
    ),
    "uvicorn --interface wsgi": Configuration(
        f"uvicorn {APPS}:wsgi_app --interface wsgi --port {{port}} --log-level warning", ("uvicorn",)
    ),
    "uvicorn in code": _in_code("uvicorn", "uvicorn", has_sockets=True),
    "hypercorn asyncio": _asgi(f"{_HYPERCORN} -w 2", "hypercorn"),
    "hypercorn uvloop": _asgi(f"{_HYPERCORN} -k uvloop", "hypercorn", "uvloop"),
    "hypercorn trio": _asgi(f"{_HYPERCORN} -k trio", "hypercorn", "trio", is_short=True),
    "hypercorn HTTP/2": _asgi(_HYPERCORN, "hypercorn", "h2", is_http2=True),
    "hypercorn wsgi": Configuration(f"hypercorn wsgi:{APPS}:wsgi_app --bind 127.0.0.1:{{port}}", ("hypercorn",)),
    "hypercorn in code": _in_code("hypercorn", "hypercorn", has_sockets=True),
    "daphne": _asgi(f"daphne {APPS}:asgi_app --bind 127.0.0.1 --port {{port}} --verbosity 0", "daphne", is_short=True),
    "granian asgi": _asgi(f"{_GRANIAN} asgi {APPS}:asgi_app --workers 2", "granian"),
    "granian asgi, threads": _asgi(
        f"{_GRANIAN} asgi {APPS}:asgi_app --runtime-mode mt --runtime-threads 2 --access-log", "granian"
    ),
    # In this mode the server rejects WebSockets, whose handshake is an HTTP/1.1 request.
    "granian HTTP/2": Configuration(f"{_GRANIAN} asginl {APPS}:asgi_app --http 2", ("granian", "h2"), is_http2=True),
    "granian wsgi": Configuration(f"{_GRANIAN} wsgi {APPS}:wsgi_app --blocking-threads 8 --workers 2", ("granian",)),
    "granian rsgi": _asgi(f"{_GRANIAN} rsgi {APPS}:rsgi_app --workers 2", "granian", is_short=True),
    "granian in code": _in_code("granian", "granian", has_sockets=True),
    "gunicorn sync": Configuration(f"{_GUNICORN} {APPS}:wsgi_app -w 2", ("gunicorn",)),
    "gunicorn gthread --preload": Configuration(
        f"{_GUNICORN} {APPS}:wsgi_app -w 2 -k gthread --threads 4 --preload", ("gunicorn",), is_short=True
    ),
    "gunicorn gevent": Configuration(f"{_GUNICORN} {APPS}:wsgi_app -k gevent", ("gunicorn", "gevent")),
    "gunicorn gevent_pywsgi": Configuration(f"{_GUNICORN} {APPS}:wsgi_app -k gevent_pywsgi", ("gunicorn", "gevent")),
    "gunicorn tornado": Configuration(f"{_GUNICORN} {APPS}:wsgi_app -k tornado", ("gunicorn", "tornado")),
    "gunicorn asgi": _asgi(f"{_GUNICORN} {APPS}:asgi_app -k asgi", "gunicorn.workers.gasgi"),
    "gunicorn uvicorn_worker": _asgi(
        f"{_GUNICORN} {APPS}:asgi_app -k uvicorn_worker.UvicornWorker", "gunicorn", "uvicorn_worker"
    ),
    "waitress": _in_code("waitress", "waitress", is_short=True),
    "waitress-serve": Configuration(
        f"waitress-serve --listen 127.0.0.1:{{port}} --threads 8 {APPS}:wsgi_app", ("waitress",)
    ),
    "werkzeug run_simple": _in_code("werkzeug", "werkzeug", is_short=True),
    "wsgiref": _in_code("wsgiref"),
    "Django runserver": Configuration("python -m django runserver 127.0.0.1:{port}", ("django",), environ=_DJANGO),
    "Django runserver --noreload": Configuration(
        "python -m django runserver 127.0.0.1:{port} --noreload", ("django",), is_short=True, environ=_DJANGO
    ),
    "cheroot": _in_code("cheroot", "cheroot", is_short=True),
    "gevent.pywsgi": _in_code("gevent", "gevent", is_short=True),
    "sanic": _asgi(f"{_SANIC} --single-process", "sanic"),
    "sanic --workers": _asgi(f"{_SANIC} --workers 2", "sanic", is_short=True),
    "aiohttp web.Server": _in_code("aiohttp", "aiohttp", has_sockets=True, is_short=True),
    "tornado callback": _in_code("tornado-callback", "tornado"),
    "tornado delegate": _in_code("tornado-delegate", "tornado", is_short=True),
    "tornado WSGIContainer": _in_code("tornado-wsgi", "tornado"),
    "tornado WSGIContainer, threads": _in_code("tornado-wsgi-threads", "tornado"),
    "tornado RequestHandler": _in_code("tornado-handlers", "tornado", has_sockets=True),
}


def skip_without(*modules: str) -> None:
    """Skip the test if one of these modules is not installed. The function does not import the modules, because some
    of them patch other modules on import.
    """
    for module in modules:
        top = module.partition(".")[0]
        if importlib.util.find_spec(top) is None or importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


def is_listening(port: int) -> bool:
    """Return whether a server accepts connections on the port."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running(command: list[str], port: int, environ: Mapping[str, str]) -> Iterator[Service]:
    """Run a server process until the block ends.

    Raises:
        AssertionError: The process ended or did not start in time.
    """
    with service(*command, environ=environ) as process:

        def is_decided() -> bool:
            return is_listening(port) or process.process.poll() is not None

        wait_until(is_decided, 60)
        assert process.process.poll() is None, process.log
        yield process


@contextmanager
def unknown_server(
    configuration: Configuration, environ: Mapping[str, str], *, launcher: Sequence[str] = INSTRUMENT
) -> Iterator[tuple[str, Service]]:
    """Run a configuration, by default with ``opentelemetry-instrument``, and yield its host, port, and process."""
    skip_without(*configuration.needs)
    port = unused_port()
    command = [*launcher, *configuration.arguments(port)]
    with running(command, port, RELAY | dict(configuration.environ) | dict(environ)) as process:
        yield f"127.0.0.1:{port}", process
