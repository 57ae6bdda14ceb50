"""h05: a caller cannot mask other requests' telemetry by sending the text of that telemetry as a token."""

from __future__ import annotations

import base64
import contextvars
import dataclasses
import json
import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any

import pytest
from fastapi import FastAPI
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry._logs import LogRecord
from opentelemetry.context import Context
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_token_relay import Settings, install, uninstall, use_token
from otel_token_relay.context import with_token
from otel_token_relay.redaction import RedactingFilter, RedactingSpanProcessor, installation, known_tokens, statics
from otel_token_relay.redaction.scrubber import FAILED, MASK
from otel_token_relay.token import BearerToken, Lease
from otel_token_relay.verification.asgi import BearerAuthMiddleware
from tests.redaction.corpus import OWN_JWT, OWN_OPAQUE
from tests.support.fixed_ids import FixedIds
from tests.support.servers import get, serve_asgi

SERVICE = "checkout-service"
UUID = "550e8400-e29b-41d4-a716-446655440000"
ADDRESS = "203.0.113.77"
POD = "checkout-7d9f8b6c5-x2x9q"
HOST = "ip-10-2-3-4.eu-west-1.compute.internal"
MODEL = "gpt-4o-mini-2024-07-18"
CONTAINER = "8f3a9b2c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f8"
FUNCTION = "com.example.OrderServiceImpl/getUserByEmailAddress"

# These texts appear in the telemetry of the service and of other requests, where operators read them.
READ_BY_OPERATORS = {
    "service": SERVICE,
    "instrument": "http.server.duration",
    "instrument-of-ours": "checkout.payments.total",
    "unit-and-words": "payments-made-by-card",
    "scope": "opentelemetry.instrumentation.fastapi",
    "route": "/payments/list",
    "route-with-date": "/payments/2026-11-26",
    "address": ADDRESS,
    "uuid": UUID,
    "uuid-without-dashes": UUID.replace("-", ""),
    "trace-context": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "pod": POD,
    "host": HOST,
    "word-pair": "payment-declined",
    "version": "2026.11.0-rc.4",
    "date": "2026-11-26",
    "timestamp": "20261126T083000.123456Z",
    "model": MODEL,
    "function": FUNCTION,
    "number": "12345678901234567890",
    "ulid": "01ARZ3NDEKTSV4RRFFQ69G5FAV",
    "key": "http.request.method_original",
}
ALL_TEXTS = list(READ_BY_OPERATORS.values())

RANDOM = "tR7vK2mQ9xWz4LpB8nYc3JdF6h"  # looks like a credential
_JSON = base64.urlsafe_b64encode(b'{"sub":"mallory","exp":4870000000}').decode().rstrip("=")

# Each function embeds a word in a token that looks like a credential.
DISGUISES: dict[str, Callable[[str], str]] = {
    "alone": lambda word: word,
    "behind-a-random-beginning": lambda word: RANDOM + word,
    "before-a-random-end": lambda word: word + RANDOM,
    "in-the-middle": lambda word: f"{RANDOM}.{word}.{RANDOM[::-1]}",
    "as-the-signature-of-a-jwt": lambda word: f"eyJhbGciOiJub25lIn0.{_JSON}.{word}",
    "as-the-payload-of-a-jwt": lambda word: f"eyJhbGciOiJub25lIn0.{word}.{word}",
    "in-a-very-long-token": lambda word: (RANDOM * 200)[:4200] + word,
    "among-many-slashes": lambda word: f"{RANDOM}{'+/' * 80}/{word}",
    "in-mixed-case": lambda word: "".join(c.upper() if at % 2 else c for at, c in enumerate(word)),
    "in-mixed-case-behind-a-random-beginning": lambda word: (
        RANDOM + "".join(c.upper() if at % 2 else c for at, c in enumerate(word))
    ),
}


