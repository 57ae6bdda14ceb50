"""Records are cleaned on first access and never expose their raw content."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry._logs import LogRecord
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs._internal import ReadableLogRecord
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, InMemoryLogRecordExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceState, get_current_span

from otel_token_relay import Settings, use_token
from otel_token_relay.redaction import installation, spans
from otel_token_relay.redaction.deferred import DEFERRED
from otel_token_relay.redaction.scrubber import FAILED, MASK, Scrubber
from tests.redaction.corpus import FOREIGN_JWT, OWN_OPAQUE


@pytest.fixture(autouse=True)
def redaction() -> Iterator[None]:
    installation.start(Settings())
    yield
    installation.stop()


class _Keeping(SpanProcessor):
    """A span processor that stores spans without reading them."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def _dirty_span(**attributes: Any) -> ReadableSpan:
    """Return a span that contains the caller's token, as span processors receive it."""
    keeping = _Keeping()
    provider = TracerProvider()
    provider.add_span_processor(keeping)
    with use_token(OWN_OPAQUE), provider.get_tracer("t").start_as_current_span(f"GET /{OWN_OPAQUE}") as span:
        span.set_attributes({"text": f"a {OWN_OPAQUE}", **attributes})
        span.add_event(OWN_OPAQUE, {"text": OWN_OPAQUE})
    return keeping.spans[0]


@contextmanager
def _scanning_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    threads: set[int] = set()
    is_suspect = Scrubber.is_suspect

    def watch(self: Scrubber, *args: Any) -> bool:
        threads.add(threading.get_ident())
        return is_suspect(self, *args)

    monkeypatch.setattr(Scrubber, "is_suspect", watch)
    yield threads


def test_the_exporters_thread_cleans_the_records_of_a_batch_processor(monkeypatch):
    """A thread that ends a span or writes a log record for a request does not search the record for tokens."""
    span_exporter, log_exporter = InMemorySpanExporter(), InMemoryLogRecordExporter()
    tracers, loggers = TracerProvider(), LoggerProvider()
    tracers.add_span_processor(BatchSpanProcessor(span_exporter))
    loggers.add_log_record_processor(BatchLogRecordProcessor(log_exporter))

    with _scanning_threads(monkeypatch) as threads:
        with use_token(OWN_OPAQUE), tracers.get_tracer("t").start_as_current_span(f"/{OWN_OPAQUE}"):
            loggers.get_logger("t").emit(LogRecord(body=f"read {OWN_OPAQUE}"))
        searched_here = threading.get_ident() in threads
        tracers.force_flush()
        loggers.force_flush()

    assert not searched_here
    assert span_exporter.get_finished_spans()[0].name == f"/{MASK}"
    assert log_exporter.get_finished_logs()[0].log_record.body == f"read {MASK}"


@pytest.mark.parametrize(
    "name", ["name", "_name", "attributes", "_attributes", "events", "_events", "status", "resource", "to_json"]
)
def test_the_attribute_that_is_read_first_is_clean(name):
    """No attribute of a record, public or private, exposes the token."""
    span = _dirty_span()
    assert OWN_OPAQUE not in repr(vars(span))

    value = getattr(span, name)

    assert OWN_OPAQUE not in repr(value() if callable(value) else [value])
    assert OWN_OPAQUE not in span.to_json()
    assert OWN_OPAQUE not in repr(vars(span))


def test_dumping_the_attributes_finds_no_token():
    """A record's ``__dict__``, which many loggers dump, does not contain the raw record."""
    dumped = json.dumps(_dirty_span(), default=lambda value: getattr(value, "__dict__", None) or str(value))

    assert OWN_OPAQUE not in dumped


def test_a_record_has_the_sdks_class_after_the_first_access():
    """A record has the SDK's class after the first access, and ``isinstance`` always recognizes it."""
    span = _dirty_span()
    assert isinstance(span, ReadableSpan)

    assert span.name == f"GET /{MASK}"

    assert type(span) is ReadableSpan
    assert not [name for name in vars(span) if "token_relay" in name]


