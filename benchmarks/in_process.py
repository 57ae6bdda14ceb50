"""Serve requests inside one process without a network, as the program whose instructions are counted.

    python -m benchmarks.in_process STACK MODE COUNT [--anonymous] [--report]

Each request has its own token, subject, and trace, and makes the service send one request to a listed destination.
The client library is complete except for its transport, which returns the same response to every request. The
measurement therefore includes the CLIENT span and the hop, but not sockets.

STACK is ``fastapi`` (with one httpx call), ``flask`` (with one requests call), or ``extract``. ``extract`` is
an application that only extracts the context inside a server boundary.

With ``--report``, the program prints the effects of the requests as JSON, so a test can check that the benchmark
measures what it claims to measure.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

STACKS: Mapping[str, Sequence[str]] = {
    "fastapi": ("otel", "hand", "relay", "redaction"),
    "flask": ("otel", "hand", "relay", "redaction"),
    "extract": ("nothing", "tracecontext", "relay"),
}
ORIGINS = {
    "fastapi": "https://profile-service",
    "flask": "http://profile-service",
    "extract": "https://profile-service",
}
# The number of prepared requests does not depend on how many are served, so the difference between two counts
# includes no preparation.
PREPARED = 300
# These requests fill the caches. They are served before the counted requests.
WARM_UP = 60


@dataclass(frozen=True, slots=True)
class Request:
    """A caller's request: its trace and, unless the caller is anonymous, its token."""

    traceparent: str
    authorization: str | None


@dataclass(frozen=True, slots=True)
class Seen:
    """The effects of the requests.

    Attributes:
        statuses: The status of each response.
        wire: The headers of each request that the service sent; for ``extract``, each context.
    """

    statuses: list[int] = field(default_factory=list)
    wire: list[Any] = field(default_factory=list)


Serve = Callable[[Sequence[Request]], None]


def requests_of(count: int, *, anonymous: bool) -> list[Request]:
    """Return requests from different callers."""
    return [
        Request(
            traceparent=f"00-0af7651916cd43dd8448eb21{number:08x}-b7ad6b7169203331-01",
            authorization=None if anonymous else f"Bearer {_jwt(number)}",
        )
        for number in range(count)
    ]


def _jwt(number: int) -> str:
    """Return a string of about 900 characters that looks like an access token with its own subject and signature."""
    segments = (
        b'{"alg":"RS256","kid":"2026-11"}',
        b'{"exp":4000000000,"sub":"user-%06d"}' % number,
        b"%0600d" % number,
    )
    return ".".join(base64.urlsafe_b64encode(segment).rstrip(b"=").decode("ascii") for segment in segments)


def serve_fastapi(mode: str, seen: Seen) -> Serve:
    """Return a callable that serves requests with FastAPI, whose route calls the destination with httpx."""
    import fastapi
    import httpcore
    import httpx
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor

    class CannedPool(httpcore.AsyncConnectionPool):
        async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
            seen.wire.append(request.headers)
            return httpcore.Response(200, headers=[(b"content-length", b"2")], content=b"{}")

    FastAPIInstrumentor().instrument()
    HTTPXClientInstrumentor().instrument()
    # contrib replaces this name. The original class would record FastAPI's own spans, which differ.
    app = fastapi.FastAPI()
    client = httpx.AsyncClient()
    transport: Any = client._transport
    transport._pool = CannedPool()

    @app.get("/orders")
    async def orders() -> dict[str, int]:
        return {"profile": (await client.get(f"{ORIGINS['fastapi']}/me")).status_code}

    if mode == "hand":
        authorization: ContextVar[str | None] = ContextVar("authorization", default=None)

        class KeepAuthorization:
            def __init__(self, app: Any) -> None:
                self.app = app

            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                if scope["type"] == "http":
                    values = (value.decode() for name, value in scope["headers"] if name == b"authorization")
                    authorization.set(next(values, None))
                await self.app(scope, receive, send)

        async def add_authorization(request: httpx.Request) -> None:
            value = authorization.get()
            if value is not None:
                request.headers["Authorization"] = value

        app.add_middleware(KeepAuthorization)
        client.event_hooks = {"request": [add_authorization]}
    return _serve_asgi(app, seen)


