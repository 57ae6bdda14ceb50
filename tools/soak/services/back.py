"""The third service, which runs on aiohttp.web."""

from __future__ import annotations

import asyncio
import random

from aiohttp import web

from otel_token_relay import current_token
from tools.soak.services import Tally

MAX_DELAY = 0.004

tally = Tally()


def seen() -> str | None:
    token = current_token()
    return None if token is None else f"Bearer {token.reveal()}"


async def back(request: web.Request) -> web.Response:
    user, late = request.query["user"], request.query["late"] == "1"
    is_right = tally.check(user, request.headers.get("Authorization"), late=late)
    await asyncio.sleep(random.random() * MAX_DELAY)
    # This service does not send requests. It checks which token it would send from here and from a thread.
    is_right &= tally.check(user, seen(), late=late)
    is_right &= tally.check(user, await asyncio.to_thread(seen), late=late)
    return web.Response(text="right" if is_right else "not right")


async def stats(_: web.Request) -> web.Response:
    return web.json_response(tally.counts)


async def main() -> None:
    app = web.Application()
    app.router.add_get("/back", back)
    app.router.add_get("/stats", stats)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    print(f"http://{host}:{port}", flush=True)  # the parent process reads this line
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