class Telemetry:
    """An SDK with in-memory exporters, whose contents are compared without the fields that vary between runs."""

    def __init__(self) -> None:
        resource = Resource(
            {
                "service.name": SERVICE,
                "service.version": "2026.11.0-rc.4",
                "host.name": HOST,
                "k8s.pod.name": POD,
                "container.id": CONTAINER,
            },
            "https://opentelemetry.io/schemas/1.28.0",
        )
        self.spans = InMemorySpanExporter()
        self.logs = InMemoryLogRecordExporter()
        self.reader = InMemoryMetricReader()
        self.tracers = TracerProvider(resource=resource, id_generator=FixedIds(), shutdown_on_exit=False)  # type: ignore[arg-type]
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        self.loggers = LoggerProvider(resource=resource, shutdown_on_exit=False)
        self.loggers.add_log_record_processor(SimpleLogRecordProcessor(self.logs))
        self.meters = MeterProvider([self.reader], resource=resource, shutdown_on_exit=False)

    def exported(self) -> dict[str, Any]:
        """Return all telemetry exported so far."""
        return {
            "spans": [
                (_without_varying_fields(json.loads(span.to_json())), _without_varying_fields(json.loads(_scope(span))))
                for span in self.spans.get_finished_spans()
            ],
            "logs": [
                (_without_varying_fields(json.loads(record.to_json())), _scope(record))
                for record in self.logs.get_finished_logs()
            ],
            "metrics": None
            if (data := self.reader.get_metrics_data()) is None
            else _without_varying_fields(json.loads(data.to_json())),
        }

    def close(self) -> None:
        self.tracers.shutdown()
        self.loggers.shutdown()
        self.meters.shutdown()


def _scope(record: Any) -> str:
    scope = record.instrumentation_scope
    return f'"{scope!r}"'.replace("\n", " ") if scope is None else scope.to_json()


# The varying fields include exemplars, because exemplars are sampled.
_VARYING_FIELDS = {"sum", "min", "max", "bucket_counts", "timestamp", "observed_timestamp", "exemplars"}


def _without_varying_fields(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_varying_fields(item)
            for key, item in value.items()
            if key not in _VARYING_FIELDS and not key.endswith(("_time", "_nano")) and key != "thread.id"
        }
    return [_without_varying_fields(item) for item in value] if isinstance(value, list) else value


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    found = Telemetry()
    install(Settings())
    yield found
    found.close()


# The functions below emit the telemetry of another user's request or job, which contains all of these texts.


def emit_all_signals(telemetry: Telemetry, *, context: Context | None = None) -> None:
    tracer = telemetry.tracers.get_tracer("opentelemetry.instrumentation.fastapi", "2026.11.0-rc.4")
    with tracer.start_as_current_span(f"GET /payments/list {SERVICE}", context=context) as span:
        for at, text in enumerate(ALL_TEXTS):
            span.set_attribute(f"text.{at}", f"of {text}, read by operators")
        span.set_attribute("http.request.method_original", "http.request.method_original")
        span.add_event("payment-declined", {"all": ALL_TEXTS})
        emit_logs(telemetry)
        measure(telemetry)


def emit_logs(telemetry: Telemetry) -> None:
    logger = telemetry.loggers.get_logger(FUNCTION)
    logger.emit(LogRecord(timestamp=1, body=" ".join(ALL_TEXTS), attributes={"all": ALL_TEXTS}))
    # The first record looks suspicious, so the thorough stage searches it; the second one is long.
    logger.emit(LogRecord(timestamp=1, body=f"access_token=abc {' '.join(ALL_TEXTS)}"))
    logger.emit(LogRecord(timestamp=1, body=f"{' '.join(ALL_TEXTS)} " * 200))


def measure(telemetry: Telemetry) -> None:
    meter = telemetry.meters.get_meter("opentelemetry.instrumentation.asgi", "0.66b1")
    counter = meter.create_counter("http.server.duration", "payments-made-by-card", f"of {SERVICE} and {FUNCTION}")
    counter.add(1, {f"text.{at}": text for at, text in enumerate(ALL_TEXTS)})
    meter.create_counter("checkout.payments.total").add(1, {"http.request.method_original": "GET"})


def run(attack: Callable[[Telemetry], object] | None, victims: Callable[[Telemetry], object]) -> dict[str, Any]:
    """Return the telemetry that the victims export, either after an attack or without one."""
    telemetry = Telemetry()
    install(Settings())
    try:
        if attack is not None:
            attack(telemetry)
            telemetry.spans.clear()
            telemetry.logs.clear()
            telemetry.tracers.id_generator.last = 0  # type: ignore[attr-defined]
        victims(telemetry)
        return telemetry.exported()
    finally:
        telemetry.close()
        uninstall()


