"""Record the SERVER spans and durations of requests that are refused before they reach the application.

Invariants:

* Each refused request has at most one SERVER span and is counted at most once. If instrumentation encloses the
  boundary, the instrumentation records the span and metrics, and this module only adds attributes to the span.
  Otherwise, this module records both the span and the metrics.
* As with an accepted request, the caller can choose the span's parent only through the global propagator. A different
  request's span is never the parent, even if it is current because the requests share a connection.
* The number of spans is limited, because any caller can cause refusals. The limit does not apply to metrics.
* Attributes never contain header values, query strings, or unknown methods. Metrics never contain values that a caller
  can freely choose.
* The functions in this module never raise an exception or change the response.

Source: The semantic conventions for HTTP and RPC, as implemented by OpenTelemetry's instrumentation.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter

from otel_token_relay.authentication import ErrorResponse
from otel_token_relay.context import REFUSED_KEY, TOKEN_KEY, UNUSED_KEY, bound_token
from otel_token_relay.otel import SPAN_KEY, is_server_suppressed
from otel_token_relay.rate_limits import RateLimit
from otel_token_relay.verifications import CLAIM_ATTRIBUTE, OUTCOME_ATTRIBUTE, REASON_ATTRIBUTE

_logger = logging.getLogger("otel_token_relay")

# The maximum number of spans per second for each reason.
SPANS_PER_SECOND: Final = 10

# This environment variable selects the attribute and metric names that OpenTelemetry's instrumentation uses: the old
# names, the new names (`http`), or both (`http/dup`). This module uses the same names to ensure that dashboards include
# refused requests.
OPT_IN_VARIABLE: Final = "OTEL_SEMCONV_STABILITY_OPT_IN"

# Sources: RFC 9110, section 9.1; RFC 5789; RFC 10008. OpenTelemetry's instrumentation uses the same list.
_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"))
_SCHEMES: Final = frozenset(("http", "https", "ws", "wss"))

# The histogram bucket boundaries, in seconds, that the semantic conventions recommend.
_SECONDS_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

ValuesOf = Callable[[str], Sequence[str | bytes]]
Attributes = dict[str, str | int]


class HttpRequest(NamedTuple):
    """A refused HTTP request, as the server received it.

    Attributes:
        method: The HTTP method, which is GET for a WebSocket handshake.
        path: The path, including the mount point. If the value is an absolute URL, this module records only its path.
        scheme: The scheme, which must not come from a header.
        values_of: A function that returns the values of the header with the given lowercase name.
        status: The status code, if it differs from that of the error response.
    """

    method: str
    path: str
    scheme: str | None
    values_of: ValuesOf
    status: int | None = None


class GrpcCall(NamedTuple):
    """A refused gRPC call.

    Attributes:
        method: The full method name, such as ``/package.Service/Method``.
        status: The gRPC status code.
        values_of: A function that returns the values of the metadata entries with the given key.
    """

    method: str
    status: int
    values_of: ValuesOf


class _Duration(NamedTuple):
    """A duration histogram that OpenTelemetry's HTTP instrumentation also records."""

    name: str
    unit: str
    description: str
    per_second: float
    is_whole: bool
    buckets: Sequence[float] | None


_OLD: Final = _Duration(
    "http.server.duration", "ms", "Measures the duration of inbound HTTP requests.", 1000.0, True, None
)
_NEW: Final = _Duration(
    "http.server.request.duration", "s", "Duration of HTTP server requests.", 1.0, False, _SECONDS_BUCKETS
)


def record(
    error_response: ErrorResponse,
    context: Context,
    describe: Callable[[], HttpRequest | GrpcCall],
    *,
    is_at_server: bool,
) -> None:
    """Record a refused request before its error response is sent. This function never raises an exception.

    Args:
        error_response: The response.
        context: The request's context, which contains the token.
        describe: A function that returns a description of the request. The function may raise an exception, because the
            server's data might be invalid.
        is_at_server: Whether the boundary is at the point where the server calls its application. Instrumentation
            cannot enclose such a boundary, so any current span belongs to a different request.
    """
    _recorder.record(error_response, context, describe, is_at_server)


