"""Requests to one token endpoint: equal ones share one, their number is limited, and failures are remembered."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from otel_token_relay.client_credentials import ClientCredential, Secret
from otel_token_relay.errors import ConfigurationError, ExchangeFailed
from otel_token_relay.exchange import engine as module
from otel_token_relay.exchange.engine import MAX_NEW, ExchangeEngine, Job
from otel_token_relay.exchange.grants import Request
from otel_token_relay.exchange.token_endpoint import TokenEndpoint
from otel_token_relay.token import BearerToken
from otel_token_relay.verification.circuit_breaker import FAILURES_BEFORE_PROBE, OPEN_SECONDS
from otel_token_relay.verification.drivers import drive
from otel_token_relay.verification.http_client import HttpClient
from tests.support.clocks import ShiftedClock
from tests.support.issuers import wait_until
from tests.support.token_endpoint import SECRET, Endpoint, Response, serving, unsigned_jwt, verified

BILLING = Request(audience="billing")
OWN = BILLING.of_client()
ALICE, BOB = BearerToken("alice-1"), BearerToken("bob-1")


def engine_at(url: str, clock: ShiftedClock, **options: Any) -> ExchangeEngine:
    """Return an engine of the service for one endpoint."""
    http = HttpClient()
    credential = ClientCredential(client_id="user-service", secret=Secret(SECRET))
    endpoint = TokenEndpoint(url, None, http=http, monotonic=clock.monotonic)
    options = {"timeout": 20.0, "now": clock.now, "monotonic": clock.monotonic} | options
    return ExchangeEngine(endpoint, options.pop("credential", credential), http=http, **options)


@pytest.fixture
def engine(endpoint: Endpoint, clock: ShiftedClock) -> ExchangeEngine:
    return engine_at(endpoint.url, clock)


def job_for(engine: ExchangeEngine, subject: BearerToken | None, actor: BearerToken | None = None) -> Job:
    request = OWN if subject is None else BILLING
    return engine.job(request, engine.hash_of(request), subject, actor)


def obtain(engine: ExchangeEngine, subject: BearerToken | None, actor: BearerToken | None = None) -> tuple[str, str]:
    """Return the issued token, and how it was obtained."""
    found, result = drive(engine.steps(job_for(engine, subject, actor)))
    return found.value, result


def failure_of(engine: ExchangeEngine, subject: BearerToken | None) -> tuple[str, str]:
    """Return the error and its detail. The exception itself is not kept, because its frames contain tokens."""
    with pytest.raises(ExchangeFailed) as failed:
        obtain(engine, subject)
    return failed.value.error, failed.value.detail


def subjects(endpoint: Endpoint) -> list[str | None]:
    return [form.get("subject_token") for form in endpoint.forms]


# Requests that are shared


def test_a_result_is_found_by_its_token_and_its_request(engine: ExchangeEngine, endpoint: Endpoint) -> None:
    """Another caller, another destination, and another actor have results of their own."""
    assert obtain(engine, ALICE) == ("alice-1.for.billing", "miss")
    assert obtain(engine, ALICE) == ("alice-1.for.billing", "hit")

    hashed = engine.hash_of(BILLING)
    found = engine.find(hashed, BearerToken("alice-1"))
    assert found is not None
    assert found.value == "alice-1.for.billing"
    assert engine.find(hashed, BOB) is engine.find(hashed, None) is engine.find(hashed, ALICE, BOB) is None
    assert engine.find(engine.hash_of(Request(audience="orders")), ALICE) is None
    assert subjects(endpoint) == ["alice-1"]


def test_callers_that_need_the_same_token_share_a_request(engine: ExchangeEngine, endpoint: Endpoint) -> None:
    """Each of them is told how it got the token."""
    release = threading.Event()
    endpoint.respond = lambda form: (release.wait(20), endpoint.issue(form))[1]
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(obtain, engine, ALICE)
        wait_until(lambda: bool(endpoint.forms))
        others = [pool.submit(obtain, engine, ALICE) for _ in range(7)]
        time.sleep(0.05)
        release.set()

        assert first.result(20) == ("alice-1.for.billing", "miss")
        assert {other.result(20)[0] for other in others} == {"alice-1.for.billing"}
    assert subjects(endpoint) == ["alice-1"]


@pytest.mark.parametrize("status", [200, 400])
def test_an_exchange_that_ends_at_the_last_moment_is_not_repeated(endpoint: Endpoint, status: int) -> None:
    """Another caller's exchange ends after this caller has looked into the cache, and before it starts its own."""
    if status == 400:
        endpoint.respond = lambda form: (400, {"error": "invalid_grant"})
    exchanger, token = endpoint.exchanger(), verified("alice-1")

    def exchange() -> object:
        try:
            return exchanger.exchange(token, audience="billing")
        except ExchangeFailed as failed:
            return failed.error

    cache = exchanger._engine._cache
    look = cache.failure
    others = []

    def look_too_early(key: bytes) -> ExchangeFailed | None:
        found: ExchangeFailed | None = look(key)
        cache.failure = look
        others.append(exchange())
        return found

    cache.failure = look_too_early
    assert [exchange()] == others
    assert len(endpoint.forms) == 1


