"""h22: a caller cannot make redaction forget the token of a request that is still being served."""

from __future__ import annotations

import gc
import secrets
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry._logs import LogRecord
from opentelemetry.context import Context

from otel_token_relay import Settings, install, use_token
from otel_token_relay.boundary import Boundary
from otel_token_relay.context import with_token
from otel_token_relay.redaction.known_tokens import REMEMBERED
from otel_token_relay.redaction.recent_tokens import MAX_IN_USE
from otel_token_relay.token import BearerToken, Lease
from tests.redaction.corpus import OWN_OPAQUE
from tests.redaction.pipeline import Pipeline, leaks

TRACE = 0x4BF92F3577B34DA6A3CE929D0E0E4736
PARENT = trace.SpanContext(TRACE, 1, is_remote=True, trace_flags=trace.TraceFlags(1))


@pytest.fixture
def pipeline() -> Iterator[Pipeline]:
    install(Settings())
    pipeline = Pipeline()
    yield pipeline
    pipeline.close()


def in_trace() -> Context:
    return trace.set_span_in_context(trace.NonRecordingSpan(PARENT), Context())


def made_up() -> str:
    """Return a random token that looks like a credential."""
    return secrets.token_urlsafe(40)


def send(token: str, context: Context | None = None, lease: Lease | None = None) -> BearerToken:
    """Bind a token in a request, which ends immediately unless a lease is passed."""
    bound = BearerToken(token, lease=lease or Lease())
    with_token(bound, in_trace() if context is None else context)
    if lease is None and bound.lease is not None:
        bound.lease.end()
    return bound


def bodies(pipeline: Pipeline, context: Context) -> bytes:
    """Return the exported form of a log record that contains the victim's token and is emitted in *context*."""
    pipeline.logger.emit(LogRecord(body=f"of {OWN_OPAQUE}", context=context))
    return pipeline.exported()[0]


@pytest.mark.parametrize("count", [8, 100, 5_000])
def test_h22_made_up_tokens_do_not_evict_a_token_of_the_same_trace(count: int, pipeline: Pipeline) -> None:
    """Made-up tokens in the same trace do not evict a token that is in use."""
    victim = send(OWN_OPAQUE, lease=Lease())
    for _ in range(count):
        send(made_up())

    assert victim.is_usable
    assert not leaks(OWN_OPAQUE, bodies(pipeline, in_trace()))
    assert len(REMEMBERED.of_trace(TRACE).values) <= 8 + MAX_IN_USE


def test_h22_unused_credentials_evict_nothing(pipeline: Pipeline) -> None:
    """A token stays known after its request has ended, regardless of how many later requests are rejected."""
    send(OWN_OPAQUE)
    for _ in range(100):
        boundary = Boundary.of(lambda name: [f"Basic {made_up()}"], Settings())
        attached = otel_context.attach(in_trace())
        boundary.context()
        boundary.close()
        otel_context.detach(attached)

    assert not leaks(OWN_OPAQUE, bodies(pipeline, in_trace()))


def test_h22_one_of_several_requests_with_the_same_token_keeps_it(pipeline: Pipeline) -> None:
    """A token that several requests share stays known until the last request ends."""
    first, second = Lease(), Lease()
    kept = send(OWN_OPAQUE, lease=first), send(OWN_OPAQUE, lease=second)
    send(OWN_OPAQUE)
    first.end()
    for _ in range(1_000):
        send(made_up())

    assert [token.is_usable for token in kept] == [False, True]
    assert not leaks(OWN_OPAQUE, bodies(pipeline, in_trace()))


def test_h22_tokens_without_a_trace_do_not_evict_one_in_use(pipeline: Pipeline) -> None:
    """Made-up tokens without a trace do not evict a token that is in use."""
    victim = send(OWN_OPAQUE, Context(), Lease())
    for _ in range(1_000):
        send(made_up(), Context())

    assert victim.is_usable
    assert OWN_OPAQUE in REMEMBERED.without_trace().remembered
    assert len(REMEMBERED.without_trace().remembered) <= 64 + MAX_IN_USE


def test_h22_tokens_of_the_same_thread_do_not_evict_one_in_use(pipeline: Pipeline) -> None:
    """Made-up tokens in the same thread do not evict a token that is in use."""
    victim = send(OWN_OPAQUE, Context(), Lease())
    for _ in range(1_000):
        send(made_up(), Context())

    assert victim.is_usable
    assert not leaks(OWN_OPAQUE, bodies(pipeline, Context({"an empty one": "would be replaced by the current one"})))


def test_h22_tokens_that_are_bound_in_a_span_do_not_evict_one_in_use(pipeline: Pipeline) -> None:
    """Tokens that are bound during a span do not evict the span's own token."""
    with pipeline.tracer.start_as_current_span("batch", Context()) as span, use_token(OWN_OPAQUE):
        for _ in range(100):
            with use_token(made_up()):
                pass
        # After all remembered tokens are forgotten, only the span itself still has the token.
        REMEMBERED.forget()
        span.set_attribute("text", OWN_OPAQUE)
    assert not leaks(OWN_OPAQUE, pipeline.exported()[0])


def test_h22_the_memory_is_bounded_even_if_no_lease_ever_ends(pipeline: Pipeline) -> None:
    """The number of remembered tokens is limited, even if all of them are in use."""
    with ExitStack() as stack:
        for _ in range(1_000):
            stack.enter_context(use_token(made_up()))
            with_token(stack.enter_context(use_token(made_up())), in_trace())
        assert len(REMEMBERED.of_trace(TRACE).values) <= 8 + MAX_IN_USE
        assert len(REMEMBERED.without_trace().remembered) <= 64 + MAX_IN_USE
        assert len(REMEMBERED.of_thread().remembered) <= 8 + MAX_IN_USE
    for _ in range(10_000):
        with_token(BearerToken(made_up(), lease=Lease()))  # garbage collection frees this lease
    gc.collect()

    assert len(REMEMBERED.in_use) <= 512


def test_h22_threads_that_bind_tokens_at_the_same_time_lose_none(pipeline: Pipeline) -> None:
    """Tokens that several threads bind simultaneously are all remembered in the trace."""
    tokens = [made_up() for _ in range(8)]
    barrier, done = threading.Barrier(9), threading.Event()

    def serve(token: str) -> None:
        with use_token(token) as bound:
            with_token(bound, in_trace())
            barrier.wait()
            done.wait(30)

    threads = [threading.Thread(target=serve, args=(token,), daemon=True) for token in tokens]
    for thread in threads:
        thread.start()
    barrier.wait()
    for _ in range(2_000):
        send(made_up())
    found = REMEMBERED.of_trace(TRACE).values
    done.set()
    for thread in threads:
        thread.join(30)

    assert set(tokens) <= set(found)