def serve_extract(mode: str, seen: Seen) -> Serve:
    """Return a callable that extracts each request's context inside a boundary, as instrumentation does."""
    from opentelemetry.instrumentation.asgi import asgi_getter

    from otel_token_relay import Settings, TokenRelayPropagator
    from otel_token_relay.servers.asgi import TokenRelayMiddleware

    settings = Settings(destinations=(ORIGINS["extract"],))
    modes: dict[str, Callable[..., Context]] = {
        "nothing": lambda carrier, getter: Context(),
        "tracecontext": TraceContextTextMapPropagator().extract,
        "relay": TokenRelayPropagator(settings).extract,
    }
    extract = modes[mode]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.wire.append(extract(scope, getter=asgi_getter))
        seen.statuses.append(200)

    return _serve_asgi(TokenRelayMiddleware(app, settings), seen)


def _serve_asgi(app: Any, seen: Seen) -> Serve:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            seen.statuses.append(message["status"])

    async def serve_all(requests: Sequence[Request]) -> None:
        for request in requests:
            headers = [
                (b"host", b"localhost:8000"),
                (b"user-agent", b"python-httpx/0.28.1"),
                (b"accept", b"*/*"),
                (b"accept-encoding", b"gzip"),
                (b"connection", b"keep-alive"),
                (b"traceparent", request.traceparent.encode("ascii")),
            ]
            if request.authorization is not None:
                headers.append((b"authorization", request.authorization.encode("ascii")))
            scope = {
                "type": "http",
                "asgi": {"version": "3.0"},
                "http_version": "1.1",
                "method": "GET",
                "scheme": "http",
                "path": "/orders",
                "raw_path": b"/orders",
                "query_string": b"",
                "root_path": "",
                "headers": headers,
                "client": ("127.0.0.1", 51034),
                "server": ("127.0.0.1", 8000),
            }
            await app(scope, receive, send)

    loop = asyncio.new_event_loop()
    return lambda requests: loop.run_until_complete(serve_all(requests))


def serve_flask(mode: str, seen: Seen) -> Serve:
    """Return a callable that serves requests with Flask, whose view calls the destination with requests."""
    import flask
    import requests
    import urllib3
    from opentelemetry.instrumentation.flask import FlaskInstrumentor
    from opentelemetry.instrumentation.requests import RequestsInstrumentor
    from requests.auth import AuthBase
    from urllib3.connectionpool import HTTPConnectionPool

    def respond(pool: Any, connection: Any, method: str, url: str, **options: Any) -> urllib3.HTTPResponse:
        seen.wire.append(options["headers"])
        return urllib3.HTTPResponse(
            body=io.BytesIO(b"{}"),
            headers={"content-length": "2"},
            status=200,
            preload_content=False,
            request_method=method,
        )

    # This method is not hooked yet, so the relay hooks the replacement as it would hook the original.
    HTTPConnectionPool._make_request = respond  # type: ignore[assignment]
    FlaskInstrumentor().instrument()
    RequestsInstrumentor().instrument()
    app = flask.Flask("in_process")
    session = requests.Session()
    session.trust_env = False  # otherwise, half of the time is spent looking for a .netrc file

    @app.get("/orders")
    def orders() -> dict[str, int]:
        return {"profile": session.get(f"{ORIGINS['flask']}/me").status_code}

    if mode == "hand":

        @app.before_request
        def keep_authorization() -> None:
            flask.g.authorization = flask.request.headers.get("Authorization")

        class AddAuthorization(AuthBase):
            def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
                if flask.g.authorization is not None:
                    request.headers["Authorization"] = flask.g.authorization
                return request

        session.auth = AddAuthorization()

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
        seen.statuses.append(int(status[:3]))
        return lambda _: None

    def serve_all(requests: Sequence[Request]) -> None:
        for request in requests:
            environ = {
                "REQUEST_METHOD": "GET",
                "SCRIPT_NAME": "",
                "PATH_INFO": "/orders",
                "QUERY_STRING": "",
                "SERVER_NAME": "localhost",
                "SERVER_PORT": "8000",
                "SERVER_PROTOCOL": "HTTP/1.1",
                "HTTP_HOST": "localhost:8000",
                "HTTP_USER_AGENT": "python-requests/2.34.2",
                "HTTP_ACCEPT": "*/*",
                "HTTP_TRACEPARENT": request.traceparent,
                "wsgi.version": (1, 0),
                "wsgi.url_scheme": "http",
                "wsgi.input": io.BytesIO(),
                "wsgi.errors": sys.stderr,
                "wsgi.multithread": True,
                "wsgi.multiprocess": False,
                "wsgi.run_once": False,
            }
            if request.authorization is not None:
                environ["HTTP_AUTHORIZATION"] = request.authorization
            body: Any = app(environ, start_response)
            b"".join(body)
            if hasattr(body, "close"):
                body.close()

    return serve_all


