"""Threads and event loops exchange tokens at a token endpoint on loopback."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from otel_token_relay import current_token, use_token
from otel_token_relay.errors import ConfigurationError, ExchangeFailed, TokenUnavailable
from otel_token_relay.exchange import AsyncTokenExchanger, TokenExchanger
from otel_token_relay.reasons import Reason
from otel_token_relay.token import BearerToken, Lease
from tests.support.token_endpoint import ACCESS_TOKEN, SECRET, Endpoint, Response, verified


def test_a_token_is_exchanged_once_for_each_audience(endpoint: Endpoint) -> None:
    """A result shares the lease of the caller's token and can be bound."""
    exchanger, lease = endpoint.exchanger(), Lease()
    token = verified("alice-1", lease)

    billing = exchanger.exchange(token, audience="billing")
    assert exchanger.exchange(token, audience="billing") == billing
    assert exchanger.exchange(token, audience="orders").reveal() == "alice-1.for.orders"

    assert billing.reveal() == "alice-1.for.billing"
    assert [form["audience"] for form in endpoint.forms] == ["billing", "orders"]
    assert all((header or "").startswith("Basic ") for header in endpoint.authorizations)
    with use_token(billing):
        assert current_token() == billing
    lease.end()
    assert not billing.is_usable


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda token, lease: lease.end(), Reason.LEASE_ENDED),
        (lambda token, lease: setattr(token.verification, "is_valid", False), Reason.NOT_VERIFIED),
        (lambda token, lease: setattr(token.verification, "expires_at", 1.0), Reason.EXPIRED),
    ],
    ids=["lease ended", "revoked", "expired"],
)
def test_a_cached_result_is_used_only_while_the_caller_may(endpoint: Endpoint, spoil: Any, reason: Reason) -> None:
    """A cached result is no longer used when the caller's token becomes unusable."""
    exchanger, lease = endpoint.exchanger(), Lease()
    token = verified("alice-1", lease)
    exchanger.exchange(token, audience="billing")

    spoil(token, lease)

    with pytest.raises(TokenUnavailable) as unavailable:
        exchanger.exchange(token, audience="billing")
    assert unavailable.value.reason is reason
    assert len(endpoint.forms) == 1


def test_a_request_that_ends_during_the_exchange_gets_nothing(endpoint: Endpoint) -> None:
    """A request that ends during the exchange gets no token."""
    lease = Lease()

    def respond(form: dict[str, str]) -> Response:
        lease.end()
        return endpoint.issue(form)

    endpoint.respond = respond
    with pytest.raises(TokenUnavailable) as unavailable:
        endpoint.exchanger().exchange(verified("alice-1", lease), audience="billing")
    assert unavailable.value.reason is Reason.LEASE_ENDED


def test_an_unverified_token_is_not_exchanged(endpoint: Endpoint) -> None:
    """An unverified token is not exchanged, because otherwise any caller could make the service use its credential."""
    token = BearerToken("made-up-token")

    with pytest.raises(TokenUnavailable) as unavailable:
        endpoint.exchanger().exchange(token, audience="billing")
    assert unavailable.value.reason is Reason.NOT_VERIFIED
    assert endpoint.forms == []
    exchanger = endpoint.exchanger(allow_unverified=True)
    assert exchanger.exchange(token, audience="billing").reveal() == "made-up-token.for.billing"


def test_many_users_in_threads_and_tasks_never_get_the_token_of_another(endpoint: Endpoint) -> None:
    """Users in many threads and tasks always get their own tokens, with one exchange for each token and audience."""
    exchanger, waiting = endpoint.exchanger(timeout=60), endpoint.exchanger(AsyncTokenExchanger, timeout=60)
    audiences = ("billing", "orders", "stock")
    wrong: Counter[str] = Counter()

    def call(number: int) -> None:
        user, audience = f"user-{number % 40}", audiences[number % 3]
        found = exchanger.exchange(verified(user), audience=audience).reveal()
        wrong[found] += found != f"{user}.for.{audience}"

    async def call_all() -> None:
        async def one(number: int) -> None:
            user, audience = f"task-{number % 40}", audiences[number % 3]
            found = (await waiting.exchange(verified(user), audience=audience)).reveal()
            wrong[found] += found != f"{user}.for.{audience}"

        await asyncio.gather(*(one(number) for number in range(480)))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(call, range(480)))
    asyncio.run(call_all())

    assert sum(wrong.values()) == 0
    pairs = Counter((form["subject_token"], form["audience"]) for form in endpoint.forms)
    assert len(pairs) == 240
    assert set(pairs.values()) == {1}


