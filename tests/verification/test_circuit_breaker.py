"""The circuit breaker of the introspection endpoint changes its state safely, even during an attack."""

from __future__ import annotations

import threading

import pytest

from otel_token_relay.verification.circuit_breaker import FAILURES_BEFORE_PROBE, OPEN_SECONDS, CircuitBreaker
from tests.support.clocks import StoppedClock


@pytest.fixture
def clock() -> StoppedClock:
    return StoppedClock()


@pytest.fixture
def breaker(clock: StoppedClock) -> CircuitBreaker:
    return CircuitBreaker(clock)


def open_circuit(breaker: CircuitBreaker) -> None:
    """Let calls fail until a probe is due, and let the probe fail."""
    while not breaker.record_failure(b"call"):
        assert breaker.allows(b"call")
    breaker.end_probe(succeeded=False)


def test_failures_alone_do_not_open_the_circuit(breaker: CircuitBreaker) -> None:
    """Several consecutive failures make one probe due, regardless of how many calls fail while the probe runs."""
    due = [breaker.record_failure(b"attack") for _ in range(FAILURES_BEFORE_PROBE + 5)]

    assert due == [False] * (FAILURES_BEFORE_PROBE - 1) + [True] + [False] * 5
    assert breaker.allows(b"user")
    assert breaker.still_allows(b"user")


def test_a_success_starts_the_count_again(breaker: CircuitBreaker) -> None:
    """A success resets the count, so only consecutive failures make a probe due."""
    for _ in range(10):
        for _ in range(FAILURES_BEFORE_PROBE - 1):
            assert not breaker.record_failure(b"attack")
        breaker.record_success()


def test_a_probe_that_succeeds_leaves_the_circuit_closed(breaker: CircuitBreaker) -> None:
    """If the probe succeeds, the endpoint fails only for some tokens, so the circuit stays closed and the count
    restarts.
    """
    for _ in range(3):
        due = [breaker.record_failure(b"attack") for _ in range(FAILURES_BEFORE_PROBE)]
        breaker.end_probe(succeeded=True)

        assert due[-1] is True
        assert breaker.allows(b"user")


@pytest.mark.parametrize(
    ("seconds", "is_allowed"), [(0.0, False), (OPEN_SECONDS - 0.25, False), (OPEN_SECONDS, True), (1e6, True)]
)
def test_an_open_circuit_allows_no_call_for_its_time(
    breaker: CircuitBreaker, clock: StoppedClock, seconds: float, is_allowed: bool
) -> None:
    """An open circuit allows no call for its duration, and then becomes half-open and allows one call."""
    open_circuit(breaker)

    clock.seconds += seconds
    assert breaker.allows(b"user") is is_allowed
    assert not breaker.allows(b"another")


def test_calls_that_wait_for_a_worker_end_when_the_circuit_opens(breaker: CircuitBreaker, clock: StoppedClock) -> None:
    """When the circuit opens, calls that are waiting for a worker end, and later only the half-open call is made."""
    assert breaker.allows(b"waiting")
    open_circuit(breaker)
    assert not breaker.still_allows(b"waiting")

    clock.seconds += OPEN_SECONDS
    assert breaker.allows(b"half-open")
    assert breaker.still_allows(b"half-open")
    assert not breaker.still_allows(b"waiting")


def test_a_response_to_the_half_open_call_closes_the_circuit(breaker: CircuitBreaker, clock: StoppedClock) -> None:
    """A response to the half-open call closes the circuit, which then allows all calls."""
    open_circuit(breaker)
    clock.seconds += OPEN_SECONDS
    assert breaker.allows(b"half-open")

    breaker.record_success()
    assert all(breaker.allows(bytes([number])) for number in range(3))


def test_a_half_open_call_that_fails_is_followed_by_a_probe(breaker: CircuitBreaker, clock: StoppedClock) -> None:
    """A failed half-open call is followed by a probe, so an attacker's token cannot keep the circuit open."""
    open_circuit(breaker)
    clock.seconds += OPEN_SECONDS
    assert breaker.allows(b"attack")

    assert not breaker.record_failure(b"a call from before")
    assert breaker.record_failure(b"attack")
    assert not breaker.allows(b"user")
    breaker.end_probe(succeeded=True)
    assert breaker.allows(b"user")


def test_a_probe_that_fails_opens_the_circuit_again(breaker: CircuitBreaker, clock: StoppedClock) -> None:
    """A failed probe opens the circuit again for a period that starts when the probe ends."""
    open_circuit(breaker)
    clock.seconds += OPEN_SECONDS
    assert breaker.allows(b"user")
    assert breaker.record_failure(b"user")
    clock.seconds += 5.0
    breaker.end_probe(succeeded=False)

    assert not breaker.allows(b"user")
    clock.seconds += OPEN_SECONDS
    assert breaker.allows(b"user")


def test_a_half_open_call_that_was_not_made_is_replaced(breaker: CircuitBreaker, clock: StoppedClock) -> None:
    """After a half-open call is canceled, a different call is allowed, and no other call can cancel it."""
    open_circuit(breaker)
    clock.seconds += OPEN_SECONDS
    assert breaker.allows(b"half-open")

    breaker.cancel(b"another")
    assert not breaker.allows(b"another")
    breaker.cancel(b"half-open")
    assert breaker.allows(b"another")


@pytest.mark.parametrize("is_probing", [False, True], ids=["half-open call", "probe"])
def test_a_forked_child_does_not_wait_for_calls_of_its_parent(
    breaker: CircuitBreaker, clock: StoppedClock, is_probing: bool
) -> None:
    """In a forked child, the circuit stays open, but the parent's running call or probe is forgotten."""
    open_circuit(breaker)
    clock.seconds += OPEN_SECONDS
    assert breaker.allows(b"of the parent")
    if is_probing:
        assert breaker.record_failure(b"of the parent")
    assert not breaker.allows(b"of the child")

    breaker.start_over()
    assert breaker.allows(b"of the child")
    assert not breaker.allows(b"another")


def test_one_of_many_threads_makes_the_half_open_call(breaker: CircuitBreaker, clock: StoppedClock) -> None:
    """Of many concurrent threads, only one calls an endpoint that has just recovered."""
    open_circuit(breaker)
    clock.seconds += OPEN_SECONDS
    start = threading.Barrier(8)
    allowed: list[bool] = []

    def call(number: int) -> None:
        start.wait(10)
        allowed.append(breaker.allows(bytes([number])))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert sorted(allowed) == [False] * 7 + [True]