def send(token: str) -> Callable[[Telemetry], None]:
    """Return an attack that sends several requests with this token."""

    def attack(telemetry: Telemetry) -> None:
        for _ in range(5):
            tracer = telemetry.tracers.get_tracer("t")
            # As at a server boundary, a span can start either inside or outside the block that binds the token.
            with use_token(token), tracer.start_as_current_span("attack"):
                pass
            with tracer.start_as_current_span("attack"), use_token(token):
                pass

    return attack


def victims(telemetry: Telemetry) -> None:
    """Run other users' requests and jobs in the same thread, with and without a token."""

    def callback(options: CallbackOptions) -> list[Observation]:
        return [Observation(1, {"all": ",".join(ALL_TEXTS)})]

    telemetry.meters.get_meter("jobs").create_observable_gauge("checkout.queue", [callback])
    emit_all_signals(telemetry)
    emit_all_signals(telemetry, context=Context())
    with use_token(OWN_OPAQUE):
        emit_all_signals(telemetry)
    with use_token(None):
        emit_all_signals(telemetry)
    emit_logs(telemetry)
    measure(telemetry)


@pytest.mark.parametrize("disguise", DISGUISES)
def test_h05_no_token_masks_texts_of_other_requests(disguise: str) -> None:
    """The telemetry of other requests is the same whether or not the attacker sends tokens."""

    def attack(telemetry: Telemetry) -> None:
        for word in ALL_TEXTS:
            send(DISGUISES[disguise](word))(telemetry)

    attacked, control = run(attack, victims), run(None, victims)

    assert attacked == control
    assert all(text in json.dumps(control["spans"]) for text in ALL_TEXTS)


@pytest.mark.parametrize("disguise", DISGUISES)
def test_h05_no_single_token_masks_texts_of_other_requests(telemetry: Telemetry, disguise: str) -> None:
    """No single token masks text in the telemetry of other requests."""
    tracer, logger = telemetry.tracers.get_tracer("t"), telemetry.loggers.get_logger("t")
    for word in ALL_TEXTS:
        text = f"before {word} after"
        known_tokens.REMEMBERED.forget()
        send(DISGUISES[disguise](word))(telemetry)
        telemetry.spans.clear()
        telemetry.logs.clear()

        with tracer.start_as_current_span(text) as span:
            span.set_attribute("text", text)
            logger.emit(LogRecord(timestamp=1, body=text))
        logger.emit(LogRecord(timestamp=1, body=text))

        (exported,) = telemetry.spans.get_finished_spans()
        assert (exported.name, dict(exported.attributes or {})) == (text, {"text": text})
        assert [record.log_record.body for record in telemetry.logs.get_finished_logs()] == [text, text]


def test_h05_names_created_in_the_attackers_own_request_are_kept() -> None:
    """A scope or an instrument that is created in the attacker's own request keeps its name."""

    def attack(telemetry: Telemetry) -> None:
        for word in ALL_TEXTS:
            for disguise in DISGUISES.values():
                with use_token(disguise(word)), telemetry.tracers.get_tracer("t").start_as_current_span("attack"):
                    measure(telemetry)
                    emit_logs(telemetry)
                    telemetry.tracers.get_tracer("opentelemetry.instrumentation.fastapi", "2026.11.0-rc.4")

    # Measurements of the attacker are counted in both runs, so the control run repeats them without a token.
    def control(telemetry: Telemetry) -> None:
        for _ in range(len(ALL_TEXTS) * len(DISGUISES)):
            with use_token(None), telemetry.tracers.get_tracer("t").start_as_current_span("attack"):
                measure(telemetry)

    attacked, expected = run(attack, victims), run(control, victims)

    assert attacked["spans"] == expected["spans"]
    assert attacked["logs"] == expected["logs"]
    assert _names(attacked["metrics"]) == _names(expected["metrics"])
    assert SERVICE in json.dumps(_names(attacked["metrics"]))