def test_made_up_tokens_use_few_workers_and_evict_nothing(endpoint: Endpoint) -> None:
    """A token with an earlier success does not wait behind them."""
    release = threading.Event()

    def respond(form: dict[str, str]) -> Response:
        if form["subject_token"].startswith("made-up"):
            release.wait(20)
            return 400, {"error": "invalid_grant"}
        return endpoint.issue(form)

    endpoint.respond = respond
    exchanger = endpoint.exchanger(timeout=20.0)
    good = verified("alice-1")
    exchanger.exchange(good, audience="billing")
    with ThreadPoolExecutor(40) as pool:
        made_up = [pool.submit(exchanger.exchange, verified(f"made-up-{n}"), audience="billing") for n in range(40)]
        while endpoint.running < MAX_NEW:
            time.sleep(0.01)
        assert exchanger.exchange(good, audience="billing").reveal() == "alice-1.for.billing"
        release.set()
        errors = [getattr(future.exception(), "error", None) for future in made_up]

    assert errors == ["invalid_grant"] * 40
    assert endpoint.most <= MAX_NEW
    assert exchanger.exchange(good, audience="billing").reveal() == "alice-1.for.billing"


def test_a_server_that_does_not_respond_is_a_timeout(endpoint: Endpoint) -> None:
    """The caller waits for at most *timeout*, and so does every caller who joins."""
    release = threading.Event()
    endpoint.respond = lambda form: (release.wait(10), endpoint.issue(form))[1]
    exchanger = endpoint.exchanger(timeout=0.3)

    begun = time.monotonic()
    with pytest.raises(ExchangeFailed) as failed:
        exchanger.exchange(verified("alice-1"), audience="billing")
    release.set()

    assert failed.value.error in ("timeout", "unavailable")
    assert time.monotonic() - begun < 5


def test_an_endpoint_without_a_server_is_unavailable() -> None:
    """The connection is refused."""
    with serving() as endpoint:
        exchanger = endpoint.exchanger()

    with pytest.raises(ExchangeFailed) as failed:
        exchanger.exchange(verified("alice-1"), audience="billing")
    assert failed.value.error == "unavailable"


# Failures


def test_a_refused_token_is_not_sent_again_for_a_moment(
    engine: ExchangeEngine, endpoint: Endpoint, clock: ShiftedClock
) -> None:
    """Each caller gets an exception of its own. Another token is sent."""
    endpoint.respond = lambda form: (400, {"error": "invalid_grant"})
    raised = []
    for _ in range(3):
        with pytest.raises(ExchangeFailed) as failed:
            obtain(engine, ALICE)
        raised.append(failed.value)
    kept = engine.failure(job_for(engine, ALICE))

    assert kept is not None
    assert {error.error for error in (*raised, kept)} == {"invalid_grant"}
    assert len({id(error) for error in (*raised, kept)}) == 4
    assert engine.failure(job_for(engine, BOB)) is None
    assert failure_of(engine, BOB)[0] == "invalid_grant"
    assert subjects(endpoint) == ["alice-1", "bob-1"]

    clock.ahead += 5.1
    endpoint.respond = endpoint.issue
    assert engine.failure(job_for(engine, ALICE)) is None
    assert obtain(engine, ALICE) == ("alice-1.for.billing", "miss")