def test_a_missing_attribute_raises_attribute_error():
    """A missing attribute raises ``AttributeError`` before and after the first access."""
    span = _dirty_span()

    for _ in range(2):
        with pytest.raises(AttributeError, match="no_such"):
            span.no_such  # noqa: B018


def test_a_field_that_a_processor_sets_is_kept():
    """A field that a processor replaces before the first access keeps its new value."""
    span = _dirty_span()
    span._name = "mine"

    assert span.attributes["text"] == f"a {MASK}"
    assert span.name == "mine"


def _set_fields(span: Any) -> None:
    span._name = f"GET /{OWN_OPAQUE}"
    span._attributes = {"text": f"set {OWN_OPAQUE}"}
    span._events = (Event("e", {"text": OWN_OPAQUE}),)
    span._links = [Link(span._context, {"text": OWN_OPAQUE})]
    span._status = Status(StatusCode.ERROR, f"failed {OWN_OPAQUE}")
    span._resource = Resource({"text": FOREIGN_JWT})
    span._instrumentation_scope = InstrumentationScope(FOREIGN_JWT)
    context = span._context
    state = TraceState([("vendor", OWN_OPAQUE)])
    span._context = SpanContext(context.trace_id, context.span_id, False, context.trace_flags, state)
    span._parent = span._context
    span.own = f"of mine {OWN_OPAQUE}"


def _set_fields_directly(span: Any) -> None:
    before = dict(vars(span))
    vars(span).update(_name=f"GET /{OWN_OPAQUE}", _attributes={"text": f"set {OWN_OPAQUE}"}, own=f"my {OWN_OPAQUE}")
    assert before.items() <= vars(span).items()


@pytest.mark.parametrize("setting", [_set_fields, _set_fields_directly])
@pytest.mark.parametrize(
    "name", ["_name", "_attributes", "attributes", "_events", "_links", "_status", "_parent", "resource", "to_json"]
)
def test_what_a_processor_sets_before_the_first_access_is_clean(setting, name):
    """A value that a processor sets before the first access is clean, regardless of which attribute is read first."""
    span = _dirty_span()
    setting(span)
    assert "text" in _dirty_span().attributes  # the other record remains unchanged

    value = getattr(span, name)

    assert OWN_OPAQUE not in repr([value() if callable(value) else value])
    assert span._attributes["text"] == f"set {MASK}"
    assert OWN_OPAQUE not in repr(list(vars(span).values())) + span.to_json()
    assert FOREIGN_JWT not in repr(vars(span)) + span.to_json()
    assert MASK in span.own
    assert type(span) is ReadableSpan


def test_what_is_set_is_not_shown_before_the_first_access():
    """A value that is set before the first access appears in no attribute, and the raw record has no state to
    pickle.
    """
    span = _dirty_span()
    raw = [vars(span)[DEFERRED].__getstate__()]
    span._attributes = {"text": OWN_OPAQUE}
    raw.append(vars(span)[DEFERRED].__getstate__())

    assert OWN_OPAQUE not in repr(vars(span))
    assert raw == [None, None]


def test_what_a_processor_sets_on_a_log_record_is_clean():
    """A value that a processor sets on a frozen log record with ``object.__setattr__`` is clean."""
    with use_token(OWN_OPAQUE):
        record = ReadableLogRecord(LogRecord(body="read"), TracerProvider().resource)
        object.__setattr__(record, "log_record", LogRecord(body=f"set {OWN_OPAQUE}"))
        object.__setattr__(record, "own", f"mine {OWN_OPAQUE}")

    assert OWN_OPAQUE not in repr(vars(record)).replace(record.own, "")
    assert record.log_record.body == f"set {MASK}"
    assert record.own == f"mine {MASK}"


