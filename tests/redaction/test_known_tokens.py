"""The number of remembered tokens is bounded, and a forked child does not inherit a held lock."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from otel_token_relay import Settings, install, use_token
from otel_token_relay.redaction import known_tokens
from tests.redaction.corpus import OWN_OPAQUE
from tests.redaction.pipeline import Pipeline, leaks


def test_a_span_that_outlives_thousands_of_traces_is_masked():
    """A span that outlives thousands of other traces is masked, although the number of remembered traces is bounded."""
    pipeline = Pipeline()
    install(Settings())
    try:
        with use_token(OWN_OPAQUE):
            span = pipeline.tracer.start_span("stream")
        for number in range(10_000):
            known_tokens.REMEMBERED.remember(number + 1, f"another-token-{number:06}")
        span.set_attribute("a", OWN_OPAQUE)
        span.end()
        exported = pipeline.exported()
        kept = len(known_tokens.REMEMBERED.recent_traces) + len(known_tokens.REMEMBERED.older_traces)
    finally:
        pipeline.close()

    assert not any(leaks(OWN_OPAQUE, text) for text in exported)
    assert kept <= 4098


FORKING = """
import os, signal, sys, threading
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otel_token_relay import install, use_token

install()
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
busy = TracerProvider().get_tracer("t")
stop = threading.Event()

def churn(worker):
    number = 0
    while not stop.is_set():
        number += 1
        with use_token(f"churn-{{worker}}-{{number}}"), busy.start_as_current_span("c"):
            pass

threads = [threading.Thread(target=churn, args=(worker,)) for worker in range(3)]
for thread in threads:
    thread.start()
for _ in range(30):
    child = os.fork()
    if not child:
        signal.alarm(10)
        with use_token("{token}"), provider.get_tracer("f").start_as_current_span("s") as span:
            span.set_attribute("a", "{token}")
        os._exit(exporter.get_finished_spans()[0].attributes["a"] != "[REDACTED]")
    print(os.waitpid(child, 0)[1])
stop.set()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_a_child_that_is_forked_while_tokens_are_bound_does_not_deadlock():
    """A child that is forked while tokens are being bound does not inherit a held lock."""
    program = FORKING.format(token=OWN_OPAQUE)

    out = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120)

    assert out.stdout.split() == ["0"] * 30, out.stderr