def test_an_outage_opens_the_circuit_after_a_probe(
    engine: ExchangeEngine, endpoint: Endpoint, clock: ShiftedClock
) -> None:
    """The probe is the exchange of a random token. While the circuit is open, nothing is sent."""
    endpoint.respond = lambda form: (503, {})
    for number in range(FAILURES_BEFORE_PROBE):
        assert failure_of(engine, BearerToken(f"user-{number}")) == ("unavailable", "status 503")
    wait_until(lambda: engine._breaker._is_open)
    assert len(endpoint.forms) == FAILURES_BEFORE_PROBE + 1

    detail = "the token endpoint recently failed to respond"
    assert failure_of(engine, ALICE) == ("unavailable", detail)
    assert len(endpoint.forms) == FAILURES_BEFORE_PROBE + 1
    endpoint.respond = endpoint.issue
    clock.ahead += OPEN_SECONDS + 0.1
    assert obtain(engine, ALICE)[0] == "alice-1.for.billing"
    assert obtain(engine, BOB)[0] == "bob-1.for.billing"


def test_a_probe_that_is_refused_keeps_the_circuit_closed(engine: ExchangeEngine, endpoint: Endpoint) -> None:
    """The server fails on some tokens only, and must refuse a random one."""
    probed = threading.Event()

    def respond(form: dict[str, str]) -> Response:
        if form["subject_token"].startswith("user-"):
            return 503, {}
        if form["subject_token"] == "alice-1":
            return endpoint.issue(form)
        probed.set()
        return 400, {"error": "invalid_grant"}

    endpoint.respond = respond
    for number in range(FAILURES_BEFORE_PROBE):
        failure_of(engine, BearerToken(f"user-{number}"))
    assert probed.wait(20)
    wait_until(lambda: not engine._breaker._is_probing)

    assert obtain(engine, ALICE) == ("alice-1.for.billing", "miss")