def test_concurrent_first_accesses_see_what_was_set_and_no_token():
    """Concurrent first accesses see the value that was set, and none of them sees the token."""
    with ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            span = _dirty_span()
            _set_fields(span)
            barrier = threading.Barrier(8)

            def read(span: ReadableSpan = span, barrier: threading.Barrier = barrier) -> str:
                barrier.wait()
                return span.to_json() + repr(list(vars(span).values()))

            shown = [future.result() for future in [pool.submit(read) for _ in range(8)]]

            assert not [text for text in shown if OWN_OPAQUE in text or f"set {MASK}" not in text]


def test_what_is_set_after_the_first_access_is_kept_as_it_is():
    """A value that is set after the first access remains unchanged, because the record is then an ordinary SDK
    object.
    """
    span = _dirty_span()
    assert span.name == f"GET /{MASK}"
    span._name = f"mine {OWN_OPAQUE}"

    assert span.name == f"mine {OWN_OPAQUE}"


def test_copies_are_clean():
    """A copy that is made before the first access is clean."""
    assert copy.copy(_dirty_span()).name == f"GET /{MASK}"
    assert OWN_OPAQUE not in repr(vars(copy.copy(_dirty_span())))
    with pytest.raises(TypeError):  # the SDK's records contain locks
        pickle.dumps(_dirty_span())


@pytest.mark.parametrize("send", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_raw_record_is_neither_pickled_nor_copied(send):
    """The raw record and its known tokens cannot be sent to a different process or copied before they are redacted."""
    span = _dirty_span()

    with pytest.raises(TypeError, match="not been redacted yet"):
        send(vars(span)[DEFERRED])

    assert span.name == f"GET /{MASK}"


def test_concurrent_first_accesses_all_see_a_clean_record():
    """Every thread gets the clean record when several threads access it first at the same time."""
    with ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            span = _dirty_span()
            barrier = threading.Barrier(8)

            def read(span: ReadableSpan = span, barrier: threading.Barrier = barrier) -> str:
                barrier.wait()
                return span.to_json()

            shown = {future.result() for future in [pool.submit(read) for _ in range(8)]}

            assert len(shown) == 1
            assert OWN_OPAQUE not in shown.pop()


def test_a_span_is_converted_on_first_access(monkeypatch):
    """The SDK converts a span on first access instead of in the thread that ends the span."""
    converted: list[int] = []
    original = ReadableSpan.__init__

    def watch(self: ReadableSpan, *args: Any, **kwargs: Any) -> None:
        converted.append(threading.get_ident())
        original(self, *args, **kwargs)

    keeping = _Keeping()
    provider = TracerProvider()
    provider.add_span_processor(keeping)
    tracer = provider.get_tracer("t")
    with use_token(OWN_OPAQUE):
        span: Any = tracer.start_span("before")
        monkeypatch.setattr(ReadableSpan, "__init__", watch)
        span.end()
    span.update_name("after")
    span.set_attribute("late", 1)
    span.set_status(Status(StatusCode.ERROR))
    span.add_event("late")

    assert not converted
    record = keeping.spans[0]
    assert record.context is span.context
    assert not converted
    assert (record.name, dict(record.attributes or {}), record.status.status_code) == ("before", {}, StatusCode.UNSET)
    assert not record.events
    assert converted


def test_a_span_that_cannot_be_converted_is_exported_without_its_data():
    """A span that cannot be converted is exported without its data, and the exporter's thread gets no error."""
    keeping = _Keeping()
    provider = TracerProvider()
    provider.add_span_processor(keeping)
    with use_token(OWN_OPAQUE):
        span: Any = provider.get_tracer("t").start_span(OWN_OPAQUE, attributes={"text": OWN_OPAQUE})
        span.end()
    del span._links

    record = keeping.spans[0]

    assert record.name == FAILED
    assert OWN_OPAQUE not in record.to_json()
    assert (record.context, record.end_time) == (span.context, span.end_time)


def test_a_record_that_cannot_be_cleaned_is_wiped_on_first_access(monkeypatch):
    """A record that cannot be cleaned in the exporter's thread is wiped."""
    span = _dirty_span()

    def fail(*args: Any) -> bool:
        raise RuntimeError("no")

    monkeypatch.setattr(spans, "is_suspect", fail)

    assert span.name == FAILED
    assert not span.attributes
    assert not span.events


def test_a_token_that_is_bound_before_the_export_is_known():
    """A token that is bound after the span ends, but before the export, is masked."""
    keeping = _Keeping()
    provider = TracerProvider()
    provider.add_span_processor(keeping)
    tracer = provider.get_tracer("t")
    with tracer.start_as_current_span("outer"):
        with tracer.start_as_current_span(f"log in as {OWN_OPAQUE}"):
            pass
        with use_token(OWN_OPAQUE):
            pass

    assert keeping.spans[0].name == f"log in as {MASK}"


def test_a_snapshot_of_an_open_span_is_cleaned_at_once(monkeypatch):
    """The snapshot of an open span is cleaned immediately, because other code still writes to the span."""
    taken = []

    class Snapshots(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            taken.append(span._readable_span())

    provider = TracerProvider()
    provider.add_span_processor(Snapshots())
    with use_token(OWN_OPAQUE), provider.get_tracer("t").start_as_current_span(f"GET /{OWN_OPAQUE}"):
        assert type(taken[0]) is ReadableSpan
        assert taken[0].name == f"GET /{MASK}"
        assert get_current_span().name == f"GET /{OWN_OPAQUE}"  # the live span belongs to the application


def test_what_another_processor_adds_to_a_log_record_is_masked():
    """A token that a later processor adds to a log record's shared attributes is masked."""
    exporter = InMemoryLogRecordExporter()

    class Enriching:
        def on_emit(self, log_record: Any) -> None:
            log_record.log_record.attributes["added"] = f"by {OWN_OPAQUE}"

        def shutdown(self) -> None: ...

        def force_flush(self, timeout_millis: int = 30000) -> bool:
            return True

    provider = LoggerProvider()
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter))
    provider.add_log_record_processor(Enriching())
    with use_token(OWN_OPAQUE):
        provider.get_logger("t").emit(LogRecord(body="read", attributes={"of": "me"}))
    provider.force_flush()

    assert OWN_OPAQUE not in exporter.get_finished_logs()[0].to_json()


