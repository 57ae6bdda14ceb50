"""A rejected request has a SERVER span and a duration."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import suppress_http_instrumentation, suppress_instrumentation
from opentelemetry.propagate import set_global_textmap
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_token_relay import install, refusals
from otel_token_relay.authentication import ErrorResponse
from otel_token_relay.boundary import Boundary
from otel_token_relay.context import bind
from otel_token_relay.otel import get_current
from otel_token_relay.rate_limits import RateLimit
from otel_token_relay.refusals import OPT_IN_VARIABLE, SPANS_PER_SECOND, GrpcCall, HttpRequest
from otel_token_relay.settings import Settings
from otel_token_relay.token import BearerToken
from tests.support.telemetry import Telemetry, recording

OLD, NEW = "http.server.duration", "http.server.request.duration"
EXPIRED = ErrorResponse.build(401, "invalid_token").because("expired")
UNAVAILABLE = ErrorResponse.build(503, "temporarily_unavailable").because("unavailable")

TRACE_ID, SPAN_ID = 0xAAAABBBBCCCCDDDDEEEEFFFF00001111, 0x2222333344445555
TRACEPARENT = f"00-{TRACE_ID:032x}-{SPAN_ID:016x}-01"


@pytest.fixture
def telemetry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Telemetry]:
    """Providers that replace the global ones, and the default names."""
    monkeypatch.delenv(OPT_IN_VARIABLE, raising=False)
    with recording(monkeypatch) as telemetry:
        yield telemetry


def request(
    method: str = "GET", path: str = "/me", scheme: str | None = "http", status: int | None = None, **headers: str
) -> Callable[[], HttpRequest]:
    def values_of(name: str) -> Sequence[str | bytes]:
        return [headers[name].encode()] if name in headers else []

    return lambda: HttpRequest(method, path, scheme, values_of, status)


def refuse(
    describe: Callable[[], Any] | None = None,
    error_response: ErrorResponse = EXPIRED,
    context: Context | None = None,
    *,
    is_at_server: bool = True,
) -> None:
    refusals.record(
        error_response,
        Context() if context is None else context,
        request() if describe is None else describe,
        is_at_server=is_at_server,
    )


def labels(**values: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((name.replace("__", "."), value) for name, value in values.items()))


OLD_NAMES = {"http.method": "GET", "http.scheme": "http", "http.status_code": 401}
NEW_NAMES = {"http.request.method": "GET", "url.scheme": "http", "http.response.status_code": 401}


@pytest.mark.parametrize(
    ("opt_in", "is_old", "is_new"),
    [
        pytest.param(None, True, False, id="unset"),
        pytest.param("", True, False, id="empty"),
        pytest.param("database", True, False, id="for databases only"),
        pytest.param("http", False, True, id="http"),
        pytest.param("database, http", False, True, id="http in a list"),
        pytest.param("http/dup", True, True, id="http/dup"),
        pytest.param("http,http/dup", True, True, id="both"),
    ],
)
def test_names_follow_the_variable_of_instrumentation(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, opt_in: str | None, is_old: bool, is_new: bool
) -> None:
    """The duration is in milliseconds under the old name and in seconds under the new name."""
    if opt_in is not None:
        monkeypatch.setenv(OPT_IN_VARIABLE, opt_in)
    refuse()

    (span,) = telemetry.server_spans
    assert span.name == "GET"
    assert dict(span.attributes or {}) == {
        "url.path": "/me",
        "token_relay.verification": "refused",
        "token_relay.reason": "expired",
    } | (OLD_NAMES if is_old else {}) | (NEW_NAMES if is_new else {})
    assert telemetry.points(OLD) == ({tuple(sorted(OLD_NAMES.items())): 1} if is_old else {})
    assert telemetry.points(NEW) == ({tuple(sorted(NEW_NAMES.items())): 1} if is_new else {})


def test_histograms_equal_those_of_instrumentation(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The histograms match instrumentation's unit, description, and buckets, so the SDK does not warn
    about conflicts.
    """
    from opentelemetry.instrumentation import _semconv
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    monkeypatch.setenv(OPT_IN_VARIABLE, "http/dup")
    monkeypatch.setattr(_semconv._OpenTelemetrySemanticConventionStability, "_initialized", False)
    mapping = dict(_semconv._OpenTelemetrySemanticConventionStability._OTEL_SEMCONV_STABILITY_SIGNAL_MAPPING)
    monkeypatch.setattr(
        _semconv._OpenTelemetrySemanticConventionStability, "_OTEL_SEMCONV_STABILITY_SIGNAL_MAPPING", mapping
    )
    theirs = OpenTelemetryMiddleware(None, meter_provider=telemetry.meter_provider)
    refusals.prepare()
    ours = refusals._recorder._histograms

    for name, other in ((OLD, theirs.duration_histogram_old), (NEW, theirs.duration_histogram_new)):
        assert (ours[name].unit, ours[name].description) == (other.unit, other.description)  # type: ignore[attr-defined]
        assert ours[name]._advisory == other._advisory  # type: ignore[attr-defined]
    assert set(refusals._METHODS) == {name for name in KNOWN_METHODS if sanitize(name) == name}


