"""Each record is searched for the tokens of its own request, and for tokens that its trace or thread remembers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.sdk.trace import TracerProvider

from otel_token_relay import Settings, install, use_token
from otel_token_relay.context import announce_verified, with_token, with_unused
from otel_token_relay.redaction import known_tokens
from otel_token_relay.redaction.known_tokens import (
    REMEMBERED,
    RememberedTokens,
    lasting_tokens,
    note_start,
    tokens_in_context,
    tokens_of_span,
    with_later_tokens,
)
from otel_token_relay.redaction.token_search import NOTHING, KnownTokens
from otel_token_relay.token import BearerToken, Lease
from otel_token_relay.unused_credentials import UnusedCredentials
from tests.redaction.corpus import OWN, OWN_OPAQUE
from tests.redaction.pipeline import Pipeline, leaks

WORDS = "alice-of-accounting"
"""A token that is remembered only after a verifier has accepted it, because it consists of words."""


@pytest.fixture
def listening() -> Iterator[None]:
    """Remember tokens without the hooks, and forget them after the test."""
    known_tokens.listen()
    REMEMBERED.forget()
    yield
    REMEMBERED.forget()
    known_tokens.stop_listening()


@pytest.fixture
def tracer() -> trace.Tracer:
    """A tracer whose spans redaction does not observe."""
    return TracerProvider(shutdown_on_exit=False).get_tracer("t")


def trace_of(span: trace.Span) -> int:
    return span.get_span_context().trace_id


def parts(known: KnownTokens) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the own tokens and the remembered tokens."""
    return known.values, known.remembered


def in_other_thread(context: Context, trace_id: int | None = None) -> KnownTokens:
    """Return the tokens to search for in a record that a new thread creates in *context*."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(tokens_in_context, context, trace_id).result()


@pytest.mark.usefixtures("listening")
def test_a_token_belongs_to_the_records_of_its_own_request() -> None:
    """Every token is searched for until its request ends, and afterward only a token that looks like a credential."""
    for token, later in ((OWN_OPAQUE, ((), (OWN_OPAQUE,))), (WORDS, ((), ()))):
        REMEMBERED.forget()
        with use_token(token) as bound:
            context = get_current()
            assert bound is not None
            assert parts(tokens_in_context(context)) == ((token,), ())
            bound.obtained = {1: SimpleNamespace(token=BearerToken(OWN["hex"]))}
            assert parts(tokens_in_context(context)) == ((token, OWN["hex"]), ())
            bound.obtained = None
            assert parts(lasting_tokens()) == later

        assert parts(tokens_in_context(context)) == later
        assert in_other_thread(Context()) is NOTHING
        assert parts(REMEMBERED.without_trace()) == later
        assert parts(lasting_tokens()) == ((), ())


@pytest.mark.usefixtures("listening")
def test_a_trace_remembers_its_tokens(tracer: trace.Tracer) -> None:
    """After a request has ended, records of its trace are searched for its token in every thread."""
    with tracer.start_as_current_span("server", Context()) as span:
        in_span = get_current()
        with use_token(OWN_OPAQUE):
            assert parts(tokens_in_context(get_current())) == ((OWN_OPAQUE,), ())
        early = tokens_in_context(in_span)
        with use_token(OWN["hex"]):
            assert parts(tokens_in_context(get_current())) == ((OWN["hex"],), (OWN_OPAQUE,))
        with use_token(WORDS):
            pass
        assert parts(lasting_tokens()) == ((), (OWN_OPAQUE, OWN["hex"]))

    assert parts(early) == ((), (OWN_OPAQUE,))
    assert parts(with_later_tokens(early, trace_of(span))) == ((), (OWN_OPAQUE, OWN["hex"]))
    assert with_later_tokens(early, None) is early
    assert parts(in_other_thread(in_span)) == ((), (OWN_OPAQUE, OWN["hex"]))
    assert parts(in_other_thread(Context(), trace_of(span))) == ((), (OWN_OPAQUE, OWN["hex"]))
    assert in_other_thread(Context(), trace_of(span) ^ 1) is NOTHING
    # The span itself also has the word, because the word was bound while the span was current.
    assert parts(tokens_of_span(span, trace_of(span))) == ((OWN_OPAQUE, OWN["hex"], WORDS), ())
    # When the trace is forgotten, the span still has the tokens, but plain words are masked only in the span.
    REMEMBERED.forget()
    assert parts(tokens_in_context(in_span)) == ((), (OWN_OPAQUE, OWN["hex"]))


@pytest.mark.usefixtures("listening")
def test_a_thread_remembers_its_most_recent_tokens(tracer: trace.Tracer) -> None:
    """Records without a trace and a token are searched for the tokens that their thread bound most recently."""
    tokens = [f"{OWN['hex']}{number:02}" for number in range(10)]
    for token in tokens:
        with use_token(token):
            pass

    assert parts(tokens_in_context(Context())) == ((), tuple(tokens[-8:]))
    span = tracer.start_span("outside a request", Context())
    assert tokens_of_span(span, trace_of(span)) is REMEMBERED.of_thread()
    assert in_other_thread(Context()) is NOTHING


@pytest.mark.usefixtures("listening")
def test_a_verified_token_is_remembered_even_if_it_consists_of_words(tracer: trace.Tracer) -> None:
    """A token that consists of words is remembered for its trace and for later requests after it is verified."""
    assert not REMEMBERED.was_lasting(WORDS)
    with tracer.start_as_current_span("server", Context()) as span, use_token(WORDS) as bound:
        assert bound is not None
        assert not REMEMBERED.is_lasting(bound)
        assert REMEMBERED.of_trace(trace_of(span)) is NOTHING
        announce_verified(bound)
        assert REMEMBERED.is_lasting(bound)
        assert parts(lasting_tokens()) == ((), (WORDS,))

    assert REMEMBERED.of_trace(trace_of(span)).values == (WORDS,)
    assert parts(tokens_in_context(Context())) == ((), (WORDS,))
    with use_token(WORDS):
        pass
    assert parts(REMEMBERED.without_trace()) == ((), (WORDS,))
    assert REMEMBERED.all_tokens().remembered == (WORDS,)


@pytest.mark.usefixtures("listening")
def test_unused_credentials_are_treated_like_a_token(tracer: trace.Tracer) -> None:
    """A request's unused credentials are searched for until it ends, and afterward if they look like credentials."""
    lease = Lease()
    unused = UnusedCredentials((OWN_OPAQUE, WORDS), lease)
    with tracer.start_as_current_span("server", Context()) as span:
        in_span = get_current()
        context = with_unused(unused, in_span)
        attached = attach(context)
        during = lasting_tokens()
        detach(attached)
        own = tokens_in_context(context)
        lease.end()

    assert parts(own) == ((OWN_OPAQUE, WORDS), (OWN_OPAQUE,))
    assert parts(during) == ((), (OWN_OPAQUE,))
    assert parts(tokens_in_context(context)) == ((), (OWN_OPAQUE,))
    assert parts(in_other_thread(in_span)) == ((), (OWN_OPAQUE,))
    assert parts(tokens_in_context(Context())) == ((), (OWN_OPAQUE,))
    assert parts(tokens_of_span(span, trace_of(span))) == ((OWN_OPAQUE, WORDS), ())