BUILDERS = {"fastapi": serve_fastapi, "flask": serve_flask, "extract": serve_extract}


class _Spans(SpanExporter):
    """Discard all spans, and with ``--report``, count their kinds."""

    def __init__(self, *, counts: bool) -> None:
        self.kinds: Counter[str] = Counter()
        self._counts = counts

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._counts:
            self.kinds.update(span.kind.name for span in spans)
        return SpanExportResult.SUCCESS


def authorizations(wire: Sequence[Any]) -> list[str | None]:
    """Return the Authorization header of each request that the service sent; ``None`` for a request without one."""
    found = []
    for headers in wire:
        pairs = headers.items() if hasattr(headers, "items") else headers
        values = [value for name, value in pairs if _text(name).lower() == "authorization"]
        if len(values) > 1:
            raise AssertionError("expected at most one Authorization header")
        found.append(_text(values[0]) if values else None)
    return found


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _install(stack: str, *, redaction: bool) -> None:
    from otel_token_relay import Settings, install

    install(Settings(destinations=(ORIGINS[stack],), redaction=redaction))


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the requests. Exit with status 1 if any request failed or did not arrive at the destination."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.in_process", description="Serve requests.")
    parser.add_argument("stack", choices=STACKS)
    parser.add_argument("mode", choices=sorted(set(itertools.chain(*STACKS.values()))))
    parser.add_argument("count", type=int)
    parser.add_argument("--anonymous", action="store_true", help="send requests without a token")
    parser.add_argument("--report", action="store_true", help="print the effects of the requests as JSON")
    options = parser.parse_args(arguments)
    if options.mode not in STACKS[options.stack] or options.count > PREPARED:
        parser.error(f"expected a mode of {options.stack} and at most {PREPARED} requests")

    exporter = _Spans(counts=options.report)
    provider = TracerProvider()
    # The program exports the queue once, when it ends.
    provider.add_span_processor(
        BatchSpanProcessor(
            exporter, schedule_delay_millis=3_600_000, max_queue_size=100_000, max_export_batch_size=50_000
        )
    )
    trace.set_tracer_provider(provider)
    propagate.set_global_textmap(CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()]))
    requests = requests_of(WARM_UP + PREPARED, anonymous=options.anonymous)
    seen = Seen()
    serve = BUILDERS[options.stack](options.mode, seen)
    if options.stack != "extract" and options.mode in ("relay", "redaction"):
        _install(options.stack, redaction=options.mode == "redaction")
    serve(requests[:WARM_UP])
    seen.statuses.clear()
    seen.wire.clear()
    served = requests[WARM_UP : WARM_UP + options.count]
    serve(served)

    if options.report:
        provider.shutdown()
        print(json.dumps(_report(options.stack, served, seen, exporter)))
    is_complete = seen.statuses == [200] * options.count and len(seen.wire) == options.count
    return 0 if is_complete else 1


def _report(stack: str, served: Sequence[Request], seen: Seen, exporter: _Spans) -> dict[str, Any]:
    report: dict[str, Any] = {"statuses": seen.statuses, "spans": exporter.kinds, "redaction": None}
    if stack == "extract":
        from otel_token_relay.context import bound_token

        # The requests and their leases have ended, so `current_token` would return no token.
        tokens = [bound_token(context) for context in seen.wire]
        sent = [None if token is None else f"Bearer {token.reveal()}" for token in tokens]
        report["traces"] = sum(trace.get_current_span(context).get_span_context().is_valid for context in seen.wire)
    else:
        sent = authorizations(seen.wire)
    report["own"] = sum(value == request.authorization for value, request in zip(sent, served, strict=True))
    report["without"] = sent.count(None)
    if "otel_token_relay" in sys.modules:
        from otel_token_relay.redaction import installation

        report["redaction"] = installation.states()["spans"] == installation.HOOKED
    return report


if __name__ == "__main__":
    sys.exit(main())