KNOWN_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY", "PROPFIND")


def sanitize(method: str) -> str:
    from opentelemetry.util.http import sanitize_method

    return sanitize_method(method)


def test_only_unavailability_is_an_error(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only unavailability sets the span's error status, because a 4xx response is the caller's error."""
    monkeypatch.setenv(OPT_IN_VARIABLE, "http")
    refuse()
    refuse(error_response=UNAVAILABLE)

    refused, unavailable = telemetry.server_spans
    assert (refused.status.status_code, unavailable.status.status_code) == (StatusCode.UNSET, StatusCode.ERROR)
    assert "error.type" not in (refused.attributes or {})
    assert (unavailable.attributes or {})["error.type"] == "503"
    assert (unavailable.attributes or {})["token_relay.verification"] == "unavailable"
    assert labels(**NEW_NAMES | {"http.response.status_code": 503, "error.type": "503"}) in telemetry.points(NEW)


def test_the_status_is_the_one_that_is_sent(telemetry: Telemetry) -> None:
    """The status is the one that the server sends, such as 403 for a closed WebSocket, and the outcome
    does not change.
    """
    refuse(request(status=403), UNAVAILABLE)

    (span,) = telemetry.server_spans
    assert (span.attributes or {})["http.status_code"] == 403
    assert (span.attributes or {})["token_relay.verification"] == "unavailable"
    assert span.status.status_code is StatusCode.ERROR


def test_an_authenticator_that_names_no_reason_is_described_by_its_error(telemetry: Telemetry) -> None:
    """If an application's authenticator provides no reason, its error describes the rejection."""
    refuse(error_response=ErrorResponse.build(403, "not_today"))

    assert (telemetry.server_spans[0].attributes or {})["token_relay.reason"] == "not_today"


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        pytest.param("DELETE", "DELETE", "DELETE", id="known"),
        pytest.param("get", "GET", "GET", id="lower case"),
        pytest.param("eyJhbGciOi", "HTTP", "_OTHER", id="text"),
        pytest.param("", "HTTP", "_OTHER", id="empty"),
    ],
)
def test_only_known_methods_are_named(telemetry: Telemetry, method: str, name: str, value: str) -> None:
    """An unknown method is recorded as a constant, so a caller cannot create time series."""
    refuse(request(method))

    (span,) = telemetry.server_spans
    assert span.name == name
    assert telemetry.points(OLD) == {labels(**OLD_NAMES | {"http.method": value}): 1}


@pytest.mark.parametrize(
    ("target", "path"),
    [
        pytest.param("/me", "/me", id="path"),
        pytest.param("/a?b", "/a?b", id="question mark that was encoded"),
        pytest.param("http://alice:secret@host:1/me?token=secret#secret", "/me", id="absolute form"),
        pytest.param("*", "*", id="asterisk form"),
        pytest.param("", "", id="empty"),
    ],
)
def test_only_the_path_of_the_target_is_recorded(telemetry: Telemetry, target: str, path: str) -> None:
    """Only the path of the target is recorded, because a user name, a host, and a query can contain secrets."""
    refuse(request(path=target))

    assert (telemetry.server_spans[0].attributes or {})["url.path"] == path


@pytest.mark.parametrize("scheme", [None, "ftp"])
def test_only_known_schemes_are_recorded(telemetry: Telemetry, scheme: str | None) -> None:
    """An unknown scheme is not recorded, so a caller cannot create time series."""
    refuse(request(scheme=scheme))

    assert telemetry.points(OLD) == {labels(**{"http.method": "GET", "http.status_code": 401}): 1}