def _names(metrics: Any) -> Any:
    """Return the names, descriptions, and units of exported metrics, without the data points."""
    return [
        (
            part["resource"],
            [
                (
                    scoped["scope"],
                    [(metric["name"], metric["description"], metric["unit"]) for metric in scoped["metrics"]],
                )
                for scoped in part["scope_metrics"]
            ],
        )
        for part in metrics["resource_metrics"]
    ]


def test_h05_a_credential_does_not_mask_objects_that_existed_before(telemetry: Telemetry) -> None:
    """A token that equals the container ID does not mask the ID in an existing resource."""
    before = telemetry.tracers.get_tracer("t", CONTAINER)
    meter = telemetry.meters.get_meter("t", CONTAINER)
    counter = meter.create_counter("c", description=CONTAINER)

    with use_token(CONTAINER), before.start_as_current_span("x"):
        counter.add(1)
        telemetry.loggers.get_logger("t").emit(LogRecord(timestamp=1, body="x"))
    exported = telemetry.exported()

    assert exported["spans"][0][0]["resource"]["attributes"]["container.id"] == CONTAINER
    assert exported["spans"][0][1]["version"] == CONTAINER
    assert exported["logs"][0][0]["resource"]["attributes"]["container.id"] == CONTAINER
    assert MASK not in json.dumps(exported["metrics"])


def test_h05_a_resource_that_is_redacted_by_pattern_is_not_compared_with_the_token_of_the_request() -> None:
    """A resource that contains an unknown token is redacted by pattern, not with the token of the current request."""
    telemetry = Telemetry()
    resource = Resource({"service.name": SERVICE, "container.id": CONTAINER, "process.command_args": [OWN_JWT]})
    telemetry.tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    telemetry.tracers.add_span_processor(SimpleSpanProcessor(telemetry.spans))
    install(Settings())
    try:
        with use_token(CONTAINER), telemetry.tracers.get_tracer("t").start_as_current_span("x"):
            pass
        (span,) = telemetry.spans.get_finished_spans()
    finally:
        telemetry.close()

    assert dict(span.resource.attributes) == {
        "service.name": SERVICE,
        "container.id": CONTAINER,
        "process.command_args": (MASK,),
    }
    assert resource.attributes["process.command_args"] == (OWN_JWT,)


def test_h05_work_started_by_the_attackers_request_is_unaffected_after_it(telemetry: Telemetry) -> None:
    """Work that the attacker's request started masks nothing after that request has ended."""
    lease = Lease()
    kept = with_token(BearerToken(SERVICE, lease=lease))
    random = with_token(BearerToken(RANDOM + SERVICE, lease=lease))
    lease.end()

    for context in (kept, random):
        attached = otel_context.attach(context)
        try:
            emit_all_signals(telemetry)
        finally:
            otel_context.detach(attached)

    assert MASK not in json.dumps({**telemetry.exported(), "logs": []})


def test_h05_a_word_sent_in_another_requests_trace_masks_nothing_there(telemetry: Telemetry) -> None:
    """A word that is sent as a token in another request's trace masks nothing in that trace."""
    tracer = telemetry.tracers.get_tracer("t")
    with use_token(None), tracer.start_as_current_span("victim") as victim:
        parent = trace.set_span_in_context(
            trace.NonRecordingSpan(trace.SpanContext(victim.get_span_context().trace_id, 7, is_remote=True))
        )

        def attack() -> None:
            for word in ALL_TEXTS:
                for disguise in DISGUISES.values():
                    with (
                        use_token(disguise(word)),
                        tracer.start_as_current_span("attack", context=with_token(BearerToken(disguise(word)), parent)),
                    ):
                        pass

        thread = threading.Thread(target=attack)
        thread.start()
        thread.join()
        telemetry.spans.clear()
        emit_all_signals(telemetry)

    assert not [span for span, _ in telemetry.exported()["spans"] if MASK in json.dumps(span)]


