"""h14: credentials that no boundary accepts are masked in the telemetry of their own request and nowhere else."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import Any

import pytest
from fastapi import FastAPI, Request
from flask import Flask, request
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry._logs import LogRecord
from opentelemetry.context import Context
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware as AsgiInstrumentation
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware as WsgiInstrumentation
from opentelemetry.sdk.resources import Resource

from otel_token_relay import Settings, TokenRelayPropagator, install, use_token
from otel_token_relay.boundary import Boundary
from otel_token_relay.redaction import redact
from otel_token_relay.redaction.scrubber import MASK
from tests.redaction.corpus import OWN_OPAQUE
from tests.redaction.pipeline import Pipeline, leaks
from tests.support.servers import get, serve_asgi, serve_wsgi

SECRET = OWN_OPAQUE
USED = "kq3Zt9vX0aPl71bLxYqHs4Rm2Wd8"
LONG = "Qk7dW3xPz0sVbN5mL2rTyU8iOpA4sDfGhJkL1zXcVbNm" * 400
WORD = "checkout-service"

FORWARDED = ("x-forwarded-access-token", "authorization")

Lines = list[tuple[str, str]]

# Each row contains the headers of a request and the configured source headers.
REFUSED: dict[str, tuple[Lines, tuple[str, ...]]] = {
    "doubled": ([("Authorization", f"Bearer {SECRET},Bearer {SECRET}")], ("authorization",)),
    "two lines": ([("Authorization", f"Bearer {USED}"), ("Authorization", f"Bearer {SECRET}")], ("authorization",)),
    "Basic": ([("Authorization", f"Basic {SECRET}")], ("authorization",)),
    "DPoP": ([("Authorization", f"DPoP {SECRET}")], ("authorization",)),
    "Token": ([("Authorization", f"Token {SECRET}")], ("authorization",)),
    "Token with a parameter": ([("Authorization", f'Token token="{SECRET}"')], ("authorization",)),
    "a parameter": ([("Authorization", f"OAuth access_token={SECRET}, realm=x")], ("authorization",)),
    "two words": ([("Authorization", f"Bearer {SECRET} {USED}")], ("authorization",)),
    "no scheme": ([("Authorization", SECRET)], ("authorization",)),
    "no source header": ([("Authorization", f"Bearer {SECRET}")], ("x-forwarded-access-token",)),
    "second source header": (
        [("Authorization", f"Bearer {SECRET}"), ("X-Forwarded-Access-Token", USED)],
        FORWARDED,
    ),
}


@pytest.fixture
def pipeline() -> Iterator[Pipeline]:
    pipeline = Pipeline()
    yield pipeline
    pipeline.close()


def asgi(pipeline: Pipeline) -> AbstractContextManager[int]:
    app = FastAPI()

    @app.get("/{rest}")
    async def handle(rest: str, asked: Request) -> None:
        record(pipeline, asked.query_params["text"])

    return serve_asgi(AsgiInstrumentation(app, tracer_provider=pipeline.tracers))


def wsgi(pipeline: Pipeline) -> AbstractContextManager[int]:
    app = Flask("app")

    @app.get("/<rest>")
    def handle(rest: str) -> str:
        record(pipeline, request.args["text"])
        return ""

    app.wsgi_app = WsgiInstrumentation(app.wsgi_app, tracer_provider=pipeline.tracers)  # type: ignore[method-assign]
    return serve_wsgi(app)


def record(pipeline: Pipeline, text: str) -> None:
    """Write the text to one record of each signal and to an exception."""
    pipeline.logger.emit(LogRecord(body=f"read {text}"))
    pipeline.meter.create_counter("reads").add(1, {"text": text})
    with suppress(KeyError), pipeline.tracer.start_as_current_span("inner") as span:
        span.set_attribute("text", text)
        raise KeyError(text)


@pytest.mark.parametrize("serve", [asgi, wsgi])
@pytest.mark.parametrize("name", REFUSED)
def test_h14_unused_credentials_are_masked_in_their_request(
    name: str, serve: Callable[[Pipeline], AbstractContextManager[int]], pipeline: Pipeline
) -> None:
    """Unused credentials are masked in all telemetry of their request on a real server."""
    headers, source_headers = REFUSED[name]
    install(Settings(source_headers=source_headers))
    with serve(pipeline) as port:
        assert get(port, f"/{SECRET}?text={SECRET}", headers=headers).status in (200, 500)

    exported = pipeline.exported()
    assert sum(b"inner" in text for text in exported) == 2  # the exporters have received the records
    assert [leaks(SECRET, text) for text in exported] == [0] * 5


def values_of(*lines: str | bytes) -> Callable[[str], tuple[str | bytes, ...]]:
    return lambda name: lines if name == "authorization" else ()


def serving(lines: tuple[str | bytes, ...], work: Callable[[], Any]) -> Any:
    """Run *work* in the context of a request with these ``Authorization`` lines."""
    boundary = Boundary.of(values_of(*lines), Settings())
    attached = otel_context.attach(boundary.context())
    try:
        return work()
    finally:
        boundary.close()
        otel_context.detach(attached)


def test_h14_the_ends_of_a_token_that_is_too_long_are_masked(pipeline: Pipeline) -> None:
    """The first and the last part of an oversized token are masked."""
    install(Settings())
    serving((f"Bearer {LONG}",), lambda: record(pipeline, f"{LONG[:2000]} and {LONG[-2000:]}"))

    assert not any(leaks(LONG[:200], text) + leaks(LONG[-200:], text) for text in pipeline.exported())


def test_h14_a_word_is_masked_only_in_its_own_request(pipeline: Pipeline) -> None:
    """A word from unused credentials is masked only in its own request."""
    install(Settings())
    parent = trace.set_span_in_context(
        trace.NonRecordingSpan(trace.SpanContext(4711, 1, is_remote=True, trace_flags=trace.TraceFlags(1))), Context()
    )

    def work() -> None:
        attached = otel_context.attach(Context(otel_context.get_current() | parent))
        record(pipeline, WORD)
        otel_context.detach(attached)

    serving((f"Basic {WORD}",), work)
    assert WORD.encode() not in pipeline.exported()[0]
    for context in (parent, Context()):
        pipeline.tracer.start_span(f"other {WORD}", context).end()
        pipeline.logger.emit(LogRecord(body=f"other {WORD}", context=context))
    with use_token(USED):
        pipeline.logger.emit(LogRecord(body=f"third {WORD}"))

    assert pipeline.exported()[0].count(f"other {WORD}".encode()) == 4
    assert f"third {WORD}".encode() in pipeline.exported()[0]
    assert Resource({"service.name": WORD}).attributes["service.name"] == WORD


def test_h14_a_context_that_outlives_the_request_masks_no_words_of_it() -> None:
    """Words from unused credentials are no longer masked after the request has ended."""
    install(Settings())
    kept = serving((f"Basic {WORD}",), otel_context.get_current)

    attached = otel_context.attach(kept)
    try:
        assert redact(f"a {WORD}") == f"a {WORD}"
    finally:
        otel_context.detach(attached)


def test_h14_a_resource_that_a_request_creates_is_masked() -> None:
    """A resource that is created during a request is masked with that request's unused credentials."""
    install(Settings())
    resource = serving((f"Basic {SECRET}",), lambda: Resource({"job": f"of {SECRET}"}))

    assert resource.attributes["job"] == f"of {MASK}"


