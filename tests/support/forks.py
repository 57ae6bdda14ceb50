"""A single-threaded program that forks during Alice's request.

    python forks.py WAY[,WAY…] URL [unguarded] [same_pid]

For each way, the program prints one line with what the listed server received from the child. The program is
separate because the test process has threads, and forking with threads is deprecated.

With ``same_pid``, every process reports the first process's ID, as in PID namespaces or after the system reuses an
ID.
"""

from __future__ import annotations

import contextvars
import functools
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import urllib3
from opentelemetry import context as otel_context
from opentelemetry import propagate

from otel_token_relay import BearerToken, Settings, carry, install, use_token
from otel_token_relay.servers.wsgi import TokenRelayMiddleware

ALICE = "alice-token-0001"
BOB = "bob-token-0000001"

NOT_PERMITTED = 77
"""The exit status if the program is not allowed to create a PID namespace."""


def send(url: str) -> str:
    with urllib3.PoolManager(retries=False) as manager:
        return manager.request("GET", url).data.decode()


def serve(token: str, url: str, work: Callable[[str], str]) -> str:
    """Serve one request with the boundary, and return the result of the request's work."""
    seen: list[str] = []

    def app(environ, start_response):
        seen.append(work(url))
        return []

    TokenRelayMiddleware(app, Settings(destinations=(url,)))({"HTTP_AUTHORIZATION": f"Bearer {token}"}, None)
    return seen[0]


def in_child(work: Callable[[str], str], url: str) -> str:
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writable, work(url).encode())
        finally:
            os._exit(0)
    os.close(writable)
    os.waitpid(child, 0)
    with os.fdopen(readable) as output:
        return output.read()


def in_thread(work: Callable[[str], str], url: str) -> str:
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append(work(url)))
    thread.start()
    thread.join()
    return seen[0]


def fork(url: str) -> str:
    return in_child(send, url)


def double_fork(url: str) -> str:
    """Fork twice, as a daemon does."""
    return in_child(fork, url)


def fork_from_thread(url: str) -> str:
    return in_thread(fork, url)


def thread_of_child(url: str) -> str:
    return in_child(functools.partial(in_thread, send), url)


def carried(url: str) -> str:
    """Run, in the child, work that the parent carried."""
    return in_child(carry(send, seconds=60), url)


def kept_context(url: str) -> str:
    context = contextvars.copy_context()
    return in_child(lambda url: context.run(send, url), url)


def process(url: str) -> str:
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=lambda: results.put(send(url)))
    child.start()
    child.join()
    return results.get()


def process_pool(url: str) -> str:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(send, url).result()


def pool(url: str) -> str:
    """Use every method that submits work to a process pool, and print each outcome once."""
    with multiprocessing.get_context("fork").Pool(1) as workers:
        seen = [
            workers.apply(send, (url,)),
            workers.apply_async(send, (url,)).get(),
            *workers.map(send, [url, url]),
            *workers.starmap(send, [(url,), (url,)], 2),
            *workers.imap(send, [url]),
            *workers.imap_unordered(send, [url, url], 2),
        ]
    return ",".join(dict.fromkeys(seen))


def new_namespace(url: str) -> str:
    """Fork the first process of a new PID namespace from the first process of a different namespace."""
    unshare()
    assert os.getpid() == 1
    return in_child(lambda url: send(url) if os.getpid() == 1 else "another process id", url)


def unshare() -> None:
    try:
        os.unshare(os.CLONE_NEWPID | (0 if os.geteuid() == 0 else os.CLONE_NEWUSER))
    except (AttributeError, OSError) as error:  # Python 3.11, an unsupported system, or a missing permission
        sys.stderr.write(f"{type(error).__name__}: {error}")
        os._exit(NOT_PERMITTED)


def requests_of_child(url: str) -> str:
    """Serve Bob and run a separate job in the child, and check that the child's own child has no token."""

    def job(url: str) -> str:
        with use_token(BOB):
            return send(url)

    def consume(url: str) -> str:
        """Consume a message that contains the same token as Alice's request."""
        attached = otel_context.attach(propagate.extract({"authorization": f"Bearer {ALICE}"}))
        try:
            return send(url)
        finally:
            otel_context.detach(attached)

    def work(url: str) -> str:
        return ",".join((send(url), serve(BOB, url, send), job(url), consume(url), serve(BOB, url, fork), send(url)))

    return in_child(work, url)


def here(url: str) -> str:
    return send(url)


def main(ways: list[str], url: str, options: list[str]) -> None:
    if "same_pid" in options:
        pid = os.getpid()
        os.getpid = lambda: pid
    if "new_namespace" in ways:
        unshare()
        if child := os.fork():
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    install(Settings(destinations=(url,)))
    if "unguarded" in options:
        BearerToken.is_own_process = BearerToken.is_usable = True
    for way in ways:
        print(serve(ALICE, url, globals()[way]), flush=True)  # noqa: T201  # the test reads this


if __name__ == "__main__":
    main(sys.argv[1].split(","), sys.argv[2], sys.argv[3:])