def test_h05_a_word_masks_nothing_of_other_requests_in_pipelines_built_by_hand() -> None:
    """Processors and filters that the application adds itself mask nothing in other requests."""
    exporter, raw = InMemorySpanExporter(), InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": SERVICE}), shutdown_on_exit=False)
    provider.add_span_processor(RedactingSpanProcessor(SimpleSpanProcessor(exporter), Settings()))
    provider.add_span_processor(SimpleSpanProcessor(raw))
    lines = logging.Handler()
    masked: list[str] = []
    lines.emit = lambda record: masked.append(record.getMessage())  # type: ignore[method-assign]
    lines.addFilter(RedactingFilter(Settings()))
    logger = logging.Logger("checkout.access")  # noqa: LOG001  # no other handler gets it
    logger.addHandler(lines)
    try:
        for word in ALL_TEXTS:
            for disguise in DISGUISES.values():
                with use_token(disguise(word)), provider.get_tracer(SERVICE).start_as_current_span("attack"):
                    pass
        with provider.get_tracer(SERVICE).start_as_current_span(f"GET /payments/list {SERVICE}") as span:
            span.set_attribute("all", ALL_TEXTS)
            logger.warning("%s", " ".join(ALL_TEXTS))
    finally:
        known_tokens.stop_listening()
        known_tokens.stop_listening()

    assert exporter.get_finished_spans()[-1].to_json() == raw.get_finished_spans()[-1].to_json()
    assert exporter.get_finished_spans()[-1].instrumentation_scope.name == SERVICE  # type: ignore[union-attr]
    assert masked == [" ".join(ALL_TEXTS)]
    assert {span.resource.attributes["service.name"] for span in exporter.get_finished_spans()} == {SERVICE}


# The tests below use a real server.


def _service(telemetry: Telemetry) -> Any:
    app = FastAPI()
    logger = logging.Logger("checkout.access")  # noqa: LOG001  # no other handler gets it
    logger.addHandler(LoggingHandler(logger_provider=telemetry.loggers))

    @app.get("/payments/list")
    async def payments() -> dict[str, str]:
        emit_all_signals(telemetry)
        logger.warning("%s served by %s", MODEL, POD)
        return {}

    @app.get("/health")
    async def health() -> dict[str, str]:
        measure_lazily()
        return {}

    def measure_lazily() -> None:
        meter = telemetry.meters.get_meter("checkout.lazy-scope", "2026.11.0-rc.4")
        meter.create_counter("checkout.lazy.counter", "payments-made-by-card", FUNCTION).add(1)

    FastAPIInstrumentor.instrument_app(app, tracer_provider=telemetry.tracers, meter_provider=telemetry.meters)

    async def outside(scope: Any, receive: Any, send: Any) -> None:
        here = {"server": ("checkout.example", 80), "client": ("198.51.100.9", 1234)}
        headers = [pair for pair in scope["headers"] if pair[0] != b"host"] + [(b"host", b"checkout.example")]
        await app({**scope, **here, "headers": headers}, receive, send)
        # Servers write their access log in the same way: in the same thread, but outside the request's context.
        line = ADDRESS, scope["path"], " ".join(ALL_TEXTS)
        contextvars.Context().run(logger.warning, '%s "GET %s HTTP/1.1" %s', *line)

    return outside


def _serve(attack: list[str | None]) -> dict[str, Any]:
    telemetry = Telemetry()
    install(Settings())
    try:
        with serve_asgi(_service(telemetry)) as port:
            for token in attack:
                assert get(port, "/health", token).status == 200
            for token in (None, OWN_JWT, None):
                assert get(port, "/payments/list", token).status == 200
        return telemetry.exported()
    finally:
        telemetry.close()
        uninstall()


def test_h05_over_a_real_server_an_anonymous_caller_changes_no_telemetry() -> None:
    """With a real server, the exported telemetry is the same with and without the caller's tokens."""
    tokens: list[str | None] = [
        *ALL_TEXTS,
        *(disguise(word) for word in ALL_TEXTS[:4] for disguise in DISGUISES.values()),
    ]

    attacked, control = _serve(tokens), _serve([None] * len(tokens))

    assert attacked == control
    assert SERVICE in json.dumps(control["metrics"])
    assert len(control["logs"]) > len(tokens)


# The tests below check that credentials are still masked.