def test_requests_that_waited_too_long_are_not_sent(
    engine: ExchangeEngine, endpoint: Endpoint, clock: ShiftedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most a number of them may wait, and a token with an earlier success does not wait behind them."""
    monkeypatch.setattr(module, "_MAX_PENDING", MAX_NEW + 2)
    assert obtain(engine, ALICE)[1] == "miss"
    release = threading.Event()
    endpoint.respond = lambda form: (
        endpoint.issue(form) if form["subject_token"] == "alice-1" else (release.wait(20), endpoint.issue(form))[1]
    )
    for number in range(MAX_NEW):
        engine.renew(job_for(engine, BearerToken(f"user-{number}")))
    wait_until(lambda: endpoint.running == MAX_NEW)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(failure_of, engine, BearerToken(f"late-{number}")) for number in range(2)]
        wait_until(lambda: engine._new.load == MAX_NEW + 2)
        assert failure_of(engine, BOB) == ("unavailable", "too many token exchanges are waiting")
        clock.ahead += 400.0
        assert obtain(engine, ALICE)[1] == "miss"
        release.set()
        late = [one.result(20) for one in waiting]

    assert late == [("timeout", "the exchange did not start in time")] * 2
    assert Counter(str(subject)[:4] for subject in subjects(endpoint)) == {"alic": 2, "user": MAX_NEW}


def test_a_process_without_threads_recovers(
    engine: ExchangeEngine, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system refuses to start a thread. The request that could not be started is not made later."""

    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", fail)
        for subject in (ALICE, None):
            assert failure_of(engine, subject) == ("unavailable", "no thread can be started")

    assert obtain(engine, BOB)[1] == "miss"
    assert subjects(endpoint) == ["bob-1"]


def test_an_error_that_is_not_expected_is_logged_by_its_type(
    engine: ExchangeEngine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message could contain a token."""

    def fail(*arguments: object) -> None:
        raise ArithmeticError("alice-1")

    monkeypatch.setattr(module, "read_response", fail)

    assert failure_of(engine, ALICE) == ("unavailable", "")
    assert "a token exchange raised ArithmeticError" in caplog.text
    assert "alice-1" not in caplog.text


def test_a_token_that_has_already_expired_is_not_used(engine: ExchangeEngine, endpoint: Endpoint) -> None:
    """The lifetime is that of the response or that of the token."""
    expired = ("bad_response", "the issued token has already expired")
    endpoint.respond = lambda form: (200, endpoint.issue(form)[1] | {"expires_in": 0})
    assert failure_of(engine, ALICE) == expired
    token = unsigned_jwt(aud="billing", exp=int(time.time()) - 1)
    endpoint.respond = lambda form: (200, endpoint.issue(form)[1] | {"access_token": token})
    assert failure_of(engine, BOB) == expired


def test_a_credential_that_cannot_be_read_is_named(endpoint: Endpoint, clock: ShiftedClock) -> None:
    """Nothing is sent without it."""
    credential = ClientCredential(client_id="user-service", secret_file="/nonexistent/secret")
    engine = engine_at(endpoint.url, clock, credential=credential)

    assert failure_of(engine, ALICE) == ("invalid_client", "the file in client_secret_file cannot be read")
    assert endpoint.forms == []


@pytest.mark.parametrize("timeout", [0, 0.0, -1.0, float("nan"), float("inf")])
def test_a_timeout_is_a_positive_number(clock: ShiftedClock, timeout: float) -> None:
    """Without one, a caller would wait forever, or not at all."""
    with pytest.raises(ConfigurationError) as refused:
        engine_at("https://idp.example/token", clock, timeout=timeout)

    assert refused.value.setting == "timeout"


# The log


def test_failures_are_warned_of_once_in_ten_seconds(
    engine: ExchangeEngine, endpoint: Endpoint, clock: ShiftedClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Callers could otherwise fill the log with made-up tokens."""
    caplog.set_level(logging.DEBUG, "otel_token_relay")
    endpoint.respond = lambda form: (400, {"error": "invalid_grant"})
    for number, seconds in enumerate((0.0, 9.0, 1.1)):
        clock.ahead += seconds
        failure_of(engine, BearerToken(f"made-up-{number}"))

    assert [record.levelname for record in caplog.records] == ["WARNING", "DEBUG", "WARNING"]
    assert caplog.records[0].getMessage().startswith(f"{engine.endpoint}: ")
    assert "made-up" not in caplog.text


def test_a_token_without_the_actor_is_warned_of_once_in_ten_minutes(
    engine: ExchangeEngine, endpoint: Endpoint, clock: ShiftedClock, caplog: pytest.LogCaptureFixture
) -> None:
    """An opaque token is not examined, and a token with an actor is as requested."""
    actor = BearerToken("token-of-the-service")
    claims: dict[str, object] = {"aud": "billing"}

    def respond(form: dict[str, str]) -> Response:
        document = endpoint.issue(form)[1]
        if form["subject_token"] != "opaque":
            document["access_token"] = unsigned_jwt(sub=form["subject_token"], **claims)
        return 200, document

    endpoint.respond = respond
    obtain(engine, BearerToken("opaque"), actor)
    claims["act"] = {"sub": "user-service"}
    obtain(engine, BearerToken("user-1"), actor)
    assert caplog.text == ""

    del claims["act"]
    for number, seconds in enumerate((0.0, 599.0, 1.1)):
        clock.ahead += seconds
        obtain(engine, BearerToken(f"user-{number + 2}"), actor)
    assert [record.getMessage() for record in caplog.records] == [
        f"{engine.endpoint}: the server accepted an actor token, but the issued token does not identify an actor (act)"
    ] * 2
    assert {form["actor_token"] for form in endpoint.forms} == {"token-of-the-service"}


def test_no_text_contains_a_token_or_a_key(engine: ExchangeEngine, endpoint: Endpoint) -> None:
    """A plain hash in a log would show whether a given token appears in it."""
    job = job_for(engine, ALICE)

    assert repr(engine) == f"ExchangeEngine({engine.endpoint}, client_id='user-service')"
    assert repr(job) == f"Job({BILLING})"
    assert "alice" not in repr(job)
    assert endpoint.url in repr(engine)


# Renewals


def test_a_token_is_renewed_in_the_background(engine: ExchangeEngine, endpoint: Endpoint) -> None:
    """One request at a time, and none just after a failure."""
    release = threading.Event()
    endpoint.respond = lambda form: (release.wait(20), endpoint.issue(form))[1]
    job = job_for(engine, None)
    for _ in range(3):
        engine.renew(job)
    wait_until(lambda: bool(endpoint.forms))
    assert engine.find(engine.hash_of(OWN), None) is None
    release.set()
    wait_until(lambda: engine.find(engine.hash_of(OWN), None) is not None)
    assert [form["grant_type"] for form in endpoint.forms] == ["client_credentials"]

    endpoint.respond = lambda form: (400, {"error": "invalid_grant"})
    failure_of(engine, ALICE)
    engine.renew(job_for(engine, ALICE))
    assert not engine._pending
    assert len(endpoint.forms) == 2


def test_only_the_rejected_token_is_dropped(engine: ExchangeEngine, endpoint: Endpoint) -> None:
    """Another caller may have replaced it in the meantime."""
    obtain(engine, ALICE)
    job = job_for(engine, ALICE)
    engine.drop(job, BearerToken("another"))
    assert obtain(engine, ALICE)[1] == "hit"
    engine.drop(job, BearerToken("alice-1.for.billing"))
    assert obtain(engine, ALICE)[1] == "miss"


def test_a_token_with_other_claims_has_a_key_of_its_own(engine: ExchangeEngine, endpoint: Endpoint) -> None:
    """It is used for the plain request only when it is kept for it."""
    request = Request("on-behalf-of", audience="billing")
    plain = engine.job(request, engine.hash_of(request), ALICE)
    asking, again, other = (plain.with_claims(claims) for claims in ('{"a":1}', '{"a":1}', '{"a":2}'))
    assert len({plain.key, asking.key, other.key}) == 3
    assert asking.key == again.key
    endpoint.respond = lambda form: (200, {"access_token": "issued-1", "token_type": "Bearer", "expires_in": 300})

    found, result = drive(engine.steps(asking))
    assert (found.value, result) == ("issued-1", "miss")
    assert endpoint.forms[0]["claims"] == '{"a":1}'
    assert engine.find(engine.hash_of(request), ALICE) is None
    engine.keep(plain, found)
    assert engine.find(engine.hash_of(request), ALICE) == found


# One request by an operator


@pytest.mark.parametrize(
    ("response", "error"),
    [((400, {"error": "invalid_grant"}), "invalid_grant"), ((401, {"error": "invalid_client"}), "invalid_client")],
)
def test_a_random_token_must_be_refused(
    engine: ExchangeEngine, endpoint: Endpoint, response: Response, error: str
) -> None:
    """The error shows whether the server recognizes the client."""
    endpoint.respond = lambda form: response
    for _ in range(2):
        with pytest.raises(ExchangeFailed) as failed:
            engine.ask(BILLING, 5.0)
        assert failed.value.error == error

    assert len({*subjects(endpoint)}) == 2


def test_the_services_own_token_is_obtained_without_a_subject(engine: ExchangeEngine, endpoint: Endpoint) -> None:
    """It is not kept."""
    engine.ask(OWN, 5.0)

    assert subjects(endpoint) == [None]
    assert engine.find(engine.hash_of(OWN), None) is None


# Forks


def test_a_child_of_a_fork_has_workers_of_its_own(engine: ExchangeEngine, endpoint: Endpoint) -> None:
    """A thread of the parent held the lock, and an exchange was running."""
    release, is_held = threading.Event(), threading.Event()
    endpoint.respond = lambda form: (
        (release.wait(20), endpoint.issue(form))[1] if form["subject_token"] == "alice-1" else endpoint.issue(form)
    )
    engine.renew(job_for(engine, ALICE))
    wait_until(lambda: bool(endpoint.forms))

    def hold() -> None:
        with engine._lock:
            is_held.set()
            release.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert is_held.wait(20)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            os._exit(0 if not engine._pending and obtain(engine, BOB)[0] == "bob-1.for.billing" else 1)
        finally:
            os._exit(2)
    status = os.waitpid(child, 0)[1]
    release.set()
    thread.join(20)

    assert status == 0
    assert obtain(engine, ALICE)[0] == "alice-1.for.billing"