def test_grpc_calls_are_named_as_in_instrumentation(telemetry: Telemetry) -> None:
    """gRPC calls get the span names that instrumentation uses and no metrics."""
    refuse(lambda: GrpcCall("/tests.Profiles/Me", 16, lambda name: []))
    refuse(lambda: GrpcCall("/", 16, lambda name: []))

    span, unnamed = telemetry.server_spans
    assert span.name == "/tests.Profiles/Me"
    assert dict(span.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": "tests.Profiles",
        "rpc.method": "Me",
        "rpc.grpc.status_code": 16,
        "token_relay.verification": "refused",
        "token_relay.reason": "expired",
    }
    assert unnamed.name == "/"
    assert telemetry.count(OLD) == telemetry.count(NEW) == 0


def test_the_duration_begins_when_the_token_is_read(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The duration starts when the token is read, so it includes the wait for keys, and is zero without a token."""
    monkeypatch.setenv(OPT_IN_VARIABLE, "http/dup")
    token = BearerToken("callers-token", received_at=time.monotonic() - 4.0)
    refuse(context=bind(token, Context()))
    (span,) = telemetry.server_spans
    assert span.start_time is not None
    assert span.end_time is not None

    assert 4.0e9 <= span.end_time - span.start_time < 60e9
    assert 4.0 <= telemetry.sums(NEW)[0] < 60
    assert 4000 <= telemetry.sums(OLD)[0] < 60_000

    telemetry.exporter.clear()
    refuse()
    (span,) = telemetry.server_spans
    assert span.start_time == span.end_time


@pytest.mark.parametrize("name", ["tracecontext", "none"])
def test_the_parent_is_the_callers_only_if_the_propagator_reads_it(telemetry: Telemetry, name: str) -> None:
    """The span's parent is the caller's span only if the propagator reads trace headers."""
    is_used = name == "tracecontext"
    set_global_textmap(CompositePropagator([TraceContextTextMapPropagator()] if is_used else []))
    refuse(request(traceparent=TRACEPARENT))

    (span,) = telemetry.server_spans
    if is_used:
        assert span.parent is not None
        assert (span.parent.trace_id, span.parent.span_id, span.parent.is_remote) == (TRACE_ID, SPAN_ID, True)
    else:
        assert span.parent is None


class ListingPropagator(TraceContextTextMapPropagator):
    """A propagator that also reads baggage from all headers with a prefix, as those of Jaeger and OpenTracing do."""

    def extract(self, carrier: Any, context: Context | None = None, getter: Any = None) -> Context:
        context = super().extract(carrier, context, getter)
        for key in getter.keys(carrier):
            if key.startswith("ot-baggage-"):
                context = baggage.set_baggage(key, getter.get(carrier, key)[0], context)
        return context


def test_a_propagator_that_lists_all_headers_finds_the_parent_but_no_baggage(telemetry: Telemetry) -> None:
    """A propagator that lists header names finds none, so it reads the parent but no baggage."""
    contexts: list[Context] = []

    class Seeing(SpanProcessor):
        def on_start(self, span: Any, parent_context: Context | None = None) -> None:
            contexts.append(parent_context or Context())

    telemetry.tracer_provider.add_span_processor(Seeing())
    set_global_textmap(ListingPropagator())
    refuse(request(**{"traceparent": TRACEPARENT, "ot-baggage-user": "bob"}))

    (span,) = telemetry.server_spans
    assert span.parent is not None
    assert (span.parent.trace_id, span.parent.span_id) == (TRACE_ID, SPAN_ID)
    assert [baggage.get_all(context) for context in contexts] == [{}]


def test_the_callers_decision_not_to_sample_is_kept(telemetry: Telemetry) -> None:
    """The caller's decision not to sample is kept, and the request is counted."""
    refuse(request(traceparent=TRACEPARENT[:-1] + "0"))

    assert telemetry.server_spans == []
    assert telemetry.count(OLD) == 1


def test_another_requests_context_is_not_used_at_the_server(telemetry: Telemetry) -> None:
    """At the server, the context is not used, because an event loop can start a request in the previous request's
    context.
    """
    contexts: list[Context] = []

    class Seeing(SpanProcessor):
        def on_start(self, span: Any, parent_context: Context | None = None) -> None:
            contexts.append(parent_context or Context())

    set_global_textmap(CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()]))
    tracer = telemetry.tracer_provider.get_tracer("tests")
    with tracer.start_as_current_span("previous", kind=SpanKind.SERVER) as previous:
        context = bind(BearerToken("callers-token"), baggage.set_baggage("user", "bob"))
        telemetry.tracer_provider.add_span_processor(Seeing())
        refuse(context=context)
        assert "token_relay.reason" not in (previous.attributes or {})  # type: ignore[attr-defined]

    ours, _ = telemetry.server_spans
    assert ours.parent is None
    assert ours.context is not None
    assert ours.context.trace_id != previous.get_span_context().trace_id
    assert baggage.get_all(contexts[0]) == {}
    assert BearerToken("callers-token") in contexts[0].values()  # for redaction


