"""The first service, which runs on FastAPI with asynchronous and synchronous endpoints."""

from __future__ import annotations

import asyncio
import os
import random
import urllib.request
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import httpx
from fastapi import BackgroundTasks, FastAPI, Request

from tools.soak.services import LazyPool, Tally

MIDDLE = os.environ["MIDDLE_URL"]
MAX_DELAY = 0.004
LEFT_BEHIND_DELAY = 0.05

tally = Tally()
pool = ThreadPoolExecutor(8)
lazy_pool = LazyPool()
left_behind: set[asyncio.Task[None]] = set()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=64)) as client:
        app.state.client = client
        yield
    pool.shutdown()


app = FastAPI(lifespan=lifespan)


def _url(user: str, **query: object) -> str:
    return f"{MIDDLE}/middle?user={user}&" + "&".join(f"{key}={value}" for key, value in query.items())


def ask_by_urllib(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=60) as response:
        return response.read() == b"right"


async def ask(client: httpx.AsyncClient, url: str) -> bool:
    return (await client.get(url)).text == "right"


@app.get("/front")
async def front(request: Request, user: str, way: str) -> bool:
    is_right = tally.check(user, request.headers.get("authorization"), late=False)
    client = request.app.state.client
    await asyncio.sleep(random.random() * MAX_DELAY)
    if way == "await":
        found = [await ask(client, _url(user, way="requests"))]
    elif way == "gather":
        found = await asyncio.gather(*(ask(client, _url(user, way=inner)) for inner in ("thread", "executor")))
    elif way == "to_thread":
        found = [await asyncio.to_thread(ask_by_urllib, _url(user, way="requests"))]
    elif way == "executor":
        found = [await asyncio.wrap_future(pool.submit(ask_by_urllib, _url(user, way="executor")))]
    elif way == "pool":
        found = [await asyncio.to_thread(lazy_pool.run, ask_by_urllib, _url(user, way="pool"))]
    elif way == "retry":
        found = [False]
        for attempt in range(3):
            response = await client.get(_url(user, way="fail" if attempt == 0 else "thread"))
            if response.status_code == 200:
                found = [response.text == "right"]
                break
    elif way == "timeout":
        # As with a circuit breaker, the thread continues and sends its second call after the response.
        found = [await _with_time_limit(user), await ask(client, _url(user, way="requests"))]
    else:
        task = asyncio.create_task(_later(client, _url(user, way=random.choice(("requests", "pool")), late=1)))
        left_behind.add(task)
        task.add_done_callback(left_behind.discard)
        found = [True]
    return is_right and all(found)


async def _with_time_limit(user: str) -> bool:
    def slow() -> bool:
        is_right = ask_by_urllib(_url(user, way="slow"))
        ask_by_urllib(_url(user, way="slow"))
        return is_right

    try:
        return await asyncio.wait_for(asyncio.wrap_future(pool.submit(slow)), 0.01)
    except TimeoutError:
        return True


async def _later(client: httpx.AsyncClient, url: str) -> None:
    await asyncio.sleep(LEFT_BEHIND_DELAY)
    await ask(client, url)


@app.get("/sync")
def front_sync(request: Request, user: str, tasks: BackgroundTasks) -> bool:
    is_right = tally.check(user, request.headers.get("authorization"), late=False)
    tasks.add_task(_check_in_background, user)
    return is_right and ask_by_urllib(_url(user, way="requests"))


def _check_in_background(user: str) -> None:
    ask_by_urllib(_url(user, way="requests"))


@app.get("/stats")
async def stats() -> dict[str, int]:
    return {**tally.counts, "left_behind": len(left_behind)}
