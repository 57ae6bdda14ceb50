"""An aiohttp server with an aiohttp client."""

import asyncio
import logging
import os

import aiohttp
import google.protobuf
import typing_extensions
import urllib3
from aiohttp import web

assert google.protobuf.__version__
assert typing_extensions.Literal


async def call(request: web.Request) -> web.Response:
    """Return what the two services received."""
    found = {}
    async with aiohttp.ClientSession() as session:
        for name in ("LISTED", "UNLISTED"):
            async with session.get(os.environ[name]) as response:
                found[name] = await response.text()
    return web.json_response(found)


async def versions(request: web.Request) -> web.Response:
    """Return the urllib3 version that the application uses."""
    return web.json_response({"urllib3": urllib3.__version__, "file": urllib3.__file__})


async def healthz(request: web.Request) -> web.Response:
    """Respond to the kubelet's health check."""
    return web.Response(text="ok")


async def main() -> None:
    """Serve until the process is stopped."""
    app = web.Application()
    app.add_routes([web.get("/", call), web.get("/versions", versions), web.get("/healthz", healthz)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)  # noqa: T201
    await asyncio.Event().wait()


logging.basicConfig()
asyncio.run(main())
