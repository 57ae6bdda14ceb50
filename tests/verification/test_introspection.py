"""Opaque tokens and revocable JWTs are introspected (RFC 7662) over real HTTP."""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

from otel_token_relay import use_token
from otel_token_relay.verification import AsyncTokenVerifier, KeysUnavailable, TokenRejected, TokenVerifier
from otel_token_relay.verification.cache import Cache
from tests.support.clocks import ShiftedClock
from tests.support.introspection import active, asked, both_verifier, opaque_verifier
from tests.support.issuers import Issuer, issuing, wait_until
from tests.support.tokens import AUDIENCE, claims, make_token, public_jwk

OPAQUE = "2YotnFZFEjr1zCsicMWpAA"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing(public_jwk("RS256", "k1")) as running:
        running.introspect = lambda token: active()
        yield running


def test_opaque_token_is_introspected(issuer: Issuer) -> None:
    """The claims are read from the introspection response, and the verifier sends form-encoded credentials."""
    with use_token("the-callers-own-token"):
        verified = opaque_verifier(issuer).verify(OPAQUE)

    assert (verified.subject, verified.client_id, verified.scopes) == ("alice", "web", {"profiles:read"})
    assert "token=2YotnFZFEjr1zCsicMWpAA&token_type_hint=access_token" in issuer.seen[0]
    # RFC 6749, section 2.3.1: encode each part as application/x-www-form-urlencoded, and then use Basic authentication.
    assert base64.b64encode(b"profiles:s3%3Acret%20%26").decode() in issuer.seen[0]
    assert "the-callers-own-token" not in issuer.seen[0]


def test_introspection_shows_its_endpoint_and_no_credential(issuer: Issuer) -> None:
    """The `repr` of an introspection contains the endpoint, but not the credential that it sends."""
    introspection = opaque_verifier(issuer)._introspection

    assert repr(introspection) == f"Introspection('{issuer.url}/introspect')"


def test_audience_may_be_left_to_the_server(issuer: Issuer) -> None:
    """Without an audience, the server determines which service can introspect which token."""
    issuer.introspect = lambda token: active(aud=...)

    assert opaque_verifier(issuer, audience=None).verify(OPAQUE).subject == "alice"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>", id="html"),
        pytest.param([], id="a list"),
        pytest.param({}, id="nothing said"),
        pytest.param({"active": "true"}, id="active a text"),
        pytest.param({"active": 1}, id="active a number"),
        pytest.param(b'{"active": false, "active": true}', id="said twice"),
    ],
)
def test_unusable_response_is_unavailable(issuer: Issuer, answer: Any) -> None:
    """If the response is unusable, the token is not accepted and not reported as invalid."""
    issuer.introspect = lambda token: answer

    with pytest.raises(KeysUnavailable):
        opaque_verifier(issuer).verify(OPAQUE)


def hang_up(handler: Any, path: str) -> bool:
    """Close the connection without a response."""
    return True