def spans_around(telemetry: Telemetry) -> dict[str, trace.Span]:
    tracer = telemetry.tracer_provider.get_tracer("tests")
    dropping = TracerProvider(sampler=ALWAYS_OFF).get_tracer("tests")
    server = tracer.start_span("server", kind=SpanKind.SERVER)
    ended = tracer.start_span("ended", kind=SpanKind.SERVER)
    ended.end()
    return {
        "recording": server,
        "not sampled": dropping.start_span("server", kind=SpanKind.SERVER),
        "internal": tracer.start_span("internal", trace.set_span_in_context(server)),
        "root": tracer.start_span("main"),
        "ended": ended,
        "client": tracer.start_span("client", kind=SpanKind.CLIENT),
        "remote": trace.NonRecordingSpan(trace.SpanContext(TRACE_ID, SPAN_ID, is_remote=True)),
        "invalid": trace.INVALID_SPAN,
    }


@pytest.mark.parametrize("around", ["recording", "not sampled", "internal"])
def test_instrumentation_that_encloses_the_boundary_records_the_request(telemetry: Telemetry, around: str) -> None:
    """If instrumentation wraps the boundary, its span gets the attributes, and no second span or count is created."""
    span: Any = spans_around(telemetry)[around]
    telemetry.exporter.clear()
    refuse(context=trace.set_span_in_context(span), is_at_server=False)

    assert telemetry.server_spans == []
    assert telemetry.count(OLD) == 0
    if around != "not sampled":
        assert dict(span.attributes) == {"token_relay.verification": "refused", "token_relay.reason": "expired"}


@pytest.mark.parametrize("around", ["ended", "client", "root", "remote", "invalid"])
def test_a_span_that_does_not_serve_the_request_is_not_used(telemetry: Telemetry, around: str) -> None:
    """A span that does not serve the request, such as the caller's or the previous request's, is not used."""
    span: Any = spans_around(telemetry)[around]
    telemetry.exporter.clear()
    refuse(context=trace.set_span_in_context(span), is_at_server=False)

    assert len(telemetry.server_spans) == telemetry.count(OLD) == 1
    assert telemetry.server_spans[0].parent is None
    assert "token_relay.reason" not in getattr(span, "attributes", {})


@pytest.mark.parametrize("around", ["recording", "not sampled"])
def test_at_the_server_no_span_can_be_around(telemetry: Telemetry, around: str) -> None:
    """A span around a request at the server belongs to a different request, because instrumentation starts later."""
    span: Any = spans_around(telemetry)[around]
    telemetry.exporter.clear()
    refuse(context=trace.set_span_in_context(span), is_at_server=True)

    assert len(telemetry.server_spans) == telemetry.count(OLD) == 1