def test_h14_the_scheme_and_the_names_of_parameters_are_not_masked() -> None:
    """The scheme and the names of parameters in unused credentials are not masked."""
    line = f'AWS4-HMAC-SHA256 Credential={SECRET}, SignedHeaders=host, Negotiate="x"'
    install(Settings())

    text = serving((line,), lambda: redact(f"AWS4-HMAC-SHA256 Credential SignedHeaders Negotiate {SECRET}"))

    assert text == f"AWS4-HMAC-SHA256 Credential SignedHeaders Negotiate {MASK}"


def test_h14_without_a_boundary_extract_announces_unused_credentials() -> None:
    """Without a boundary, `extract` registers unused credentials for masking."""
    install(Settings())
    context = TokenRelayPropagator().extract({"authorization": f"Bearer {SECRET},Bearer {SECRET}"})

    attached = otel_context.attach(context)
    try:
        assert redact(f"a {SECRET}") == f"a {MASK}"
        assert SECRET not in repr(dict(context))
        with pytest.raises(TypeError):
            json.dumps(dict(context))
    finally:
        otel_context.detach(attached)


def test_h14_base64_credentials_are_masked_in_their_decoded_record() -> None:
    """Base64 credentials are masked in their encoded form."""
    coded = base64.b64encode(b"alice:hunter2-hunter2").decode()
    install(Settings())

    assert serving((f"Basic {coded}",), lambda: redact(f"got {coded}")) == f"got {MASK}"
