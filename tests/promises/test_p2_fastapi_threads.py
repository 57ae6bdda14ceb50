"""P2 in FastAPI: synchronous endpoints and background work, which run in worker threads, send the caller's token."""

from __future__ import annotations

import contextvars
import threading
import time
from collections import defaultdict

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

from otel_token_relay import Settings, current_token, install, uninstall
from tests.support.carrying import PATIENCE, Work, send
from tests.support.servers import serve_asgi

ALICE = "alice-token-0001"
BOB = "bob-token-0000001"
NOTHING = "nothing"


class Background:
    """A record of the tokens that background work has sent for each user, and the work that outlives its request."""

    def __init__(self):
        self.seen = defaultdict(list)
        self.left = []
        self.done = threading.Semaphore(0)

    def note(self, user, seen):
        self.seen[user].append(seen)
        self.done.release()

    def wait(self, count):
        for _ in range(count):
            assert self.done.acquire(timeout=PATIENCE)


def build(echo, background):
    """Return an application that uses a synchronous function wherever FastAPI accepts one."""
    app = FastAPI()

    def dependency():
        return send(echo)

    needed = Depends(dependency)

    def endpoint(depended=needed):
        return [depended, send(echo)]

    def work(user):
        background.note(user, send(echo))

    async def async_work(user):
        background.note(user, send(echo))

    def later(user, tasks):
        tasks.add_task(work, user)
        tasks.add_task(async_work, user)
        return user

    async def async_later(user, tasks):
        return later(user, tasks)

    def leave():
        background.left.append((Work(echo), contextvars.copy_context()))
        threading.Thread(target=background.left[-1][0], daemon=True).start()

    def leave_later(tasks):
        tasks.add_task(leave)

    leave_later.__annotations__ = {"tasks": BackgroundTasks}
    later.__annotations__ = async_later.__annotations__ = {"user": str, "tasks": BackgroundTasks}
    app.get("/endpoint")(endpoint)
    app.get("/later")(later)
    app.get("/async-later")(async_later)
    app.get("/leave")(leave)
    app.get("/leave-later")(leave_later)
    return app


@pytest.fixture(params=["plain", "instrumented"])
def service(request, echo):
    """Run the application on a server, and yield its URL and the record of its background work."""
    install(Settings(destinations=[echo]))
    background = Background()
    app = build(echo, background)
    if request.param == "instrumented":
        FastAPIInstrumentor.instrument_app(app)
    with serve_asgi(app) as port:
        yield f"http://127.0.0.1:{port}", background
    if request.param == "instrumented":
        FastAPIInstrumentor.uninstrument_app(app)
    uninstall()


USERS = {"alice": ALICE, "bob": BOB, "anonymous": None}


def ask_all(url, path):
    """Send several concurrent requests for each user, and return the responses."""
    responses = defaultdict(list)

    def ask(user, token):
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        with httpx.Client(timeout=PATIENCE) as client:
            for _ in range(5):
                responses[user].append(client.get(f"{url}{path}", params={"user": user}, headers=headers).json())

    threads = [threading.Thread(target=ask, args=item) for item in USERS.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return responses


def test_a_synchronous_endpoint_sends_its_callers_token(service):
    """A synchronous endpoint and its dependency, which run in worker threads, send their caller's token."""
    url, _ = service

    responses = ask_all(url, "/endpoint")

    assert responses == {user: [[token or NOTHING] * 2] * 5 for user, token in USERS.items()}


@pytest.mark.parametrize("path", ["/later", "/async-later"])
def test_background_tasks_send_their_callers_token(service, path):
    """A background task sends its caller's token, because it runs before the request ends."""
    url, background = service

    ask_all(url, path)
    background.wait(len(USERS) * 10)

    assert background.seen == {user: [token or NOTHING] * 10 for user, token in USERS.items()}


def leave_behind(service, path):
    """Send Alice's request, and return the work and the context of a thread that outlives the request."""
    url, background = service
    httpx.get(f"{url}{path}", headers={"Authorization": f"Bearer {ALICE}"}, timeout=PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while not background.left and time.monotonic() < deadline:
        time.sleep(0.002)
    return background.left[0]


@pytest.mark.parametrize("path", ["/leave", "/leave-later"])
def test_work_that_outlives_the_request_sends_no_token(service, path):
    """Work that outlives its request sends no token, because the lease has ended."""
    work, context = leave_behind(service, path)
    deadline = time.monotonic() + PATIENCE
    while context.run(current_token) is not None and time.monotonic() < deadline:
        time.sleep(0.002)
    work.gate.set()

    assert work.outcome() == NOTHING


@pytest.mark.parametrize("path", ["/leave", "/leave-later"])
def test_the_lease_prevents_it(service, path, monkeypatch):
    """If leases never ended, the same thread would send the token."""
    monkeypatch.setattr("otel_token_relay.token.Lease.is_open", True)
    work, _ = leave_behind(service, path)
    work.gate.set()

    assert work.outcome() == ALICE
