"""A server that sends prepared bytes, for responses that no HTTP server sends."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


class Wire:
    """A server that sends prepared responses.

    Attributes:
        requests: The requests of each connection.
    """

    def __init__(self, listener: socket.socket, responses: list[bytes]) -> None:
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/jwks"
        self.requests: list[list[bytes]] = []
        self._listener = listener
        self._responses = responses

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection, []), daemon=True).start()

    def _serve(self, connection: socket.socket, requests: list[bytes]) -> None:
        self.requests.append(requests)
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                requests.append(data)
                response = self._responses.pop(0)
                if not response:
                    return
                connection.sendall(response)


@contextlib.contextmanager
def wire(*responses: bytes) -> Iterator[Wire]:
    """Run a server that sends the next of *responses* to each request, and closes the connection for an empty one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Wire(listener, list(responses))
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        yield server
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def complete(status: str = "200 OK", more: bytes = b"") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n".encode() + more + b"\r\n{}"
