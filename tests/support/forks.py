"""A single-threaded program that forks during Alice's request.

    python forks.py WAY URL [unguarded]

Prints the token that the listed server received from the child. Forking a process with several
threads is deprecated, and the test process has several.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor

import urllib3

from otel_token_relay import BearerToken, Settings, install
from otel_token_relay.servers.wsgi import TokenRelayMiddleware

ALICE = "alice-token-0001"


def send(url: str) -> str:
    with urllib3.PoolManager(retries=False) as manager:
        return manager.request("GET", url).data.decode()


def fork(url: str) -> str:
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writable, send(url).encode())
        os._exit(0)
    os.close(writable)
    os.waitpid(child, 0)
    with os.fdopen(readable) as output:
        return output.read()


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


def here(url: str) -> str:
    return send(url)


def main(way: str, url: str, unguarded: bool) -> None:
    settings = Settings(destinations=(url,))
    install(settings)
    if unguarded:
        BearerToken.is_at_home = True

    def app(environ, start_response):
        sys.stdout.write(globals()[way](url))
        return []

    TokenRelayMiddleware(app, settings)({"HTTP_AUTHORIZATION": f"Bearer {ALICE}"}, None)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], "unguarded" in sys.argv)
