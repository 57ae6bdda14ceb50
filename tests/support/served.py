"""Real servers in their own processes, on sockets that listen before the servers start."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple

from tests.support.processes import end, start

# Each server uses an existing listening socket.
COMMANDS = {
    "uvicorn-h11": ("asgi", "{python} -m uvicorn {app} --fd {fd} --http h11 --log-level warning"),
    "uvicorn-httptools": ("asgi", "{python} -m uvicorn {app} --fd {fd} --http httptools --log-level warning"),
    "hypercorn": ("asgi", "{python} -m hypercorn {app} --bind fd://{fd} --log-level warning"),
    "hypercorn-trio": ("asgi", "{python} -m hypercorn {app} --bind fd://{fd} --log-level warning --worker-class trio"),
    "gunicorn": ("wsgi", "{python} -m gunicorn {app} --bind fd://{fd} --log-level warning"),
    "gunicorn-gthread": ("wsgi", "{python} -m gunicorn {app} --bind fd://{fd} --log-level warning --threads 4"),
}


class Reply(NamedTuple):
    """A response as it was received on the wire."""

    status: int
    headers: dict[str, str]
    body: bytes


class Server:
    """A running server's name and port."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.port = port

    def send(self, *authorization: bytes, target: str = "/", headers: tuple[bytes, ...] = ()) -> Reply:
        """Send a GET request whose Authorization lines contain exactly these bytes after the colon."""
        lines = [b"GET %s HTTP/1.1" % target.encode(), b"Host: profiles.example", b"Connection: close"]
        lines += [b"Authorization:" + value for value in authorization]
        return self.send_raw(b"\r\n".join([*lines, *headers, b"", b""]))

    def send_raw(self, request: bytes) -> Reply:
        """Send bytes, and read until the server closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(request)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
        return parse_reply(received)


def parse_reply(received: bytes) -> Reply:
    """Parse one response."""
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    match = re.match(r"HTTP/1\.[01] (\d{3})", status)
    assert match, "not an HTTP response"
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        assert name.lower() not in headers, f"duplicate header: {name}"
        headers[name.lower()] = value.strip()
    if headers.get("transfer-encoding") == "chunked":
        body = join_chunks(body)
    return Reply(int(match[1]), headers, body)


def join_chunks(body: bytes) -> bytes:
    """Decode the chunked transfer coding (RFC 9112, section 7.1)."""
    joined = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        if not (length := int(size, 16)):
            return joined
        joined, body = joined + body[:length], body[length + 2 :]


@contextmanager
def serving(name: str, app: Mapping[str, str], environ: Mapping[str, str]) -> Iterator[Server]:
    """Run one of `COMMANDS` until the block ends.

    Args:
        name: The server's key in `COMMANDS`.
        app: The application, as ``module:name``, for ``asgi`` and for ``wsgi``.
        environ: Variables to add to the environment.
    """
    kind, command = COMMANDS[name]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.set_inheritable(True)
        arguments = command.format(python=sys.executable, app=app[kind], fd=listener.fileno()).split()
        process = start(
            arguments,
            pass_fds=(listener.fileno(),),
            env={**os.environ, **environ},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield Server(name, listener.getsockname()[1])
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            end(process)
