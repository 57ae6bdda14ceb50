"""Redaction wraps span and log processors if the SDK lacks a private function that redaction replaces."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.redaction.corpus import OWN_OPAQUE

FALLBACK = """
import sys, logging
import opentelemetry.sdk.trace as t, opentelemetry.sdk._logs._internal as l
import opentelemetry.sdk.metrics._internal.metric_reader_storage as m
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader, MetricExporter
{break_it}
import otel_token_relay
from otel_token_relay.redaction.installation import states
otel_token_relay.install()
print(states())
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry._logs import LogRecord
spans, logs, points = InMemorySpanExporter(), InMemoryLogRecordExporter(), []
class Keep(MetricExporter):
    def export(self, data, **kwargs):
        points.append(data.to_json())
    def force_flush(self, timeout_millis=0): return True
    def shutdown(self, timeout_millis=0, **kwargs): pass
tracers, loggers = t.TracerProvider(), l.LoggerProvider()
tracers.add_span_processor(SimpleSpanProcessor(spans))
loggers.add_log_record_processor(SimpleLogRecordProcessor(logs))
from opentelemetry.sdk.metrics import MeterProvider
meters = MeterProvider([PeriodicExportingMetricReader(Keep(), 600000)])
token = {token!r}
with otel_token_relay.use_token(token), tracers.get_tracer("x").start_as_current_span("n " + token):
    loggers.get_logger("x").emit(LogRecord(timestamp=1, body=token))
    meters.get_meter("x").create_counter("c").add(1, {{"a": token}})
meters.force_flush()
text = spans.get_finished_spans()[0].to_json() + logs.get_finished_logs()[0].to_json() + repr(points)
print("LEAKED" if token in text else "CLEAN", text.count("[REDACTED]"))
"""
BREAKS = {
    "spans": "del t.Span._readable_span; t.Span._readable_span_2 = None\n"
    "t.Span.end = lambda self, end_time=None: self._span_processor.on_end(t.ReadableSpan("
    "self._name, self._context, resource=self._resource))",
    "logs": "l.ReadableLogRecord.__init__ = property(lambda self: None)\nl.ReadableLogRecord = type('R', (), "
    "{'__new__': lambda cls, **kw: type('S', (l.ReadWriteLogRecord,), {'to_json': lambda s: repr(s.log_record.body)})"
    "(kw['log_record'])})\nimport opentelemetry.sdk._logs._internal.export as e\n"
    "e.ReadableLogRecord = l.ReadableLogRecord",
    "metrics": "m.MetricReaderStorage.consume = m.MetricReaderStorage.consume_measurement\n"
    "del m.MetricReaderStorage.consume_measurement\n"
    "m.MetricReaderStorage.__getattr__ = lambda self, name: self.consume",
}


@pytest.mark.parametrize("signal", BREAKS)
def test_an_sdk_without_the_conversion_point_is_redacted_by_wrapped_processors(signal):
    """If a signal's private function is missing, redaction wraps the signal's processors and reports this in its
    state.
    """
    program = FALLBACK.format(break_it=BREAKS[signal], token=OWN_OPAQUE)

    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    states, result = out.stdout.strip().splitlines()[-2:]
    assert f"'{signal}': 'redacted by wrapped" in states
    assert states.count("conversion point") == 2
    assert result.startswith("CLEAN")
    assert int(result.split()[1]) >= 3
