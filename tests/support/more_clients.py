"""Further rows for the table of HTTP clients, in its shape: Tornado's."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry.instrumentation.tornado import TornadoInstrumentor
from tornado.httpclient import HTTPRequest
from tornado.simple_httpclient import SimpleAsyncHTTPClient


@dataclass(frozen=True)
class Answer:
    """What came back, and the headers of the sent requests as the application can see them."""

    status: int
    body: bytes
    shown: list[tuple[str, str]]

    def shows(self, header: str) -> bool:
        return any(name.lower() == header for name, _ in self.shown)


@dataclass(frozen=True)
class Client:
    """One way to send; see the table that this row goes into.

    Attributes:
        has_proxies: Whether ``proxy=`` works.
        has_excluded_urls: Whether contrib's instrumentation can be told to leave URLs out.
    """

    name: str
    call: Callable[..., Answer]
    reusing: Callable[[str], AbstractContextManager[Callable[[], bytes]]]
    instrumentor: Callable[[], Any]
    is_async: bool = False
    follows: bool = True
    has_proxies: bool = True
    has_excluded_urls: bool = True


def _tornado_call(
    url: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: Sequence[bytes] | None = None,
    proxy: str | None = None,
) -> Answer:
    if proxy is not None:
        raise NotImplementedError("SimpleAsyncHTTPClient has no proxies")

    async def run() -> Answer:
        # Tornado wants a body for these methods, if an empty one.
        content = b"".join(body or ()) if body or method in ("POST", "PUT", "PATCH") else None
        request = HTTPRequest(url, method=method, headers=dict(headers or {}), body=content, validate_cert=False)
        client = SimpleAsyncHTTPClient(force_instance=True)
        try:
            response = await client.fetch(request, raise_error=False)
            if response.code == 599:
                raise OSError("the request failed")
            shown = [*request.headers.items(), *response.request.headers.items()]
            return Answer(response.code, response.body, shown)
        finally:
            client.close()

    return asyncio.run(run())


@contextmanager
def _tornado_reusing(url: str) -> Iterator[Callable[[], bytes]]:
    request = HTTPRequest(url)
    with asyncio.Runner() as runner:

        async def make() -> SimpleAsyncHTTPClient:
            return SimpleAsyncHTTPClient(force_instance=True)

        client = runner.run(make())

        async def fetch() -> bytes:
            return (await client.fetch(request)).body

        yield lambda: runner.run(fetch(), context=contextvars.copy_context())
        client.close()


ROWS = [
    Client(
        "tornado",
        _tornado_call,
        _tornado_reusing,
        TornadoInstrumentor,
        is_async=True,
        has_proxies=False,
        has_excluded_urls=False,
    )
]
