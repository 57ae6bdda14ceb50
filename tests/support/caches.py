"""The table of caches for clients, and a server whose responses depend on the caller's token.

Each row uses one cache and one client for all its calls, as a service does.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import sqlite3
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import hishel
import hishel.httpx
import hishel.httpx2
import hishel.requests
import httpx
import httpx2
import requests
import requests_cache
from aiohttp_client_cache import CacheBackend
from aiohttp_client_cache import CachedSession as AiohttpSession
from cachecontrol import CacheControl
from cachecontrol.caches import FileCache, SeparateBodyFileCache
from cachecontrol.heuristics import ExpiresAfter, LastModified, OneDayCache

ANONYMOUS = "anonymous"
ETAG = '"v1"'

# A destination's response headers for caches, by the name in the request path.
VARIANTS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "private": (("Cache-Control", "private, max-age=60"),),
    "public": (("Cache-Control", "public, max-age=60"),),
    "vary": (("Cache-Control", "max-age=60"), ("Vary", "Authorization")),
    "etag": (("Cache-Control", "max-age=60"), ("ETag", ETAG)),
    "stale": (("Cache-Control", "max-age=0, stale-if-error=60, stale-while-revalidate=60"), ("ETag", ETAG)),
    "silent": (),
    "two-lines": (("cache-control", "public"), ("cache-control", "max-age=60")),
}


@dataclass(frozen=True)
class Answer:
    """A response as the application receives it."""

    status: int
    body: str
    headers: Mapping[str, str]

    @property
    def cache_control(self) -> str | None:
        return self.headers.get("cache-control")


Call = Callable[..., Answer]


class _Personal(BaseHTTPRequestHandler):
    """Respond with the caller's token. ``/redirect?to=…`` redirects, and every other path has the headers of its
    variant.
    """

    protocol_version = "HTTP/1.1"
    wbufsize = 65536  # one segment for headers and body; with two, each response would wait 40 ms for an acknowledgment
    seen: list[tuple[str, str, str | None]]

    def do_GET(self) -> None:
        token = self.headers.get("Authorization", ANONYMOUS).removeprefix("Bearer ")
        self.seen.append((self.path, token, self.headers.get("If-None-Match")))
        parts = urlsplit(self.path)
        name = parts.path.rpartition("/")[2]
        to = parse_qs(parts.query).get("to")
        lines = (("Location", to[0]), ("Cache-Control", "max-age=60")) if to else VARIANTS.get(name, ())
        is_known = ("ETag", ETAG) in lines and self.headers.get("If-None-Match") == ETAG
        body = b"" if is_known else token.encode()
        self.send_response(int(parts.path.split("/")[1]) if to else 304 if is_known else 200)
        for line in lines:
            self.send_header(*line)
        if not is_known:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests."""


@dataclass
class Server:
    """A running server.

    Attributes:
        url: Its origin.
        seen: The path, the token, and the validator of each request.
    """

    url: str
    seen: list[tuple[str, str, str | None]]


