"""Respond to every connection with 503, as a last resort if requests must be verified but no hook can verify them.

The hook refuses each TCP connection that a server in this process accepts, before the server can use the connection.
Servers that accept connections in native code are not covered, except for uvloop's servers.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from otel_token_relay.authentication import CANNOT_VERIFY
from otel_token_relay.patching import Function, Patches
from otel_token_relay.runtime import Runtime

_HEADERS: Final = (*CANNOT_VERIFY.headers, ("Connection", "close"))
_HEAD: Final = "".join(f"{name}: {value}\r\n" for name, value in _HEADERS)
_RESPONSE: Final = f"HTTP/1.1 503 Service Unavailable\r\n{_HEAD}\r\n".encode("ascii") + CANNOT_VERIFY.body
_SECONDS: Final = 2.0
_threads: Final = threading.Semaphore(64)


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the socket class in *module*, which is ``socket``, to refuse connections while ``runtime.refuses_all`` is
    set.
    """

    def build(original: Function) -> Function:
        def accept(self: socket.socket) -> tuple[socket.socket, Any]:
            while True:
                connection, address = original(self)
                if not runtime.refuses_all or self.family not in (socket.AF_INET, socket.AF_INET6):
                    return connection, address
                _refuse(connection)
                if self.gettimeout() == 0:
                    raise BlockingIOError("the connection was refused: requests cannot be verified")

        return accept

    patches.wrap(module.socket, "accept", build, ("self",))


def _refuse(connection: socket.socket) -> None:
    if not _threads.acquire(blocking=False):
        connection.close()
        return
    threading.Thread(target=_respond, args=(connection,), daemon=True).start()


def _respond(connection: socket.socket) -> None:
    try:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(_SECONDS)
            connection.recv(65536)
            connection.sendall(_RESPONSE)
            # Read the remaining data before closing the connection. Otherwise, the client might lose the response.
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    finally:
        _threads.release()


def patch_uvloop(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the event loop class in *module*, which is ``uvloop``, because uvloop accepts connections in native code."""

    def build(original: Function) -> Function:
        async def create_server(self: Any, protocol_factory: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
            def choose() -> Any:
                return _Refusal() if runtime.refuses_all else protocol_factory()

            return await original(self, choose, *args, **kwargs)

        return create_server

    if "create_server" not in vars(module.Loop):  # the method is inherited from a native class
        native = module.Loop.create_server

        async def create_server(self: Any, protocol_factory: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
            return await native(self, protocol_factory, *args, **kwargs)

        module.Loop.create_server = create_server
    patches.wrap(module.Loop, "create_server", build)


class _Refusal:
    """A protocol that responds with 503 and closes the connection.

    This class does not inherit from ``asyncio.Protocol``, because importing asyncio takes 30 ms.
    """

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(_RESPONSE)
        self._transport.close()

    def eof_received(self) -> None: ...

    def connection_lost(self, error: Exception | None) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...
