"""x09: a request's telemetry contains no token that was obtained for the request, in any trace."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest
import requests
from opentelemetry import trace
from opentelemetry._logs import LogRecord
from opentelemetry.context import Context

from otel_token_relay import Settings, as_service, current_token, install, use_token
from tests.redaction.pipeline import Pipeline
from tests.support.loopback import Party, party
from tests.support.token_endpoint import ACCESS_TOKEN, SECRET, Endpoint, verified

pytestmark = pytest.mark.usefixtures("serving_process")

CALLERS = f"alice-{secrets.token_urlsafe(30)}"
RESULTS = pytest.mark.parametrize(
    "result", [secrets.token_urlsafe(40), "billing-token-of-the-service", "abc123def"], ids=["random", "words", "short"]
)


@pytest.fixture
def pipeline() -> Iterator[Pipeline]:
    pipeline = Pipeline()
    yield pipeline
    pipeline.close()


def emit(pipeline: Pipeline, text: str) -> None:
    pipeline.logger.emit(LogRecord(body=text))


def work_in_two_traces(pipeline: Pipeline, billing: Party) -> None:
    """Send hops in two traces, and record the received token in both traces, in a third trace, and without a trace."""
    for _ in range(2):
        with (
            pipeline.tracer.start_as_current_span("server", context=Context(), kind=trace.SpanKind.SERVER) as outer,
            pipeline.tracer.start_as_current_span("client", kind=trace.SpanKind.CLIENT) as inner,
        ):
            seen = requests.get(billing.url).text.removeprefix("Bearer ")
            for span in (outer, inner):
                span.set_attribute("seen", f"saw {seen}")
            emit(pipeline, f"saw {seen}")
    emit(pipeline, f"saw {seen}")
    if current_token() is not None:  # only a request records tokens in traces without a hop
        with pipeline.tracer.start_as_current_span("third", context=Context()) as span:
            span.set_attribute("seen", f"saw {seen}")
            emit(pipeline, f"saw {seen}")


@RESULTS
@pytest.mark.parametrize("binding", ["a user's", "the service's own"])
def test_hops(endpoint: Endpoint, pipeline: Pipeline, result: str, binding: str) -> None:
    """The exchanged token is masked, both when it is obtained and when it is found in the cache."""
    issued = {"issued_token_type": ACCESS_TOKEN, "token_type": "Bearer", "access_token": result, "expires_in": 300}
    endpoint.respond = lambda form: (200, issued)
    with party() as billing:
        install(
            Settings(
                destinations=(f"{billing.url};audience=billing;without-user=client",),
                token_endpoint=endpoint.url,
                client_id="user-service",
                client_secret=SECRET,
            )
        )
        for _ in range(2):
            bound: AbstractContextManager[object] = as_service()
            if binding == "a user's":
                bound = use_token(verified(CALLERS))
            with bound:
                work_in_two_traces(pipeline, billing)
        assert [line for line, *_ in billing.lines()] == [f"Bearer {result}"] * 4
    assert not any(result.encode() in data for data in pipeline.exported())


@RESULTS
def test_the_exchanger_in_code(endpoint: Endpoint, pipeline: Pipeline, result: str) -> None:
    issued = {"issued_token_type": ACCESS_TOKEN, "token_type": "Bearer", "access_token": result, "expires_in": 300}
    endpoint.respond = lambda form: (200, issued)
    install(Settings())
    exchanger = endpoint.exchanger()
    with use_token(verified(CALLERS)), pipeline.tracer.start_as_current_span("server") as span:
        token = current_token()
        for _ in range(2):
            seen = exchanger.exchange(token, audience="billing").reveal()
            span.set_attribute("seen", f"saw {seen}")
            emit(pipeline, f"saw {seen}")
    assert not any(result.encode() in data for data in pipeline.exported())