@pytest.mark.parametrize(
    ("response", "error"),
    [
        ((400, {"error": "invalid_grant", "error_description": "alice-1 is revoked"}), "invalid_grant"),
        ((400, {"error": "invalid_target"}), "invalid_target"),
        ((401, {"error": "invalid_client"}), "invalid_client"),
        ((500, {"error": "server_error"}), "unavailable"),
        ((200, b"<html>"), "bad_response"),
        ((200, {"access_token": "alice-1", "issued_token_type": ACCESS_TOKEN, "token_type": "Bearer"}), "bad_response"),
        ((200, {"access_token": "x", "issued_token_type": ACCESS_TOKEN, "token_type": "N_A"}), "bad_response"),
    ],
)
def test_a_failure_is_reported_without_the_response(
    endpoint: Endpoint, response: Response, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A repeated call shortly after a failure raises the same error without a new request."""
    endpoint.respond = lambda form: response
    exchanger, token = endpoint.exchanger(), verified("alice-1")

    for _ in range(2):
        with pytest.raises(ExchangeFailed) as failed:
            exchanger.exchange(token, audience="billing")
        assert failed.value.error == error
        assert "alice-1" not in str(failed.value)
    assert len([form for form in endpoint.forms if form["subject_token"] == "alice-1"]) == 1
    assert "alice-1" not in caplog.text
    assert SECRET not in caplog.text
    # The next attempt after an outage succeeds.
    endpoint.respond = endpoint.issue
    exchanger._engine._cache._failures.drop(next(iter(exchanger._engine._cache._failures._entries)))
    assert exchanger.exchange(token, audience="billing").reveal() == "alice-1.for.billing"


def test_an_event_loop_is_not_blocked(endpoint: Endpoint) -> None:
    """Other tasks run while a task waits for an exchange."""
    release = threading.Event()
    endpoint.respond = lambda form: (release.wait(10), endpoint.issue(form))[1]
    exchanger = endpoint.exchanger(AsyncTokenExchanger)

    async def both() -> str:
        exchange = asyncio.create_task(exchanger.exchange(verified("alice-1"), audience="billing"))
        while not endpoint.forms:
            await asyncio.sleep(0.01)
        release.set()
        return (await exchange).reveal()

    assert asyncio.run(both()) == "alice-1.for.billing"


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"token_endpoint": "http://idp.example/token"}, "token_endpoint"),
        ({"client_id": ""}, "client_id"),
        ({"client_secret": None}, "client_secret"),
        ({"client_secret_file": "/x"}, "client_secret"),
        ({"client_auth": "magic"}, "client_auth"),
        ({"grant": "password"}, "grant"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_an_invalid_argument_is_an_error(options: dict[str, Any], setting: str) -> None:
    """An invalid argument causes an error that identifies the argument without repeating the secret."""
    arguments = {"token_endpoint": "https://idp.example/token", "client_id": "a", "client_secret": SECRET, **options}

    with pytest.raises(ConfigurationError) as refused:
        TokenExchanger(**arguments)

    assert refused.value.setting == setting
    assert SECRET not in str(refused.value)


def test_what_is_asked_for_is_required(endpoint: Endpoint) -> None:
    """An exchange without an audience is an error, because its token would be valid for any service."""
    exchanger = endpoint.exchanger()

    with pytest.raises(ConfigurationError):
        exchanger.exchange(verified("alice-1"))
    assert SECRET not in repr(exchanger)