def prepare() -> None:
    """Create the histograms before the first request. This function never raises an exception."""
    _recorder.prepare()


class RefusalRecorder:
    """A recorder that reports refused requests through the OpenTelemetry API. Instances are thread-safe."""

    def __init__(self) -> None:
        self._spans = RateLimit(SPANS_PER_SECOND, 1.0)
        self._histograms: dict[str, metrics.Histogram] = {}

    def prepare(self) -> None:
        """Create the histograms; see `otel_token_relay.counters`."""
        for duration in _durations_in_force():
            with _harmless("a histogram cannot be created yet"):
                self._histogram(duration)

    def record(
        self,
        error_response: ErrorResponse,
        context: Context,
        describe: Callable[[], HttpRequest | GrpcCall],
        is_at_server: bool,
    ) -> None:
        """See `record`."""
        with _harmless("a refused request could not be recorded"):
            if error_response.status < 400 or is_server_suppressed(context):
                return
            attributes: Attributes = {
                OUTCOME_ATTRIBUTE: "unavailable" if error_response.status == 503 else "refused",
                REASON_ATTRIBUTE: error_response.reason or error_response.error,
            }
            if error_response.claim is not None:
                attributes[CLAIM_ATTRIBUTE] = error_response.claim
            if not is_at_server and (span := _span_around(context)) is not None:
                span.set_attributes(attributes)
                return
            ended_at, seconds = time.time_ns(), _seconds_since_arrival(context)
            request = describe()
            described = _describe(request, error_response)
            # Discard the rest of the context, because its span and baggage might belong to a different request.
            context = Context({key: context[key] for key in (TOKEN_KEY, REFUSED_KEY, UNUSED_KEY) if key in context})
            if self._spans.admit(str(attributes[REASON_ATTRIBUTE])) is not None:
                with _harmless("a refused request has no span"):
                    attributes |= described.attributes
                    context = _record_span(
                        described.name, attributes, _extract(request, context), error_response, ended_at, seconds
                    )
            if is_at_server or _has_tracer_provider():
                for duration, labels in described.durations:
                    with _harmless("a refused request could not be counted"):
                        value = seconds * duration.per_second
                        value = round(value) if duration.is_whole else value
                        self._histogram(duration).record(value, labels, context)

    def _histogram(self, duration: _Duration) -> metrics.Histogram:
        histogram = self._histograms.get(duration.name)
        if histogram is None:
            histogram = self._histograms[duration.name] = metrics.get_meter("otel_token_relay").create_histogram(
                duration.name,
                duration.unit,
                duration.description,
                explicit_bucket_boundaries_advisory=duration.buckets,
            )
        return histogram


_recorder = RefusalRecorder()


@contextmanager
def _harmless(message: str) -> Generator[None, None, None]:
    """Log errors from the application's propagator, tracer, or meter at the DEBUG level. Ignore errors that occur
    during logging.
    """
    try:
        yield
    except Exception:
        with suppress(Exception):
            _logger.debug(message, exc_info=True)


def _span_around(context: Context) -> trace.Span | None:
    """Return the current span if it belongs to instrumentation that encloses the boundary; otherwise, return ``None``.

    An unsampled span does not have a kind or an end time. An in-process client's span is ignored. The root span that
    was current when the application started the server is also ignored.
    """
    span = context.get(SPAN_KEY)
    if not isinstance(span, trace.Span):
        return None
    span_context = span.get_span_context()
    if not span_context.is_valid or span_context.is_remote:
        return None
    if getattr(span, "end_time", None) is not None:
        return None  # the span belongs to the previous request on this connection
    kind = getattr(span, "kind", trace.SpanKind.SERVER)
    is_inner = kind is trace.SpanKind.INTERNAL and getattr(span, "parent", None) is not None
    return span if is_inner or kind is trace.SpanKind.SERVER else None