@pytest.mark.parametrize("token", [OWN_OPAQUE, OWN_JWT, secrets.token_hex(20)], ids=["opaque", "jwt", "hex"])
def test_h05_a_credential_is_still_masked_beyond_its_request(telemetry: Telemetry, token: str) -> None:
    """A credential is still masked after its request in its trace, its thread, and the metric reader's thread."""
    tracer = telemetry.tracers.get_tracer("t")
    with use_token(token), tracer.start_as_current_span("request") as request:
        pass
    telemetry.meters.get_meter("t").create_observable_gauge("g", [lambda _: [Observation(1, {"a": token})]])
    child = trace.set_span_in_context(trace.NonRecordingSpan(request.get_span_context()), Context())
    span = tracer.start_span(f"of {token}", context=child)
    telemetry.loggers.get_logger("t").emit(LogRecord(timestamp=1, context=child, body=token))

    def elsewhere() -> None:
        span.set_attribute("a", token[:24])
        span.end()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    telemetry.loggers.get_logger("t").emit(LogRecord(timestamp=1, body=f'"GET /reset/{token}"'))
    with use_token(token):
        pass  # bind the token without a trace, for the reader's thread
    text = json.dumps(telemetry.exported())

    assert token not in text
    assert token[-20:] not in text


@pytest.mark.parametrize("token", [OWN_OPAQUE, OWN_JWT], ids=["opaque", "jwt"])
def test_h05_a_name_created_with_the_callers_credential_is_masked_permanently(telemetry: Telemetry, token: str) -> None:
    """A name that contains the caller's credential stays masked in all later requests."""
    with use_token(token):
        resource = Resource({"made.with": f"of {token}"}, schema_url=token)
        tracer = telemetry.tracers.get_tracer(f"of {token}", token, token, {"a": token})
        logger = telemetry.loggers.get_logger(f"of {token}")
        counter = telemetry.meters.get_meter(f"of {token}").create_counter("c", description=f"of {token}")
    known_tokens.REMEMBERED.forget()
    own = TracerProvider(resource=resource, shutdown_on_exit=False)
    own.add_span_processor(SimpleSpanProcessor(telemetry.spans))

    with use_token(None), tracer.start_as_current_span("later") as span:
        logger.emit(LogRecord(timestamp=1, body="later"))
        counter.add(1)
    own.get_tracer("t").start_span("later").end()
    text = json.dumps(telemetry.exported()) + repr([vars(s) for s in telemetry.spans.get_finished_spans()])

    assert token not in text
    assert text.count(f"of {MASK}") >= 5
    assert getattr(span, "_instrumentation_info", None) is None


@pytest.mark.parametrize("word", ["letmein12", SERVICE, "/payments/list", UUID])
def test_h05_a_word_is_masked_in_the_records_of_its_own_request(telemetry: Telemetry, word: str) -> None:
    """A word that is sent as a token is masked in all records of that request, including in late spans."""
    tracer = telemetry.tracers.get_tracer("t")
    with tracer.start_as_current_span("server") as server:
        with use_token(word):
            with tracer.start_as_current_span(f"GET {word}") as inner:
                inner.set_attribute("a", word)
            late = tracer.start_span("late")
            telemetry.loggers.get_logger("t").emit(LogRecord(timestamp=1, body=f"read {word}"))
            telemetry.meters.get_meter("t").create_counter("c").add(1, {"a": word})
        server.set_attribute("url.path", f"/reset/{word}")
    late.set_attribute("a", word)
    late.end()
    exported = telemetry.exported()
    spans = [(span["name"], span["attributes"]) for span, _ in exported["spans"]]
    points = exported["metrics"]["resource_metrics"][0]["scope_metrics"][0]["metrics"][0]["data"]["data_points"]

    assert spans == [(f"GET {MASK}", {"a": MASK}), ("server", {"url.path": f"/reset/{MASK}"}), ("late", {"a": MASK})]
    assert [log["body"] for log, _ in exported["logs"]] == [f"read {MASK}"]
    assert [point["attributes"] for point in points] == [{"a": MASK}]


def test_h05_a_word_does_not_mask_the_name_of_an_attribute(telemetry: Telemetry) -> None:
    """A word that is sent as a token does not mask an attribute's name, even in the attacker's own request."""
    tracer = telemetry.tracers.get_tracer("t")
    tracer.start_span("before", attributes={"http.request.method": "GET"}).end()

    with use_token("http.request.method"):
        tracer.start_span("x", attributes={"http.request.method": "GET", "a": "http.request.method"}).end()
    (*_, (span, _)) = telemetry.exported()["spans"]

    assert span["attributes"] == {"http.request.method": "GET", "a": MASK}