def test_without_a_tracer_provider_enclosing_instrumentation_counts(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a tracer provider, instrumentation around the boundary counts the request, but not at the server."""
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: trace.NoOpTracerProvider())
    refuse(is_at_server=False)
    assert telemetry.count(OLD) == 0

    refuse(is_at_server=True)
    assert telemetry.count(OLD) == 1


def test_spans_are_limited_and_counts_are_not(telemetry: Telemetry) -> None:
    """Spans are limited for each reason, so a flood of one reason does not hide another, and counts are not limited."""
    now = 0.0
    refusals._recorder._spans = RateLimit(SPANS_PER_SECOND, 1.0, lambda: now)
    for _ in range(100):
        refuse()
    refuse(error_response=UNAVAILABLE)
    assert len(telemetry.server_spans) == SPANS_PER_SECOND + 1
    assert telemetry.count(OLD) == 101

    now = 1.0
    refuse()
    assert len(telemetry.server_spans) == SPANS_PER_SECOND + 2


@pytest.mark.parametrize("suppress", [suppress_instrumentation, suppress_http_instrumentation])
def test_suppressed_requests_are_not_recorded(telemetry: Telemetry, suppress: Any) -> None:
    """If instrumentation is suppressed, as it is for telemetry's own servers, the request is not recorded."""
    with suppress():
        refuse(context=get_current())

    assert telemetry.server_spans == []
    assert telemetry.count(OLD) == 0


def fail(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("not today")


@pytest.mark.parametrize(
    ("broken", "has_span", "has_count"),
    [
        pytest.param("opentelemetry.trace.get_tracer", False, True, id="tracer provider"),
        pytest.param("opentelemetry.sdk.trace.Tracer.start_span", False, True, id="tracer"),
        pytest.param("opentelemetry.sdk.trace.Span.end", False, True, id="span"),
        pytest.param("opentelemetry.metrics.get_meter", True, False, id="meter provider"),
        pytest.param("opentelemetry.sdk.metrics.Meter.create_histogram", True, False, id="meter"),
        pytest.param("opentelemetry.propagate.extract", True, True, id="propagator"),
    ],
)
@pytest.mark.parametrize("logs", ["logging", "no logging"])
def test_broken_telemetry_is_harmless(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, broken: str, has_span: bool, has_count: bool, logs: str
) -> None:
    """Broken telemetry raises no error, and the working parts still record the request."""
    if logs == "no logging":
        monkeypatch.setattr(logging.getLogger("otel_token_relay"), "debug", fail)
    with monkeypatch.context() as patch:
        patch.setattr(broken, fail)
        refusals.prepare()
        refuse()

    assert len(telemetry.server_spans) == has_span
    assert telemetry.count(OLD) == has_count


def test_a_request_that_cannot_be_described_is_harmless(telemetry: Telemetry) -> None:
    """A request that cannot be described, such as one that the server parsed differently, causes no error."""
    refuse(fail)

    assert telemetry.server_spans == []


def test_headers_that_cannot_be_read_cost_the_parent_only(telemetry: Telemetry) -> None:
    """If the headers cannot be read, the request is recorded without a parent."""
    refuse(lambda: HttpRequest("GET", "/", "http", fail))

    assert len(telemetry.server_spans) == telemetry.count(OLD) == 1


def test_the_histograms_are_prepared(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """No request creates the histograms, because a meter provider might be waiting for that request."""
    refusals.prepare()
    monkeypatch.setattr("opentelemetry.metrics.get_meter", fail)
    refuse()

    assert telemetry.count(OLD) == 1


def test_credentials_remain_refused_while_the_parent_is_read(telemetry: Telemetry) -> None:
    """The propagator, which reads the headers again for the parent, does not accept one of two
    ambiguous credentials.
    """
    from otel_token_relay.context import REFUSED_KEY

    seen: list[Context] = []

    class Seeing(SpanProcessor):
        def on_start(self, span: Any, parent_context: Context | None = None) -> None:
            seen.append(parent_context or Context())

    telemetry.tracer_provider.add_span_processor(Seeing())
    boundary = Boundary.of(lambda name: ["Bearer a", "Bearer b"], Settings())
    refuse(context=boundary.context())

    assert REFUSED_KEY in seen[0]


def test_the_span_of_a_refused_request_does_not_show_its_credentials(telemetry: Telemetry) -> None:
    """The span does not contain the rejected credentials, although no boundary binds them."""
    secret = "one-two-three"  # words, which are masked only in records of their own request
    install(Settings())
    boundary = Boundary.of(lambda name: [f"Bearer {secret},Bearer {secret}"], Settings())
    refuse(lambda: HttpRequest("GET", f"/{secret}", "http", lambda name: ()), context=boundary.context())

    (span,) = telemetry.server_spans
    assert span.attributes is not None
    assert secret not in span.to_json()
    assert "/[REDACTED]" in span.attributes.values()