def _has_tracer_provider() -> bool:
    """Return whether a tracer provider is configured. Without a provider, instrumentation cannot be detected.

    Undetected instrumentation might already count the request, so this module must not count it again.
    """
    return not isinstance(trace.get_tracer_provider(), (trace.ProxyTracerProvider, trace.NoOpTracerProvider))


def _seconds_since_arrival(context: Context) -> float:
    """Return the number of seconds since the boundary read the token, or 0 for a request without a token."""
    token = bound_token(context)
    return 0.0 if token is None else max(0.0, time.monotonic() - token.received_at)


class _HeaderGetter(Getter[ValuesOf]):
    """A getter that reads headers only by name. Some propagators list all header names to find baggage, but baggage is
    not needed here.
    """

    def get(self, carrier: ValuesOf, key: str) -> list[str] | None:
        values = carrier(key.lower())
        return [value if isinstance(value, str) else value.decode("latin-1") for value in values] or None

    def keys(self, carrier: ValuesOf) -> list[str]:
        return []


_GETTER: Final = _HeaderGetter()


def _extract(request: HttpRequest | GrpcCall, context: Context) -> Context:
    """Return *context* extended with the values that the global propagator reads from the request."""
    # Import `opentelemetry.propagate` only when needed, because that module might still be importing this package.
    from opentelemetry import propagate

    with _harmless("the caller's context cannot be read"):
        return propagate.extract(request.values_of, context, _GETTER)
    return context


def _record_span(
    name: str,
    attributes: Attributes,
    parent: Context,
    error_response: ErrorResponse,
    ended_at: int,
    seconds: float,
) -> Context:
    """Record the SERVER span, and return a context that contains it."""
    span = trace.get_tracer("otel_token_relay").start_span(
        name,
        context=parent,
        kind=trace.SpanKind.SERVER,
        attributes=attributes,
        start_time=ended_at - int(seconds * 1e9),
    )
    # A 4xx status indicates an error by the caller, so only a 5xx status marks the span as failed.
    if error_response.status >= 500:
        span.set_status(trace.StatusCode.ERROR)
    span.end(ended_at)
    return trace.set_span_in_context(span, parent)


class _Described(NamedTuple):
    """The name and attributes that describe a refused request in spans and metrics."""

    name: str
    attributes: Attributes
    durations: Sequence[tuple[_Duration, Attributes]] = ()


def _describe(request: HttpRequest | GrpcCall, error_response: ErrorResponse) -> _Described:
    if isinstance(request, GrpcCall):
        service, _, method = request.method.removeprefix("/").rpartition("/")
        # OpenTelemetry's gRPC server instrumentation uses the same attributes and does not record metrics.
        return _Described(
            request.method,
            {
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method,
                "rpc.grpc.status_code": request.status,
            },
        )
    method = request.method.upper()
    method = method if method in _METHODS else "_OTHER"
    status = error_response.status if request.status is None else request.status
    scheme = request.scheme if request.scheme in _SCHEMES else None
    old: Attributes = {"http.method": method, "http.status_code": status}
    new: Attributes = {"http.request.method": method, "http.response.status_code": status}
    if scheme is not None:
        old["http.scheme"] = new["url.scheme"] = scheme
    if status >= 500:
        new["error.type"] = str(status)
    durations = tuple((duration, new if duration is _NEW else old) for duration in _durations_in_force())
    attributes: Attributes = {"url.path": _path_of(request.path)}
    for _, labels in durations:
        attributes |= labels
    return _Described("HTTP" if method == "_OTHER" else method, attributes, durations)


def _durations_in_force() -> tuple[_Duration, ...]:
    """Return the histograms that OpenTelemetry's instrumentation currently uses."""
    chosen = [name.strip() for name in os.environ.get(OPT_IN_VARIABLE, "").split(",")]
    if "http/dup" in chosen:
        return _OLD, _NEW
    return (_NEW,) if "http" in chosen else (_OLD,)


def _path_of(target: str) -> str:
    """Return a request target's path (RFC 9112, section 3.2). Remove the user info, host, and query from an absolute
    URL. A target that starts with a slash contains only a path, because adapters have already removed the query.
    """
    if target.startswith("/"):
        return target
    return urlsplit(target).path