@pytest.mark.usefixtures("listening")
def test_unused_credentials_do_not_evict_tokens(tracer: trace.Tracer) -> None:
    """A trace and a thread that already remember eight tokens do not remember unused credentials."""
    tokens = [f"{OWN['hex']}{number:02}" for number in range(8)]
    with tracer.start_as_current_span("server", Context()) as span:
        for token in tokens:
            with use_token(token):
                pass
        with_unused(UnusedCredentials((OWN_OPAQUE,), None), get_current())

    assert REMEMBERED.of_trace(trace_of(span)).values == tuple(tokens)
    assert REMEMBERED.of_thread().remembered == tuple(tokens)


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("token", [OWN_OPAQUE, WORDS])
def test_a_span_that_starts_takes_the_credentials_of_its_context(tracer: trace.Tracer, token: str) -> None:
    """A span that starts in a request has its token and its unused credentials, and its trace has the random ones."""
    lease = Lease()
    context = with_token(BearerToken(token, lease=lease), Context())
    context = with_unused(UnusedCredentials((OWN["hex"], "bob-of-sales"), lease), context)
    span: Any = tracer.start_span("client", Context())
    without: Any = tracer.start_span("other", Context())

    note_start(span, context)
    attached = attach(context)
    try:
        note_start(without, None)
    finally:
        detach(attached)
    lease.end()

    for one in (span, without):
        assert parts(tokens_of_span(one, trace_of(one))) == ((token, OWN["hex"], "bob-of-sales"), ())
        kept = (OWN_OPAQUE, OWN["hex"]) if token == OWN_OPAQUE else (OWN["hex"],)
        assert REMEMBERED.of_trace(trace_of(one)).values == kept
    late: Any = tracer.start_span("after the request", Context())
    note_start(late, context)
    assert tokens_of_span(late, trace_of(late)).values == ()


@pytest.mark.usefixtures("listening")
def test_a_span_that_ends_in_a_request_is_searched_for_the_requests_credentials(tracer: trace.Tracer) -> None:
    """A span that ends in a request is searched for the token and unused credentials, even if it started earlier."""
    span = tracer.start_span("earlier", Context())
    context = with_token(BearerToken(WORDS, lease=Lease()), Context())
    context = with_unused(UnusedCredentials(("bob-of-sales",), None), context)
    attached = attach(context)
    try:
        known = tokens_of_span(span, trace_of(span))
    finally:
        detach(attached)

    assert parts(known) == (("bob-of-sales", WORDS), ())


def test_older_traces_are_forgotten_unless_they_are_read() -> None:
    """Traces are forgotten in generations, and a trace that is read in the meantime stays."""
    remembered = RememberedTokens(traces=2)
    for trace_id in range(1, 9):
        remembered.remember(trace_id, f"token-of-trace-{trace_id}")
        assert remembered.of_trace(1).values == ("token-of-trace-1",)

    assert remembered.of_trace(2) is NOTHING
    assert remembered.of_trace(8).values == ("token-of-trace-8",)
    assert {"token-of-trace-1", "token-of-trace-8"} <= set(remembered.all_tokens().remembered)
    remembered.remember_without_trace(OWN_OPAQUE)
    assert remembered.all_tokens().remembered[0] == OWN_OPAQUE
    count = len(remembered.recent_traces) + len(remembered.older_traces)
    assert repr(remembered) == f"RememberedTokens({count} traces)"


def test_a_new_lock_is_free_while_a_different_thread_holds_the_old_one() -> None:
    """After the lock is renewed, as in a forked child, tokens are remembered while the old lock is held."""
    remembered = RememberedTokens()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(remembered._lock.acquire).result()

    assert not remembered._lock.acquire(blocking=False)
    remembered.renew_lock()
    assert remembered._lock.acquire(blocking=False)
    assert remembered.remember(1, OWN_OPAQUE).values == (OWN_OPAQUE,)


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
