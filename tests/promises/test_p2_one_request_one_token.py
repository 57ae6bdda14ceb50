"""P2 for clients: a reused or shared request carries the sender's token."""

from __future__ import annotations

import asyncio
import contextvars
import json
import subprocess
import sys
import threading
from contextlib import ExitStack

from otel_token_relay import Settings, carry, install, use_token
from tests.support.clients import (
    CLIENTS,
    Client,
    each_party,
    every_async_client,
    every_client,
    every_sync_client,
    in_loop,
)

FIRST, SECOND = "p2-sample-token-1", "p2-sample-token-2"


@every_client
def test_a_reused_request_carries_the_senders_token(client: Client) -> None:
    """A request object that several users and an anonymous caller send carries each sender's token, or none."""
    with client.party() as one:
        install(Settings(destinations=[one.url]))
        # The token that is bound when the session is opened does not matter.
        with use_token(SECOND), client.reusing(one.url) as send:
            for user in (FIRST, SECOND, None, FIRST):
                with use_token(user):
                    send()

    assert one.lines() == [[f"Bearer {FIRST}"], [f"Bearer {SECOND}"], [], [f"Bearer {FIRST}"]]


@every_sync_client
def test_a_request_shared_by_threads_carries_each_threads_token(client: Client) -> None:
    """A request object that several threads send at the same time carries each thread's token, or none."""
    users = [FIRST, SECOND, None]
    seen: dict[str | None, set[bytes]] = {user: set() for user in users}
    barrier = threading.Barrier(len(users))

    with client.party() as one, ExitStack() as stack:
        install(Settings(destinations=[one.url]))
        send = stack.enter_context(client.reusing(one.url))

        def work(user: str | None) -> None:
            with use_token(user):
                barrier.wait(timeout=10)
                seen[user].update(send() for _ in range(15))

        threads = [threading.Thread(target=work, args=(user,)) for user in users]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)

    assert seen == {FIRST: {f"Bearer {FIRST}".encode()}, SECOND: {f"Bearer {SECOND}".encode()}, None: {b""}}


@every_async_client
def test_a_session_shared_by_tasks_carries_each_tasks_token(client: Client) -> None:
    """A session that several tasks share sends each task's own token, or none."""
    assert client.opening is not None
    opening = client.opening

    async def run(url: str) -> None:
        async with opening(url) as send:

            async def work(user: str | None) -> None:
                with use_token(user):
                    for _ in range(10):
                        assert await send() == (f"Bearer {user}".encode() if user else b"")

            await asyncio.gather(*[work(user) for user in (FIRST, SECOND, None, FIRST)])

    with client.party() as one:
        install(Settings(destinations=[one.url]))
        in_loop(run(one.url))

    assert len(one.requests) == 40


@every_client
def test_a_context_kept_after_the_lease_relays_nothing(client: Client) -> None:
    """Work in a context that is kept after the request has ended sends no token."""
    with client.party() as one:
        install(Settings(destinations=[one.url]))
        with use_token(FIRST):
            kept = contextvars.copy_context()
        kept.run(client.call, one.url)

    assert one.lines() == [[]]


@every_client
def test_carried_work_relays_after_the_lease(client: Client) -> None:
    """Work that is carried explicitly still sends the token after the request has ended."""
    with client.party() as one:
        install(Settings(destinations=[one.url]))
        with use_token(FIRST):
            work = carry(lambda: client.call(one.url))
        work()

    assert one.lines() == [[f"Bearer {FIRST}"]]


FORK = """
import json, logging, os, sys
from otel_token_relay import Settings, install, use_token
from tests.support.clients import CLIENTS

logging.getLogger("otel_token_relay").setLevel(logging.DEBUG)
logging.getLogger("otel_token_relay").addHandler(logging.StreamHandler(sys.stdout))
urls = json.loads(sys.argv[1])
install(Settings(destinations=urls.values()))
with use_token(sys.argv[2]):
    pid = os.fork()
    who = "parent" if pid else "child"
    if pid:
        os.waitpid(pid, 0)
    for client in CLIENTS:
        assert client.call(f"{urls[client.protocol]}/{who}/{client.name}").status == 200
    sys.stdout.flush()
    if not pid:
        os._exit(0)
"""


def test_a_forked_child_relays_nothing() -> None:
    """A forked child inherits the context but relays no token with any client."""
    with each_party() as parties:
        urls = json.dumps({protocol: one.url for protocol, one in parties.items()})
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", FORK, urls, FIRST], capture_output=True, text=True, timeout=180
        )

    assert ran.returncode == 0, ran.stderr
    assert {r.target: r.authorization for one in parties.values() for r in one.requests} == {
        f"/{who}/{client.name}": f"Bearer {FIRST}" if who == "parent" else None
        for client in CLIENTS
        for who in ("parent", "child")
    }
    assert ran.stdout.count("withheld: other_process") == len(CLIENTS)
    assert FIRST not in ran.stdout + ran.stderr