class _Verified:
    """A result that the custom verifier returns for every token."""

    claims = MappingProxyType({"sub": "alice"})
    expires_at = None
    scopes = frozenset[str]()
    subject = "alice"
    client_id = None

    def is_still_valid(self) -> bool:
        return True


class _Verifier:
    def verify(self, token: str) -> Any:
        return _Verified()


def test_h05_a_verified_word_is_remembered_like_a_credential(telemetry: Telemetry) -> None:
    """A short token that was verified is still masked after its request has ended."""
    token = "s3cr-et-w0rd"
    logger = telemetry.loggers.get_logger("access")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    guarded: Any = BearerAuthMiddleware(app, verifier=_Verifier(), settings=Settings())  # type: ignore[arg-type]

    async def outside(scope: Any, receive: Any, send: Any) -> None:
        with telemetry.tracers.get_tracer("t").start_as_current_span("server"):
            await guarded(scope, receive, send)
            telemetry.tracers.get_tracer("t").start_span(
                f"child {token}",
                context=trace.set_span_in_context(
                    trace.NonRecordingSpan(trace.get_current_span().get_span_context()), Context()
                ),
            ).end()
        logger.emit(LogRecord(timestamp=1, context=Context(), body=f'"GET /reset/{token}"'))

    with serve_asgi(outside) as port:
        assert get(port, "/", "never-verified").status == 200
        for _ in range(2):
            assert get(port, "/", token).status == 200
    exported = telemetry.exported()

    assert {span["name"] for span, _ in exported["spans"]} == {"server", f"child {MASK}", f"child {token}"}
    assert [span["name"] for span, _ in exported["spans"]].count(f"child {MASK}") == 2
    assert [log["body"] for log, _ in exported["logs"]][1:] == [f'"GET /reset/{MASK}"'] * 2


def test_h05_a_resource_created_with_a_credential_stays_masked_when_it_is_merged(telemetry: Telemetry) -> None:
    """A resource that contains a masked credential stays masked after it is merged with another resource."""
    with use_token(OWN_OPAQUE):
        made = Resource({"made.with": f"of {OWN_OPAQUE}"})

    merged = Resource({"service.name": SERVICE, "container.id": CONTAINER}).merge(made)

    assert dict(merged.attributes) == {
        "service.name": SERVICE,
        "container.id": CONTAINER,
        "made.with": f"of {MASK}",
    }


def test_h05_names_that_cannot_be_redacted_are_removed(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that cannot be redacted is removed, and the application gets no exception."""

    def fail() -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(statics, "lasting_tokens", fail)

    tracer: Any = telemetry.tracers.get_tracer(f"of {OWN_OPAQUE}", attributes={"a": OWN_OPAQUE})
    resource = Resource({"a": OWN_OPAQUE})
    counter: Any = telemetry.meters.get_meter("t").create_counter("c", description=OWN_OPAQUE)

    assert (tracer._instrumentation_scope.name, dict(tracer._instrumentation_scope.attributes)) == (FAILED, {})
    assert tracer._instrumentation_scope.schema_url == ""
    assert dict(resource.attributes) == {}
    assert (counter.name, counter.description) == (FAILED, FAILED)


@pytest.mark.parametrize("part", ["resources", "scopes", "tracers", "instruments"])
def test_h05_a_hook_on_the_creation_of_names_that_has_no_effect_is_reported(
    part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If a hook that masks names has no effect, the self-test detects the failure and `check` reports it."""
    index = [each.name for each in installation.STATICS].index(part)
    without = dataclasses.replace(installation.STATICS[index], patch=lambda module, scrubber, patches: None)
    parts = (*installation.STATICS[:index], without, *installation.STATICS[index + 1 :])
    monkeypatch.setattr(installation, "STATICS", parts)

    installation.start(Settings())
    states = installation.states()

    assert states.pop(part) == "NOT redacted (self-test failed: the test token was not redacted)"
    assert set(states.values()) == {installation.HOOKED}
    assert f"cannot redact {part}" in caplog.text
    installation.stop()
