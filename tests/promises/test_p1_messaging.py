"""P1, listed destinations only: a message has no destination, so brokers, functions, and tools get no token."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import pytest
from celery import Celery, signals
from celery.contrib.testing.worker import start_worker
from opentelemetry import context as otel_context
from opentelemetry import propagate
from opentelemetry.instrumentation.botocore.extensions._messaging import inject_propagation_context
from opentelemetry.instrumentation.botocore.extensions.lmbd import _OpInvoke
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.propagators.textmap import default_setter
from opentelemetry.sdk.trace import TracerProvider

from otel_token_relay import Settings, current_token, install, to_destination, uninstall, use_token
from otel_token_relay.testing import assert_never_leaked

with warnings.catch_warnings():
    # kafka-python reads its schemas in a way that is deprecated since Python 3.12.
    warnings.simplefilter("ignore", DeprecationWarning)
    from opentelemetry.instrumentation.kafka.utils import _kafka_setter

ALICE = "alice-token-0001"
EVERYWHERE = Settings(destinations=["http://*:*", "https://*:*"])


@pytest.fixture(autouse=True)
def _installed():
    install(EVERYWHERE)
    yield
    uninstall()


@pytest.fixture
def traced():
    """Start a span, in whose context instrumentation injects."""
    with TracerProvider().get_tracer("test").start_as_current_span("publish"):
        yield


def _dictionary():
    carrier = {}
    propagate.inject(carrier)
    return carrier


def _kafka():
    carrier = []
    propagate.inject(carrier, context=otel_context.get_current(), setter=_kafka_setter)
    return carrier


def _lambda():
    call = SimpleNamespace(params={"FunctionName": "f", "Payload": json.dumps({"headers": {"x": "1"}})})
    _OpInvoke._inject_current_span(call)
    return json.loads(call.params["Payload"])["headers"]


def _mcp():
    request = {"method": "tools/call", "params": {"_meta": {}}}
    propagate.inject(request["params"]["_meta"], setter=default_setter)
    return request["params"]["_meta"]


CARRIERS = {
    "dictionary (Celery, pika, aio-pika, remoulade)": _dictionary,
    "Kafka": _kafka,
    "SNS and SQS": lambda: inject_propagation_context(None),
    "Lambda": _lambda,
    "MCP": _mcp,
}

every_carrier = pytest.mark.parametrize("fill", CARRIERS.values(), ids=CARRIERS.keys())


@every_carrier
@pytest.mark.usefixtures("traced")
def test_a_message_carries_the_trace_and_no_token(fill):
    """A message carries the trace but no token, even if every host is listed."""
    with use_token(ALICE):
        carrier = fill()

    assert "traceparent" in str(carrier)
    assert "authorization" not in str(carrier).lower()
    assert_never_leaked(ALICE, carrier)


@every_carrier
def test_a_destination_in_the_context_does_not_send_the_token(fill):
    """A message carries no token even if a context from `to_destination` remains attached.

    Kafka's instrumentation passes the context explicitly, just as code that specifies a destination does.
    """
    with use_token(ALICE):
        attached = otel_context.attach(to_destination("https://profile-service"))
        try:
            carrier = fill()
        finally:
            otel_context.detach(attached)

    assert_never_leaked(ALICE, carrier)


def _leave_logging_alone(**_):
    """Do nothing, because a connected receiver prevents a worker from configuring the root logger."""


@pytest.fixture
def celery():
    """Return an instrumented application on Celery's in-memory broker."""
    app = Celery("test", broker="memory://", backend="cache+memory://")
    signals.setup_logging.connect(_leave_logging_alone)
    CeleryInstrumentor().instrument(tracer_provider=TracerProvider())
    try:
        yield app
    finally:
        CeleryInstrumentor().uninstrument()
        signals.setup_logging.disconnect(_leave_logging_alone)
        app.close()


def test_a_celery_task_has_no_token(celery):
    """A Celery task and its message have the trace but not the token."""
    messages, seen = [], []

    @celery.task(bind=True)
    def work(self):
        messages.append(repr(self.request.__dict__))
        token = current_token()
        seen.append(token and token.reveal())

    with use_token(ALICE):
        published = work.delay()
        with celery.connection() as connection, connection.SimpleQueue("celery") as queue:
            message = queue.get(timeout=10)
            messages.append(repr((message.headers, message.properties, message.body)))
            message.requeue()
    with start_worker(celery, pool="solo", perform_ping_check=False, loglevel="CRITICAL"):
        published.get(timeout=10)

    assert "traceparent" in messages[0]
    assert seen
    assert set(seen) == {None}
    assert_never_leaked(ALICE, messages)