def test_a_log_record_before_the_first_access_shows_no_token():
    """The fields, class defaults, and repr of a log record do not expose a token before the first access."""
    provider = LoggerProvider()
    taken: list[Any] = []

    class Making:
        def on_emit(self, log_record: Any) -> None:
            taken.extend(
                ReadableLogRecord(
                    log_record=log_record.log_record,
                    resource=log_record.resource,
                    instrumentation_scope=log_record.instrumentation_scope,
                )
                for _ in range(4)
            )

        def shutdown(self) -> None: ...

        def force_flush(self, timeout_millis: int = 30000) -> bool:
            return True

    provider.add_log_record_processor(Making())
    with use_token(OWN_OPAQUE):
        provider.get_logger(f"logger-{OWN_OPAQUE}", "1").emit(LogRecord(body=f"read {OWN_OPAQUE}"))

    assert OWN_OPAQUE not in repr([vars(one) for one in taken])
    assert taken[0].instrumentation_scope.name == f"logger-{MASK}"
    assert taken[1].log_record.body == f"read {MASK}"
    assert OWN_OPAQUE not in repr(taken[2])
    assert OWN_OPAQUE not in repr(copy.copy(taken[3]))
    assert {type(one) for one in taken} == {ReadableLogRecord}


def test_a_subclass_of_a_log_record_keeps_its_class():
    """A log record of a subclass is cleaned immediately and keeps its class."""

    class Own(ReadableLogRecord):
        pass

    with use_token(OWN_OPAQUE):
        record = Own(LogRecord(body=f"read {OWN_OPAQUE}"), TracerProvider().resource)

    assert type(record) is Own
    assert record.log_record.body == f"read {MASK}"
