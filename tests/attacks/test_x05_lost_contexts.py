"""x05: work that has lost its request's context never gets the service's own token, wherever the work runs."""

from __future__ import annotations

import contextvars
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

import pytest
import requests

from otel_token_relay import Settings, as_service, context, install, use_token
from otel_token_relay.configured_exchange import build_token_source
from tests.support.loopback import party
from tests.support.token_endpoint import SECRET, Endpoint, serving, verified

ALICE = "alice-has-this-token-0123456789"
OWN = "Bearer service.for.billing"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    build_token_source.cache_clear()
    with serving() as running:
        yield running
    build_token_source.cache_clear()


def install_for(token_endpoint: str, url: str) -> None:
    install(
        Settings(
            destinations=(f"{url};audience=billing;without-user=client",),
            token_endpoint=token_endpoint,
            client_id="user-service",
            client_secret=SECRET,
        )
    )


def call(url: str) -> str:
    return requests.get(url).text


def call_as_service(url: str) -> str:
    with as_service():
        return call(url)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_process_pool_that_was_started_before_the_first_request(
    endpoint: Endpoint, method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process pool that was started before the first request sends the service's token only in ``as_service``."""
    monkeypatch.setattr(context, "has_served", False)
    with party() as billing:
        install_for(endpoint.url, billing.url)
        start = multiprocessing.get_context(method)
        with ProcessPoolExecutor(1, start, install_for, (endpoint.url, billing.url)) as pool:
            pool.submit(os.getpid).result()
            context.has_served = True
            with use_token(verified(ALICE)):
                assert pool.submit(call, billing.url).result() == ""
                assert pool.submit(call_as_service, billing.url).result() == OWN


def users_work(work: Callable[[], object]) -> None:
    """Do a user's work in a separate thread."""

    def run() -> None:
        with use_token(verified(ALICE)):
            work()

    thread = threading.Thread(target=contextvars.Context().run, args=(run,))
    thread.start()
    thread.join()


def test_workers_that_were_started_as_the_service(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pool workers that were started in ``as_service`` send no token for a user's work without a context."""
    monkeypatch.setattr(context, "has_served", True)
    seen: list[str] = []
    with party() as billing:
        install_for(endpoint.url, billing.url)
        with use_token("the-first-token-of-the-process"):
            pass  # threads carry their context after the first token

        def note(*_: object) -> None:
            seen.append(call(billing.url))

        with as_service(), ThreadPoolExecutor(1) as executor, ThreadPool(1) as pool:
            assert executor.submit(call, billing.url).result() == OWN
            assert pool.apply(call, (billing.url,)) == OWN
            seen.clear()

            def work() -> None:
                ready = threading.Event()
                future = executor.submit(ready.wait)
                future.add_done_callback(note)
                ready.set()
                executor.submit(int).result()  # wait until the callback has returned
                contextvars.Context().run(lambda: executor.submit(note).result())
                contextvars.Context().run(pool.apply, note)
                pool.apply_async(int, callback=note).get()
                pool.apply(int)

            users_work(work)
        assert seen == [""] * 4
