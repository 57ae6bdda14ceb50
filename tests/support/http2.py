"""A loopback HTTP/2 server, without TLS, that accepts one stream at a time."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import BaseRequestHandler, ThreadingTCPServer

import h2.config
import h2.connection
import h2.events
import h2.settings

from otel_token_relay.testing import SeenRequest
from tests.support.loopback import Party


class _Handler(BaseRequestHandler):
    party: Party

    def handle(self) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="ascii"))
        limit = {h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 1}
        connection.local_settings = h2.settings.Settings(client=False, initial_values=limit)
        connection.initiate_connection()
        self.request.sendall(connection.data_to_send())
        heads: dict[int, list[tuple[str, str]]] = {}
        bodies: dict[int, bytes] = {}
        while data := self.request.recv(65536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    heads[event.stream_id] = [(str(name), str(value)) for name, value in event.headers]
                    bodies[event.stream_id] = b""
                elif isinstance(event, h2.events.DataReceived):
                    bodies[event.stream_id] += event.data
                elif isinstance(event, h2.events.StreamEnded):
                    head, body = heads.pop(event.stream_id), bodies.pop(event.stream_id)
                    pseudo = dict(head)
                    self.party.requests.append(SeenRequest(pseudo[":method"], pseudo[":path"], head, body))
                    connection.send_headers(event.stream_id, [(":status", "200")])
                    connection.send_data(event.stream_id, b"ok", end_stream=True)
            self.request.sendall(connection.data_to_send())


class _Server(ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Do not log errors from clients that disconnect."""


@contextmanager
def http2_party() -> Iterator[Party]:
    """Run a server on a free port until the block ends."""
    handler = type("_BoundHttp2Handler", (_Handler,), {})
    with _Server(("127.0.0.1", 0), handler) as server:
        handler.party = one = Party(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        contextvars.Context().run(thread.start)
        try:
            yield one
        finally:
            server.shutdown()
            thread.join()