class _ManyCallers(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@contextmanager
def personal_server() -> Iterator[Server]:
    """Run a server that responds with the token that it received."""
    handler = type("_Bound", (_Personal,), {"seen": []})
    server = _ManyCallers(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    contextvars.Context().run(thread.start)
    try:
        yield Server(f"http://127.0.0.1:{server.server_address[1]}", handler.seen)  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass(frozen=True)
class Row:
    """One mode of a cache.

    Attributes:
        name: The name.
        opening: ``with opening(folder) as call`` keeps one client open. ``call(url, headers)`` sends a GET request.
    """

    name: str
    opening: Callable[[Path], Any]


def _mapping(headers: Any) -> dict[str, str]:
    shown: dict[str, str] = {}
    for name, value in headers.items():
        shown[name.lower()] = f"{shown[name.lower()]}, {value}" if name.lower() in shown else value
    shown.pop("date", None)
    return shown


def calls_of_requests(session: requests.Session) -> Call:
    def call(url: str, headers: Mapping[str, str] | None = None) -> Answer:
        response = session.get(url, headers=dict(headers or {}), timeout=30)
        return Answer(response.status_code, response.text, _mapping(response.headers))

    return call


def _requests_row(name: str, build: Callable[[Path], requests.Session]) -> Row:
    @contextmanager
    def opening(folder: Path) -> Iterator[Call]:
        with build(folder) as session:
            session.trust_env = False
            yield calls_of_requests(session)

    return Row(name, opening)


def _httpx_row(name: str, build: Callable[[Path], Any]) -> Row:
    @contextmanager
    def opening(folder: Path) -> Iterator[Call]:
        with build(folder) as client:

            def call(url: str, headers: Mapping[str, str] | None = None) -> Answer:
                response = client.get(url, headers=dict(headers or {}), follow_redirects=True)
                return Answer(response.status_code, response.text, _mapping(response.headers))

            yield call

    return Row(name, opening)


@contextmanager
def _in_loop(build: Callable[[], Any], send: Callable[..., Any]) -> Iterator[Call]:
    with asyncio.Runner() as runner:
        client = runner.run(_entered(build))

        def call(url: str, headers: Mapping[str, str] | None = None) -> Answer:
            return runner.run(send(client, url, dict(headers or {})), context=contextvars.copy_context())

        try:
            yield call
        finally:
            runner.run(client.__aexit__(None, None, None))


async def _entered(build: Callable[[], Any]) -> Any:
    return await build().__aenter__()


async def send_httpx(client: Any, url: str, headers: Mapping[str, str]) -> Answer:
    response = await client.get(url, headers=headers, follow_redirects=True)
    return Answer(response.status_code, response.text, _mapping(response.headers))


async def send_aiohttp(client: Any, url: str, headers: Mapping[str, str]) -> Answer:
    async with client.get(url, headers=headers) as response:
        return Answer(response.status, await response.text(), _mapping(response.headers))


def _async_row(name: str, build: Callable[[Path], Any], send: Callable[..., Any]) -> Row:
    return Row(name, lambda folder: _in_loop(lambda: build(folder), send))


def _cache_control(**options: Any) -> Callable[[Path], requests.Session]:
    return lambda _: CacheControl(requests.Session(), **options)


def _requests_cache(**options: Any) -> Callable[[Path], requests.Session]:
    def build(folder: Path) -> requests.Session:
        named = {"backend": "memory"} | options
        if named["backend"] != "memory":
            named["cache_name"] = str(folder / "cache")
        return requests_cache.CachedSession(**named)

    return build


def _stacked(_: Path) -> requests.Session:
    return CacheControl(requests_cache.CachedSession(backend="memory"))


def in_memory() -> hishel.SqliteStorage:
    """Return in-memory storage; hishel would use ``:memory:`` as a file name."""
    return hishel.SqliteStorage(connection=sqlite3.connect(":memory:", check_same_thread=False))


def _hishel_requests(rfc: bool) -> Callable[[Path], requests.Session]:
    def build(_: Path) -> requests.Session:
        session = requests.Session()
        session.mount("http://", hishel.requests.CacheAdapter(storage=in_memory(), rfc=rfc))
        return session

    return build


class MemoryStorage(hishel.AsyncBaseStorage):
    """In-memory storage for hishel's asynchronous clients, because hishel's own storage needs additional packages."""

    def __init__(self) -> None:
        super().__init__()
        self._entries: dict[str, list[tuple[hishel.Entry, list[bytes]]]] = {}

    async def create_entry(
        self,
        request: hishel.Request,
        response: hishel.Response,
        key: str,
        *,
        ttl: float | None = None,
        tti: float | None = None,
    ) -> hishel.Entry:
        entry = hishel.Entry(uuid.uuid4(), request, replace(response))
        entry.response.stream = self._saving(entry, response.stream, key)
        return entry

    async def _saving(self, entry: hishel.Entry, stream: Any, key: str) -> AsyncIterator[bytes]:
        chunks = []
        async for chunk in stream:
            chunks.append(chunk)
            yield chunk
        self._entries.setdefault(key, []).append((entry, chunks))

    async def get_entries(self, key: str) -> list[hishel.Entry]:
        async def read(chunks: list[bytes]) -> AsyncIterator[bytes]:
            for chunk in chunks:
                yield chunk

        return [
            replace(entry, response=replace(entry.response, stream=read(chunks)))
            for entry, chunks in self._entries.get(key, ())
        ]

    async def update_headers(self, id: uuid.UUID, headers: hishel.Headers) -> None:
        for entry, _ in itertools.chain.from_iterable(self._entries.values()):
            if entry.id == id:
                entry.response.headers = headers

    async def remove_entry(self, id: uuid.UUID) -> None:
        for key, entries in self._entries.items():
            self._entries[key] = [pair for pair in entries if pair[0].id != id]


def _hishel_rows(library: Any, module: Any, name: str) -> Iterator[Row]:
    for rfc in (False, True):
        mode = "RFC mode" if rfc else "default"
        yield _httpx_row(
            f"hishel, {name} transport, {mode}",
            lambda _, rfc=rfc: library.Client(  # type: ignore[misc]
                transport=module.CacheTransport(library.HTTPTransport(verify=False), in_memory(), rfc=rfc),
                trust_env=False,
            ),
        )
        yield _httpx_row(
            f"hishel, {name} client, {mode}",
            lambda _, rfc=rfc: module.CacheClient(storage=in_memory(), rfc=rfc, trust_env=False, verify=False),  # type: ignore[misc]
        )
        yield _async_row(
            f"hishel, {name} async transport, {mode}",
            lambda _, rfc=rfc: library.AsyncClient(  # type: ignore[misc]
                transport=module.AsyncCacheTransport(
                    library.AsyncHTTPTransport(verify=False), MemoryStorage(), rfc=rfc
                ),
                trust_env=False,
            ),
            send_httpx,
        )
        yield _async_row(
            f"hishel, {name} async client, {mode}",
            lambda _, rfc=rfc: module.AsyncCacheClient(  # type: ignore[misc]
                storage=MemoryStorage(), rfc=rfc, trust_env=False, verify=False
            ),
            send_httpx,
        )


def _aiohttp_row(name: str, **options: Any) -> Row:
    return _async_row(name, lambda _: AiohttpSession(cache=CacheBackend(**options)), send_aiohttp)


CACHES = (
    _requests_row("CacheControl", _cache_control()),
    _requests_row("CacheControl, LastModified", _cache_control(heuristic=LastModified())),
    _requests_row("CacheControl, ExpiresAfter", _cache_control(heuristic=ExpiresAfter(days=1))),
    _requests_row("CacheControl, OneDayCache", _cache_control(heuristic=OneDayCache())),
    _requests_row("CacheControl, files", lambda folder: CacheControl(requests.Session(), FileCache(str(folder)))),
    _requests_row(
        "CacheControl, files with separate bodies",
        lambda folder: CacheControl(requests.Session(), SeparateBodyFileCache(str(folder))),
    ),
    _requests_row("requests-cache", _requests_cache()),
    _requests_row("requests-cache, cache_control", _requests_cache(cache_control=True)),
    _requests_row("requests-cache, match_headers", _requests_cache(match_headers=["Authorization"])),
    _requests_row("requests-cache, stale_if_error", _requests_cache(stale_if_error=True, expire_after=1)),
    _requests_row(
        "requests-cache, stale_while_revalidate",
        _requests_cache(stale_while_revalidate=True, expire_after=timedelta(milliseconds=1)),
    ),
    _requests_row("requests-cache, always_revalidate", _requests_cache(always_revalidate=True)),
    _requests_row("requests-cache, SQLite", _requests_cache(backend="sqlite")),
    _requests_row("requests-cache, files", _requests_cache(backend="filesystem")),
    _requests_row("requests-cache above CacheControl", _stacked),
    _requests_row("hishel, requests adapter, default", _hishel_requests(False)),
    _requests_row("hishel, requests adapter, RFC mode", _hishel_requests(True)),
    *_hishel_rows(httpx, hishel.httpx, "httpx"),
    *_hishel_rows(httpx2, hishel.httpx2, "httpx2"),
    _aiohttp_row("aiohttp-client-cache"),
    _aiohttp_row("aiohttp-client-cache, cache_control", cache_control=True),
    _aiohttp_row("aiohttp-client-cache, include_headers", include_headers=True),
)