def answering(status: int) -> Any:
    def behave(handler: Any, path: str) -> bool:
        handler.send_response(status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    return behave


def failing_on(issuer: Issuer, behave: Any, word: str = "attack") -> Any:
    """Behave like this for tokens that contain *word*, and normally for all other tokens."""

    def choose(handler: Any, path: str) -> bool:
        return bool(word in issuer.seen[-1] and behave(handler, path))

    return choose


def settle(verifier: TokenVerifier) -> None:
    """Wait until no lookup or probe is running."""
    introspection = verifier._introspection
    assert introspection is not None
    wait_until(lambda: not introspection._pending and not introspection._breaker._is_probing)


def outcome_of(verifier: TokenVerifier, token: str) -> str | None:
    try:
        return verifier.verify(token).subject
    except (KeysUnavailable, TokenRejected) as error:
        return type(error).__name__


def bring_down(verifier: TokenVerifier) -> None:
    """Look up tokens until the verifier detects that the endpoint is down."""
    for number in range(3):
        assert outcome_of(verifier, f"down{number}") == "KeysUnavailable"
        settle(verifier)


@pytest.mark.parametrize("fault", ["fail", "hang", "hang up", 401, 403, 404, 429, 500, 302])
def test_endpoint_that_is_down_fails_closed_and_gets_no_more_requests(issuer: Issuer, fault: Any) -> None:
    """A few failed lookups and one failed probe open the circuit, and the next tokens are not looked up."""
    issuer.behave = {"hang up": hang_up, "fail": issuer.fail, "hang": issuer.hang}.get(fault) or answering(fault)
    verifier = opaque_verifier(issuer, timeout=0.3)

    for number in range(20):
        assert outcome_of(verifier, f"{OPAQUE}{number}") == "KeysUnavailable"
        settle(verifier)

    assert asked(issuer) == 4


def test_half_open_circuit_allows_one_call_and_no_other_request_waits(issuer: Issuer) -> None:
    """While the endpoint hangs, one thread tries it again, and the other threads get an error immediately."""
    clock = ShiftedClock()
    verifier = opaque_verifier(issuer, timeout=2.0, monotonic=clock.monotonic)
    issuer.behave = issuer.fail
    bring_down(verifier)
    issuer.behave = issuer.hang
    clock.ahead = 1.1
    before = asked(issuer)
    trial = threading.Thread(target=outcome_of, args=(verifier, OPAQUE))
    trial.start()
    wait_until(lambda: asked(issuer) == before + 1)

    started = time.monotonic()
    for number in range(20):
        assert outcome_of(verifier, f"{OPAQUE}{number}") == "KeysUnavailable"
    assert time.monotonic() - started < 1.0
    assert trial.is_alive()
    trial.join(10)
    settle(verifier)
    assert asked(issuer) == before + 2  # the half-open call, and the probe after it


def test_open_circuit_ends_queued_lookups(issuer: Issuer) -> None:
    """Lookups that wait for a worker when the circuit opens are not made."""
    verifier = opaque_verifier(issuer, timeout=1.0)
    issuer.behave = issuer.hang
    threads = [threading.Thread(target=outcome_of, args=(verifier, f"{OPAQUE}{n}")) for n in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    settle(verifier)

    # Eight lookups run at a time, and one probe.
    assert asked(issuer) <= 17


def test_first_response_closes_the_circuit(issuer: Issuer) -> None:
    """The half-open request succeeds, and so do all later requests."""
    clock = ShiftedClock()
    verifier = opaque_verifier(issuer, monotonic=clock.monotonic)
    issuer.behave = issuer.fail
    bring_down(verifier)
    issuer.behave = None
    assert outcome_of(verifier, OPAQUE) == "KeysUnavailable"

    clock.ahead = 1.1
    assert [outcome_of(verifier, f"{OPAQUE}{number}") for number in range(3)] == ["alice"] * 3


def test_circuit_closes_although_the_half_open_call_fails(issuer: Issuer) -> None:
    """An attacker whose tokens fail cannot keep the circuit open."""
    clock = ShiftedClock()
    verifier = opaque_verifier(issuer, monotonic=clock.monotonic)
    issuer.behave = issuer.fail
    bring_down(verifier)
    issuer.behave = failing_on(issuer, hang_up)

    clock.ahead = 1.1
    assert outcome_of(verifier, "attack") == "KeysUnavailable"
    settle(verifier)
    assert outcome_of(verifier, OPAQUE) == "alice"


@pytest.mark.parametrize("fault", [400, 422, 500, "hang up", "garbage"])
def test_token_that_the_endpoint_fails_on_locks_out_no_other_caller(issuer: Issuer, fault: Any) -> None:
    """Other callers are served, regardless of how many failing tokens an attacker sends."""
    clock = ShiftedClock()
    answer = {"hang up": hang_up, "garbage": answering(204)}.get(fault) or answering(fault)
    issuer.behave = failing_on(issuer, answer)
    verifier = opaque_verifier(issuer, monotonic=clock.monotonic)
    assert outcome_of(verifier, "known") == "alice"

    for number in range(12):
        assert outcome_of(verifier, f"attack{number}") == "KeysUnavailable"
        if number % 4 == 3:
            settle(verifier)
            assert outcome_of(verifier, f"user{number}") == "alice"
    clock.ahead = 200.0
    assert outcome_of(verifier, "known") == "alice"


def test_endpoint_that_refuses_unknown_tokens_is_not_out(issuer: Issuer) -> None:
    """An endpoint that responds with 400 to unknown tokens, including the probe's token, is not considered down."""

    def behave(handler: Any, path: str) -> bool:
        if "user" in issuer.seen[-1]:
            return False
        return bool((hang_up if "attack" in issuer.seen[-1] else answering(400))(handler, path))

    issuer.behave = behave
    verifier = opaque_verifier(issuer)
    for number in range(6):
        assert outcome_of(verifier, f"attack{number}") == "KeysUnavailable"
    settle(verifier)

    assert outcome_of(verifier, "user") == "alice"


def test_failure_is_remembered_for_its_own_token_and_for_a_moment(issuer: Issuer) -> None:
    """A failure is cached briefly and only for its own token."""
    clock = ShiftedClock()
    issuer.behave = failing_on(issuer, answering(400))
    verifier = opaque_verifier(issuer, monotonic=clock.monotonic)
    for _ in range(10):
        with pytest.raises(KeysUnavailable) as outage:
            verifier.verify("attack")
    assert asked(issuer) == 1
    assert 0 < outage.value.retry_after <= 5.0

    issuer.behave = None
    clock.ahead = 5.1
    assert outcome_of(verifier, "attack") == "alice"


def test_failures_that_are_remembered_are_bounded(issuer: Issuer) -> None:
    """The number of cached failures is bounded, so an attacker's tokens do not fill the memory."""
    issuer.behave = answering(400)
    verifier = opaque_verifier(issuer)
    assert verifier._introspection is not None
    verifier._introspection._failed = Cache(4)
    for number in range(20):
        outcome_of(verifier, f"attack{number}")

    assert len(verifier._introspection._failed) == 4


def test_failures_do_not_fill_the_log(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    """Tokens that fail cause at most one warning in ten seconds, which does not contain the token."""
    issuer.behave = failing_on(issuer, answering(400))
    verifier = opaque_verifier(issuer)
    for number in range(20):
        outcome_of(verifier, f"attack{number}")

    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["introspection failed: the introspection endpoint responded with status 400"]


def test_tokens_that_make_the_endpoint_hang_do_not_hold_up_good_ones(issuer: Issuer) -> None:
    """Tokens that make the endpoint hang do not delay a known token, because its refresh uses a
    different worker pool.
    """
    clock = ShiftedClock()
    verifier = opaque_verifier(issuer, timeout=8.0, monotonic=clock.monotonic)
    assert outcome_of(verifier, "known") == "alice"
    issuer.behave = failing_on(issuer, issuer.hang)
    introspection = verifier._introspection
    assert introspection is not None
    try:
        for number in range(256):
            introspection.look_up(str(number).encode(), f"attack{number}")

        clock.ahead = 61.0
        assert outcome_of(verifier, "known") == "alice"
    finally:
        issuer.released.set()
        clock.ahead = 100.0
        wait_until(lambda: not introspection._pending, 30.0)


def test_token_that_the_server_takes_offence_at_does_not_keep_others_out(issuer: Issuer) -> None:
    """One request per second with a token that the server rejects with 400 does not block the other callers."""

    def take_offence(handler: Any, path: str) -> bool:
        if b"offensive" not in issuer.seen[-1].encode():
            return False
        handler.send_response(400)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    issuer.behave = take_offence
    verifier = opaque_verifier(issuer)
    for _ in range(3):
        with pytest.raises(KeysUnavailable):
            verifier.verify("offensive")
        assert verifier.verify(f"{OPAQUE}-{asked(issuer)}").subject == "alice"


def test_answer_is_used_again_for_a_minute_at_most(issuer: Issuer) -> None:
    """A response is reused for at most a minute, regardless of the token's lifetime."""
    clock = ShiftedClock()
    verifier = opaque_verifier(issuer, monotonic=clock.monotonic, cache_seconds=10_000.0)
    for _ in range(10):
        verifier.verify(OPAQUE)
    assert asked(issuer) == 1

    issuer.introspect = lambda token: {"active": False}
    clock.ahead = 61.0
    with pytest.raises(TokenRejected, match="inactive"):
        verifier.verify(OPAQUE)


def test_no_is_remembered_for_a_moment_only(issuer: Issuer) -> None:
    """An inactive result is cached only briefly, because a server node might not know a new token yet."""
    clock = ShiftedClock()
    issuer.introspect = lambda token: {"active": False}
    verifier = opaque_verifier(issuer, monotonic=clock.monotonic)
    for _ in range(10):
        with pytest.raises(TokenRejected, match="inactive"):
            verifier.verify(OPAQUE)
    assert asked(issuer) == 1

    issuer.introspect = lambda token: active()
    clock.ahead = 5.5
    assert verifier.verify(OPAQUE).subject == "alice"


def test_invented_tokens_do_not_evict_active_ones(issuer: Issuer) -> None:
    """Invented tokens do not evict active ones, because inactive results are cached separately."""
    issuer.introspect = lambda token: active() if token == OPAQUE else {"active": False}
    verifier = opaque_verifier(issuer)
    assert verifier._introspection is not None
    verifier._introspection._active, verifier._introspection._inactive = Cache(4), Cache(4)
    verifier.verify(OPAQUE)
    for number in range(20):
        with pytest.raises(TokenRejected):
            verifier.verify(f"invented{number}")
    before = asked(issuer)

    verifier.verify(OPAQUE)

    assert asked(issuer) == before


def test_introspection_works_without_a_cache_of_verifications(issuer: Issuer) -> None:
    """``cache_size=0`` applies only to verifications, and introspection responses are still reused."""
    verified = opaque_verifier(issuer, cache_size=0).verify(OPAQUE)

    assert verified.is_still_valid()
    assert asked(issuer) == 1


@pytest.mark.parametrize("backend", [None, "asyncio", "trio"], ids=["threads", "asyncio", "trio"])
def test_many_requests_with_one_token_share_one_lookup(issuer: Issuer, backend: str | None) -> None:
    """Many requests with one token share one lookup in a single flight, in threads and in tasks."""
    release = threading.Event()

    def slowly(handler: Any, path: str) -> bool:
        release.wait(10)
        return False

    issuer.behave = slowly
    results: list[str | None] = []
    if backend is None:
        verifier = opaque_verifier(issuer)
        threads = [threading.Thread(target=lambda: results.append(verifier.verify(OPAQUE).subject)) for _ in range(10)]
        for thread in threads:
            thread.start()
        wait_until(lambda: asked(issuer) == 1)
        release.set()
        for thread in threads:
            thread.join(10)
    else:

        async def main() -> None:
            verifier = AsyncTokenVerifier(
                introspection_endpoint=f"{issuer.url}/introspect", audience=AUDIENCE, client_id="a", client_secret="b"
            )

            async def request() -> None:
                results.append((await verifier.verify(OPAQUE)).subject)

            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(request)
                while not issuer.hits:
                    await anyio.sleep(0.01)
                release.set()

        anyio.run(main, backend=backend)

    assert results == ["alice"] * 10
    assert asked(issuer) == 1


def test_without_introspection_an_opaque_token_is_malformed(issuer: Issuer) -> None:
    """Without introspection, an opaque token is rejected as malformed."""
    with pytest.raises(TokenRejected, match="malformed"):
        TokenVerifier([issuer.url], AUDIENCE).verify(OPAQUE)


def test_result_that_expires_soon_is_refreshed_in_the_background(issuer: Issuer) -> None:
    """A result past half its lifetime is refreshed in the background, and after its lifetime nothing is relayed."""
    clock = ShiftedClock()
    verified = opaque_verifier(issuer, monotonic=clock.monotonic).verify(OPAQUE)
    assert verified.is_still_valid()
    assert asked(issuer) == 1

    clock.ahead = 31.0
    assert verified.is_still_valid()
    wait_until(lambda: asked(issuer) == 2)

    clock.ahead = 200.0
    assert not verified.is_still_valid()
    wait_until(verified.is_still_valid)

    issuer.introspect = lambda token: {"active": False}
    clock.ahead = 240.0
    verified.is_still_valid()
    wait_until(lambda: not verified.is_still_valid())


def test_refreshed_result_counts_at_once(issuer: Issuer) -> None:
    """A cached token is rejected as soon as a refreshed result is inactive, not a minute later."""
    clock = ShiftedClock()
    verifier = opaque_verifier(issuer, monotonic=clock.monotonic, cache_seconds=10_000.0)
    verifier.verify(OPAQUE)
    issuer.introspect = lambda token: {"active": False}

    clock.ahead = 31.0
    verifier.verify(OPAQUE)
    wait_until(lambda: asked(issuer) == 2 and not verifier._introspection._pending)  # type: ignore[union-attr]

    with pytest.raises(TokenRejected, match="inactive"):
        verifier.verify(OPAQUE)


def test_flood_of_invented_tokens_is_bounded(issuer: Issuer) -> None:
    """Beyond the maximum number of pending lookups, the next caller is asked to retry."""
    release = threading.Event()

    def slowly(handler: Any, path: str) -> bool:
        release.wait(10)
        return False

    issuer.behave = slowly
    verifier = opaque_verifier(issuer, timeout=8.0)
    introspection = verifier._introspection
    assert introspection is not None
    try:
        for number in range(256):
            introspection.look_up(str(number).encode(), f"invented{number}")
        with pytest.raises(KeysUnavailable):
            introspection.look_up(b"one more", OPAQUE)
    finally:
        release.set()
        wait_until(lambda: not introspection._pending, 30.0)


def remember(verifier: TokenVerifier, tokens: list[str]) -> None:
    """Make the server report all *tokens* as active."""
    for token in tokens:
        assert outcome_of(verifier, token) == "alice"


def asked_about(issuer: Issuer, word: str) -> int:
    return sum(f"token={word}" in seen for seen in issuer.seen)


@pytest.fixture
def stalled(issuer: Issuer) -> Iterator[tuple[TokenVerifier, ShiftedClock]]:
    """Create more results to refresh than are allowed at a time, with a slow endpoint for all of them."""

    def slowly(handler: Any, path: str) -> bool:
        issuer.released.wait(20)
        return False

    clock = ShiftedClock()
    verifier = opaque_verifier(issuer, timeout=8.0, monotonic=clock.monotonic)
    remember(verifier, ["returning"])
    clock.ahead = 35.0
    users = [f"user{number}" for number in range(300)]
    remember(verifier, users)
    clock.ahead = 66.0  # the users' results are being refreshed, and the returning user's result has expired
    issuer.behave = failing_on(issuer, slowly, "token=user")
    remember(verifier, users)
    yield verifier, clock
    issuer.released.set()
    settle(verifier)


def test_stalled_refreshes_reject_no_new_user(stalled: tuple[TokenVerifier, ShiftedClock]) -> None:
    """Refreshes do not use the workers for unknown tokens, so they reject no new user."""
    verifier, _ = stalled

    assert outcome_of(verifier, "newcomer") == "alice"


def test_stalled_refreshes_do_not_delay_a_returning_user(stalled: tuple[TokenVerifier, ShiftedClock]) -> None:
    """A lookup for an expired result uses any idle worker, so stalled refreshes do not delay a returning user."""
    verifier, _ = stalled

    assert outcome_of(verifier, "returning") == "alice"


def test_pending_refreshes_are_limited(stalled: tuple[TokenVerifier, ShiftedClock]) -> None:
    """Pending refreshes are limited, so a later lookup is served in time."""
    verifier, _ = stalled

    assert verifier._introspection is not None
    assert len(verifier._introspection._pending) == 32


def test_refresh_beyond_the_limit_is_postponed(issuer: Issuer, stalled: tuple[TokenVerifier, ShiftedClock]) -> None:
    """A refresh beyond the limit is not tried with each request, but later, while the result is still valid."""
    verifier, clock = stalled
    issuer.released.set()
    settle(verifier)
    before = asked_about(issuer, "user299&")
    remember(verifier, ["user299"])
    settle(verifier)
    assert asked_about(issuer, "user299&") == before

    clock.ahead += 1.1
    remember(verifier, ["user299"])
    wait_until(lambda: asked_about(issuer, "user299&") == before + 1)


def test_refresh_that_was_queued_too_long_is_postponed(
    issuer: Issuer, stalled: tuple[TokenVerifier, ShiftedClock]
) -> None:
    """A refresh that was queued too long is not repeated with each request, and the result remains valid."""
    verifier, clock = stalled
    clock.ahead += 9.0
    issuer.released.set()
    settle(verifier)
    before = asked_about(issuer, "user31&")
    remember(verifier, ["user31"])
    settle(verifier)
    assert asked_about(issuer, "user31&") == before

    clock.ahead += 1.1
    remember(verifier, ["user31"])
    wait_until(lambda: asked_about(issuer, "user31&") == before + 1)


@contextmanager
def no_more_threads() -> Iterator[None]:
    """Prevent new workers from starting, as in a process at its thread limit."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("token-relay"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield


def test_half_open_call_without_a_thread_lets_another_one_follow(issuer: Issuer) -> None:
    """If the half-open call cannot start, another call can replace it."""
    clock = ShiftedClock()
    verifier = opaque_verifier(issuer, monotonic=clock.monotonic)
    assert verifier._introspection is not None
    verifier._introspection._breaker.end_probe(succeeded=False)
    clock.ahead = 1.1
    with no_more_threads():
        assert outcome_of(verifier, OPAQUE) == "KeysUnavailable"

    assert outcome_of(verifier, "another") == "alice"


def test_threads_that_cannot_be_started_do_not_open_the_circuit(issuer: Issuer) -> None:
    """Threads that cannot be started do not open the circuit, because the endpoint got no request."""
    verifier = opaque_verifier(issuer)
    with no_more_threads():
        for number in range(300):
            assert outcome_of(verifier, f"early{number}") == "KeysUnavailable"

    assert outcome_of(verifier, OPAQUE) == "alice"


def test_lookup_without_a_thread_is_not_made_later(issuer: Issuer) -> None:
    """A lookup that gets no thread is not made later, and its token is not kept in the queue."""
    verifier = opaque_verifier(issuer)
    with no_more_threads():
        for number in range(5):
            assert outcome_of(verifier, f"early{number}") == "KeysUnavailable"

    assert outcome_of(verifier, OPAQUE) == "alice"
    settle(verifier)
    assert asked(issuer) == 1


def test_workers_skip_a_canceled_lookup(issuer: Issuer) -> None:
    """The workers skip canceled calls in their queue, and the load remains correct."""
    release = threading.Event()

    def slowly(handler: Any, path: str) -> bool:
        release.wait(10)
        return False

    issuer.behave = slowly
    verifier = opaque_verifier(issuer, timeout=8.0)
    introspection = verifier._introspection
    assert introspection is not None
    wait = introspection.look_up(b"first", "first")
    wait_until(lambda: asked(issuer) == 1)
    with no_more_threads():
        assert outcome_of(verifier, "early") == "KeysUnavailable"
    release.set()

    assert wait.future.result(10) is not None
    assert outcome_of(verifier, OPAQUE) == "alice"
    settle(verifier)
    assert asked(issuer) == 2
    assert introspection._lookups.load == 0


@pytest.mark.parametrize("cache_seconds", [60.0, 10_000.0], ids=["remembered for a minute", "remembered for hours"])
def test_refreshed_response_replaces_the_old_one(issuer: Issuer, cache_seconds: float) -> None:
    """A withdrawn scope is removed with the next response, not when the cached verification expires."""
    clock = ShiftedClock()
    verifier = opaque_verifier(issuer, monotonic=clock.monotonic, cache_seconds=cache_seconds)
    issuer.introspect = lambda token: active(scope="profiles:read admin")
    assert "admin" in verifier.verify(OPAQUE).scopes
    issuer.introspect = lambda token: active(scope="profiles:read")

    clock.ahead = 31.0
    verifier.verify(OPAQUE)
    wait_until(lambda: asked(issuer) == 2)
    settle(verifier)
    assert verifier.verify(OPAQUE).scopes == {"profiles:read"}
    assert asked(issuer) == 2


@pytest.mark.parametrize(
    ("is_jwt", "changes"),
    [
        pytest.param(False, {"aud": "billing-service"}, id="opaque, for another service"),
        pytest.param(False, {"exp": 1}, id="opaque, expired"),
        pytest.param(False, {"token_type": "DPoP"}, id="opaque, DPoP"),
        pytest.param(True, {"exp": 1}, id="JWT, expired"),
        pytest.param(True, {"token_type": "DPoP"}, id="JWT, DPoP"),
    ],
)
def test_refreshed_response_is_checked_against_the_rules(issuer: Issuer, is_jwt: bool, changes: dict[str, Any]) -> None:
    """An active token is rejected if its refreshed response violates the rules."""
    clock = ShiftedClock()
    verifier = both_verifier(issuer, monotonic=clock.monotonic, cache_seconds=10_000.0)
    token = make_token(claims(issuer.url)) if is_jwt else OPAQUE
    verifier.verify(token)
    issuer.introspect = lambda token: active(**changes)

    clock.ahead = 31.0
    verifier.verify(token)
    wait_until(lambda: asked(issuer) == 2)
    settle(verifier)
    with pytest.raises(TokenRejected):
        verifier.verify(token)


@pytest.mark.parametrize(
    ("seconds", "outcome"), [(59.0, "alice"), (60.0, "KeysUnavailable"), (61.0, "KeysUnavailable")]
)
def test_response_that_cannot_be_refreshed_is_used_for_a_minute(issuer: Issuer, seconds: float, outcome: str) -> None:
    """A response that cannot be refreshed is used for a minute, even if verifications are cached for longer."""
    now = 1000.0
    verifier = opaque_verifier(issuer, monotonic=lambda: now, cache_seconds=10_000.0)
    verifier.verify(OPAQUE)
    issuer.behave = issuer.fail

    now += seconds
    assert outcome_of(verifier, OPAQUE) == outcome
    settle(verifier)


def test_logging_that_raises_does_not_stop_lookups(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A logging filter that raises an error does not stop the workers or the probe."""

    def refuse(record: logging.LogRecord) -> bool:
        raise RuntimeError("a broken filter")

    clock = ShiftedClock()
    verifier = opaque_verifier(issuer, monotonic=clock.monotonic)
    issuer.behave = issuer.fail
    for number in range(12):
        if number == 6:  # while the circuit is open
            monkeypatch.setattr(logging.getLogger("otel_token_relay"), "filters", [refuse])
        with pytest.raises(KeysUnavailable):
            verifier.verify(f"{OPAQUE}-{number}")
        clock.ahead += 20
        time.sleep(0.05)  # for the probe
    issuer.behave = None

    def is_let_in() -> bool:
        clock.ahead += 2
        try:
            return verifier.verify(f"{OPAQUE}-well").subject == "alice"
        except KeysUnavailable:  # the probe is running
            return False

    wait_until(is_let_in)
