"""A program that runs aiohttp.web, Tornado, and gRPC in one event loop without using the package, and prints their
ports.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc
import grpc.aio
import tornado.httpserver
import tornado.netutil
import tornado.web
from aiohttp import web


async def serve() -> None:
    """Serve on free loopback ports until the process ends."""

    async def hello(request: web.Request) -> web.Response:
        return web.Response(text="hello")

    class Hello(tornado.web.RequestHandler):
        def get(self) -> None:
            self.write("hello")

    async def say_hello(request: bytes, context: Any) -> bytes:
        return b"hello"

    app = web.Application()
    app.router.add_get("/{name:.*}", hello)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()

    sockets = tornado.netutil.bind_sockets(0, "127.0.0.1")
    tornado.httpserver.HTTPServer(tornado.web.Application([("/.*", Hello)])).add_sockets(sockets)

    server = grpc.aio.server()
    methods = {name: grpc.unary_unary_rpc_method_handler(say_hello) for name in ("me", "healthz")}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("p.S", methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    ports = {"aiohttp.web": runner.addresses[0][1], "Tornado": sockets[0].getsockname()[1], "gRPC": port}
    sys.stdout.write(json.dumps(ports) + "\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
