"""Redaction covers log records that are written after the request, and bodies that cannot be read."""

from __future__ import annotations

from types import SimpleNamespace

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk.resources import Resource

from otel_token_relay import Settings, install, use_token
from otel_token_relay.redaction import logs
from otel_token_relay.redaction.scrubber import FAILED, MASK, Scrubber
from otel_token_relay.redaction.token_search import NOTHING, known_from_one
from tests.redaction.corpus import FOREIGN_JWT, OWN_OPAQUE
from tests.redaction.pipeline import Pipeline, leaks


def test_what_a_thread_logs_after_the_request_is_masked():
    """A record that a server's thread logs after the context and the trace end is masked."""
    pipeline = Pipeline()
    install(Settings())
    try:
        with use_token(OWN_OPAQUE):
            pass
        pipeline.logger.emit(LogRecord(timestamp=1, body=f'"GET /reset/{OWN_OPAQUE} HTTP/1.1" 404'))
        exported = pipeline.exported()
    finally:
        pipeline.close()

    assert not any(leaks(OWN_OPAQUE, text) for text in exported)


def test_only_the_tokens_are_removed_from_a_log_record():
    """A log record keeps its other data, and the masked record is not the application's own record."""
    pipeline = Pipeline(Resource({"service.name": "billing", "launched.with": FOREIGN_JWT}))
    install(Settings())
    try:
        with use_token(OWN_OPAQUE), pipeline.tracer.start_as_current_span("server") as span:
            record = LogRecord(
                timestamp=1,
                severity_text="WARN",
                severity_number=SeverityNumber.WARN,
                body={"message": f"read with {OWN_OPAQUE}", "rows": 3},
                attributes={"http.route": "/me", "note": OWN_OPAQUE},
                event_name="profile.read",
            )
            pipeline.logger.emit(record)
        (exported,) = pipeline.logs[0].get_finished_logs()
    finally:
        pipeline.close()

    found = exported.log_record
    assert found.body == {"message": f"read with {MASK}", "rows": 3}
    assert dict(found.attributes) == {"http.route": "/me", "note": MASK}
    assert (found.timestamp, found.event_name, found.severity_text) == (1, "profile.read", "WARN")
    assert found.trace_id == span.get_span_context().trace_id
    assert dict(exported.resource.attributes) == {"service.name": "billing", "launched.with": MASK}
    assert (exported.instrumentation_scope.name, exported.instrumentation_scope.version) == ("test", "1")
    assert (record.body["message"], record.attributes["note"]) == (f"read with {OWN_OPAQUE}", OWN_OPAQUE)


def test_a_log_record_without_a_token_is_exported_unchanged():
    """A log record from a request whose token it does not contain is exported unchanged."""
    pipeline = Pipeline()
    install(Settings())
    try:
        with use_token(OWN_OPAQUE):
            pipeline.logger.emit(LogRecord(timestamp=1, body="read", attributes={"http.route": "/me"}))
        (exported,) = pipeline.logs[0].get_finished_logs()
    finally:
        pipeline.close()

    assert (exported.log_record.body, dict(exported.log_record.attributes)) == ("read", {"http.route": "/me"})


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError(OWN_OPAQUE)

    __repr__ = __str__


def test_a_log_body_that_cannot_be_read_is_replaced():
    """A log body that cannot be read is replaced, and the logging call returns."""
    pipeline = Pipeline()
    install(Settings())
    try:
        pipeline.logger.emit(LogRecord(timestamp=1, body=Unprintable()))  # type: ignore[arg-type]
        bodies = [log.log_record.body for log in pipeline.logs[0].get_finished_logs()]
    finally:
        pipeline.close()

    assert bodies == [FAILED]


def test_an_event_name_that_is_not_text_loses_nothing_else():
    """If an event name is not text, the record keeps its body and attributes."""
    readable = SimpleNamespace(body="kept", attributes={"b": OWN_OPAQUE}, event_name=7, severity_text=None)

    assert logs.is_suspect(readable, Scrubber(), known_from_one(OWN_OPAQUE))
    assert not logs.is_suspect(SimpleNamespace(**{**vars(readable), "attributes": {}}), Scrubber(), NOTHING)
