"""Tokens for destinations: each is found for its own caller, and obtained at the endpoint of the caller's issuer."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from otel_token_relay import context
from otel_token_relay.client_credentials import ClientCredential
from otel_token_relay.destinations import Destination
from otel_token_relay.errors import ConfigurationError, ExchangeFailed
from otel_token_relay.exchange.tokens import DestinationTokens
from otel_token_relay.issuers import TrustedIssuer
from otel_token_relay.relay import Renewed
from otel_token_relay.retries import Rejection
from otel_token_relay.settings import Settings
from otel_token_relay.token import BearerToken, Lease
from otel_token_relay.verification.http_client import HttpClient
from tests.support.clocks import ShiftedClock
from tests.support.issuers import wait_until
from tests.support.token_endpoint import SECRET, Endpoint, Response, Verified, serving, unsigned_jwt, verified

A, B = "https://a.example", "https://b.example"
TENANT = "11111111-2222-3333-4444-555555555555"
ANY_TENANT = "https://login.microsoftonline.com/{tid}/v2.0"


@pytest.fixture
def announced() -> Iterator[list[str]]:
    """The tokens that redaction has been told of."""
    found: list[str] = []

    def watch(token: BearerToken) -> None:
        found.append(token.reveal())

    context.verification_watchers.append(watch)
    yield found
    context.verification_watchers.remove(watch)


def build(
    url: str | None, clock: ShiftedClock, *entries: str, **others: Any
) -> tuple[DestinationTokens, tuple[Destination, ...]]:
    """Return the tokens of a service, and its destinations."""
    own: dict[str, Any] = {"token_endpoint": url, "client_id": "user-service", "client_secret": SECRET}
    settings = Settings(destinations=entries, **({} if url is None else own), **others)
    tokens = DestinationTokens(settings, http=HttpClient(), now=clock.now, monotonic=clock.monotonic)
    return tokens, settings.entries


@pytest.fixture
def tokens_and_entry(endpoint: Endpoint, clock: ShiftedClock) -> tuple[DestinationTokens, Destination]:
    tokens, (entry,) = build(endpoint.url, clock, "https://billing.example;audience=billing;without-user=client")
    return tokens, entry


@pytest.fixture
def tokens(tokens_and_entry: tuple[DestinationTokens, Destination]) -> DestinationTokens:
    return tokens_and_entry[0]


@pytest.fixture
def billing(tokens_and_entry: tuple[DestinationTokens, Destination]) -> Destination:
    return tokens_and_entry[1]


@pytest.fixture
def numbered(endpoint: Endpoint) -> Endpoint:
    """A token endpoint that issues another token each time."""
    count = itertools.count(1)
    endpoint.respond = lambda form: (200, endpoint.issue(form)[1] | {"access_token": f"issued-{next(count)}"})
    return endpoint


# The places of a token


def test_a_token_is_obtained_once(tokens: DestinationTokens, billing: Destination, endpoint: Endpoint) -> None:
    """The caller's token keeps it for the request, and the cache for other requests with the same token."""
    alice, lease = verified("alice-1", Lease()), Lease()
    assert tokens.cached(alice, billing) is None
    obtained = tokens.obtain(alice, billing)
    assert (obtained.token.reveal(), obtained.result) == ("alice-1.for.billing", "miss")
    assert obtained.token.lease is alice.lease
    assert alice.reveal_all() == ("alice-1", "alice-1.for.billing")

    for caller in (alice, verified("alice-1", lease)):
        cached = tokens.cached(caller, billing)
        assert cached is not None
        assert (cached.token, cached.result, cached.token.lease) == (obtained.token, "hit", caller.lease)
    assert tokens.cached(verified("bob-1"), billing) is None
    assert len(endpoint.forms) == 1


def test_a_held_token_is_only_for_its_destination_and_its_settings(endpoint: Endpoint, clock: ShiftedClock) -> None:
    """Equal settings have a cache of their own."""
    entries = ("https://billing.example;audience=billing", "https://orders.example;audience=orders")
    tokens, (billing, orders) = build(endpoint.url, clock, *entries)
    others, (equal, _) = build(endpoint.url, clock, *entries)
    alice = verified("alice-1")
    tokens.obtain(alice, billing)

    assert tokens.cached(alice, orders) is None
    assert others.cached(alice, billing) is others.cached(alice, equal) is None
    assert tokens.cached(alice, billing) is not None


@pytest.mark.parametrize(("seconds", "is_cached"), [(269.0, True), (270.5, False)])
def test_a_held_token_is_used_for_its_lifetime(
    tokens: DestinationTokens, billing: Destination, clock: ShiftedClock, seconds: float, is_cached: bool
) -> None:
    """300 seconds, less the margin of 30 seconds."""
    alice = BearerToken("alice-1")
    verification = Verified()
    verification.expires_at = time.time() + 3600
    alice.mark_verified(verification)
    tokens.obtain(alice, billing)

    clock.ahead += seconds
    assert (tokens.cached(alice, billing) is not None) is is_cached


def test_an_event_loop_obtains_the_same_token(
    tokens: DestinationTokens, billing: Destination, endpoint: Endpoint
) -> None:
    """Other tasks run while one waits."""
    release = threading.Event()
    endpoint.respond = lambda form: (release.wait(20), endpoint.issue(form))[1]

    async def both() -> str:
        task = asyncio.create_task(tokens.obtain_async(verified("alice-1"), billing))
        while not endpoint.forms and not task.done():
            await asyncio.sleep(0.01)
        release.set()
        return (await task).token.reveal()

    assert asyncio.run(both()) == "alice-1.for.billing"
    assert tokens.obtain(verified("alice-1"), billing).result == "hit"


def test_redaction_is_told_of_a_token_once_for_each_trace(
    tokens: DestinationTokens, billing: Destination, announced: list[str]
) -> None:
    """Redaction finds a token by the trace, or by the thread if there is none."""
    alice = verified("alice-1")
    announced.clear()
    tokens.obtain(alice, billing)
    tokens.cached(alice, billing)
    assert announced == ["alice-1.for.billing"]
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("tests")
    for _ in range(2):
        with tracer.start_as_current_span("request"):
            tokens.cached(alice, billing)
            tokens.cached(alice, billing)
    assert announced == ["alice-1.for.billing"] * 3
    with ThreadPoolExecutor(1) as pool:
        pool.submit(tokens.cached, alice, billing).result(20)
    assert announced == ["alice-1.for.billing"] * 4


def test_an_own_token_is_renewed_ahead_of_time(
    tokens: DestinationTokens, billing: Destination, numbered: Endpoint, clock: ShiftedClock
) -> None:
    """The hop uses the old one, after 80 % of its lifetime."""
    assert tokens.obtain(None, billing).token.reveal() == "issued-1"
    clock.ahead += 210.0
    assert tokens.cached(None, billing) is not None
    assert len(numbered.forms) == 1
    clock.ahead += 10.0
    cached = tokens.cached(None, billing)
    assert cached is not None
    assert cached.token.reveal() == "issued-1"

    wait_until(lambda: (tokens.cached(None, billing) or cached).token.reveal() == "issued-2")
    assert {form["grant_type"] for form in numbered.forms} == {"client_credentials"}


# The actor


def test_the_actors_token_is_obtained_first(endpoint: Endpoint, clock: ShiftedClock) -> None:
    """It is one for all callers. Without it, nothing can be found."""
    tokens, (billing,) = build(endpoint.url, clock, "https://billing.example;audience=billing", exchange_actor="client")
    alice, bob = verified("alice-1"), verified("bob-1")
    assert tokens.cached(alice, billing) is None
    assert tokens.failure(alice, billing) is None
    tokens.obtain(alice, billing)
    tokens.obtain(bob, billing)

    assert [form.get("actor_token") for form in endpoint.forms] == [None, "service.for.any", "service.for.any"]
    assert [form.get("subject_token") for form in endpoint.forms] == [None, "alice-1", "bob-1"]
    found = tokens.cached(verified("alice-1"), billing)
    assert found is not None
    assert found.token.reveal() == "alice-1.for.billing"


# Failures


def test_a_failure_is_found_for_its_caller(endpoint: Endpoint, clock: ShiftedClock) -> None:
    """That of the actor's token is one for all callers."""
    entry = "https://billing.example;audience=billing"
    endpoint.respond = lambda form: (400, {"error": "invalid_target"})
    tokens, (billing,) = build(endpoint.url, clock, entry)
    assert tokens.failure(verified("alice-1"), billing) is None
    with pytest.raises(ExchangeFailed):
        tokens.obtain(verified("alice-1"), billing)
    assert error_of(tokens.failure(verified("alice-1"), billing)) == "invalid_target"
    assert tokens.failure(verified("bob-1"), billing) is None

    endpoint.respond = lambda form: (401, {"error": "invalid_client"})
    tokens, (billing,) = build(endpoint.url, clock, entry, exchange_actor="client")
    with pytest.raises(ExchangeFailed):
        tokens.obtain(verified("alice-1"), billing)
    assert error_of(tokens.failure(verified("bob-1"), billing)) == "invalid_client"

    endpoint.respond = lambda form: (
        endpoint.issue(form) if "actor_token" not in form else (400, {"error": "invalid_grant"})
    )
    tokens, (billing,) = build(endpoint.url, clock, entry, exchange_actor="client")
    with pytest.raises(ExchangeFailed):
        tokens.obtain(verified("alice-1"), billing)
    assert error_of(tokens.failure(verified("alice-1"), billing)) == "invalid_grant"
    assert tokens.failure(verified("bob-1"), billing) is None


def error_of(failure: ExchangeFailed | None) -> str | None:
    return None if failure is None else failure.error


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"exchange_grant": "off"}, id="off"),
        pytest.param({"client_id": None, "client_secret": None}, id="no credential"),
        pytest.param({"token_endpoint": None}, id="no endpoint"),
        pytest.param({"exchange_grant": "on-behalf-of", "exchange_actor": "client"}, id="actor"),
    ],
)
def test_settings_that_allow_no_exchange_are_an_error(fields: dict[str, Any]) -> None:
    """The error names the problem, and never the secret."""
    valid = {"token_endpoint": "https://idp.example/token", "client_id": "user-service", "client_secret": SECRET}
    entry = "https://billing.example;audience=billing"
    DestinationTokens(Settings(destinations=(entry,), **valid))

    settings = Settings(destinations=(entry,), **{name: one for name, one in (valid | fields).items() if one})
    with pytest.raises(ConfigurationError) as refused:
        DestinationTokens(settings)
    assert refused.value.setting == "exchange_grant"
    assert SECRET not in str(refused.value)


# Issuers


def trusting(issuer: str, endpoint: Endpoint) -> TrustedIssuer:
    credential = ClientCredential(client_id="user-service", secret=SECRET)
    return TrustedIssuer(issuer=issuer, token_endpoint=endpoint.url, client=credential)


def of_verifier(value: str, **claims: object) -> BearerToken:
    """Return a token with the claims that an application's verifier has reported."""
    token = BearerToken(value)
    verification = Verified()
    verification.claims = claims
    token.mark_verified(verification)
    return token


def test_a_token_is_sent_to_its_own_issuer_only(clock: ShiftedClock) -> None:
    """What the verifier reports takes precedence over the token's own claims."""
    with serving() as first, serving() as second:
        tokens, (billing,) = build(
            None, clock, "https://billing.example;scope=billing", issuers=(trusting(A, first), trusting(B, second))
        )
        tokens.obtain(of_verifier("reported", iss=A), billing)
        own = unsigned_jwt(iss=B)
        tokens.obtain(of_verifier(own), billing)
        tokens.obtain(of_verifier(unsigned_jwt(iss=B, jti="2"), iss=A), billing)
        for stranger in (BearerToken("opaque"), BearerToken(unsigned_jwt(iss="https://c.example")), None):
            with pytest.raises(ExchangeFailed, match="no credential is configured for the token's issuer") as failed:
                tokens.obtain(stranger, billing)
            assert tokens.failure(stranger, billing) is not None
            assert failed.value.error == "unavailable"

        assert [form["subject_token"] for form in first.forms] == ["reported", unsigned_jwt(iss=B, jti="2")]
        assert [form["subject_token"] for form in second.forms] == [own]


def test_an_opaque_token_is_from_the_only_issuer(endpoint: Endpoint, clock: ShiftedClock) -> None:
    """So is the service's own token."""
    tokens, (billing,) = build(
        None,
        clock,
        "https://billing.example;audience=billing;without-user=client",
        issuers=(trusting(A, endpoint),),
    )

    assert tokens.obtain(verified("opaque"), billing).token.reveal() == "opaque.for.billing"
    assert tokens.obtain(None, billing).token.reveal() == "service.for.billing"


@pytest.mark.parametrize(
    ("tenant", "tid", "is_sent"),
    [(TENANT, TENANT, True), (TENANT, TENANT[::-1], False), ("common", "common", False), (TENANT, None, False)],
)
def test_a_tenants_token_is_sent_to_the_entry_of_all_tenants(
    endpoint: Endpoint, clock: ShiftedClock, tenant: str, tid: object, is_sent: bool
) -> None:
    """The issuer must be that of the token's own tenant."""
    issuers = (trusting(ANY_TENANT, endpoint), A)
    tokens, (billing,) = build(None, clock, "https://billing.example;scope=billing", issuers=issuers)
    token = of_verifier("opaque", iss=ANY_TENANT.replace("{tid}", tenant), tid=tid)
    if is_sent:
        tokens.obtain(token, billing)
    else:
        with pytest.raises(ExchangeFailed):
            tokens.obtain(token, billing)

    assert len(endpoint.forms) == is_sent


def test_each_endpoint_is_asked_with_the_first_entry_that_needs_an_exchange(
    endpoint: Endpoint, clock: ShiftedClock
) -> None:
    """An issuer without a credential has no engine."""
    entries = ("https://plain.example", "https://billing.example;audience=billing", "https://orders.example;audience=o")
    tokens, _ = build(None, clock, *entries, issuers=(trusting(A, endpoint), B))
    assert [(engine.client_id, request.audience) for engine, request in tokens.requests()] == [
        ("user-service", "billing")
    ]

    tokens, _ = build(endpoint.url, clock, "https://plain.example")
    assert list(tokens.requests()) == []


# Renewals

REJECTED = Rejection()
CLAIMS = Rejection('{"access_token":{}}', needs_claims=True)


def renewed_value(renewed: Renewed | None) -> str | None:
    return None if renewed is None else renewed.obtained.token.reveal()


def test_a_rejected_token_is_replaced_once(tokens: DestinationTokens, billing: Destination, numbered: Endpoint) -> None:
    """Other requests with the rejected token use the new one as soon as it has been accepted."""
    alice = verified("alice-1")
    rejected = tokens.obtain(alice, billing).token
    renewed = tokens.renew(alice, billing, rejected, REJECTED)
    assert renewed_value(renewed) == "issued-2"
    assert renewed is not None
    renewed.settle(True)

    again = tokens.renew(verified("alice-1"), billing, rejected, REJECTED)
    assert renewed_value(again) == "issued-2"
    assert len(numbered.forms) == 2
    assert tokens.renew(alice, billing, renewed.obtained.token, REJECTED) is None
    assert tokens.renew(alice, billing, rejected, REJECTED) is None
    assert len(numbered.forms) == 2


def test_a_new_token_that_is_rejected_ends_the_retries(
    tokens: DestinationTokens, billing: Destination, numbered: Endpoint, clock: ShiftedClock
) -> None:
    """A destination that always responds with 401 gets one more request in 30 seconds."""
    alice = verified("alice-1")
    rejected = tokens.obtain(alice, billing).token
    renewed = tokens.renew(alice, billing, rejected, REJECTED)
    assert renewed is not None
    renewed.settle(False)
    assert tokens.renew(alice, billing, rejected, REJECTED) is None

    clock.ahead += 30.0
    assert renewed_value(tokens.renew(alice, billing, renewed.obtained.token, REJECTED)) == "issued-3"


def test_the_same_token_again_does_not_cause_a_retry(
    tokens: DestinationTokens, billing: Destination, endpoint: Endpoint
) -> None:
    """Some servers return the token that they have issued before."""
    alice = verified("alice-1")
    rejected = tokens.obtain(alice, billing).token

    assert tokens.renew(alice, billing, rejected, REJECTED) is None
    assert len(endpoint.forms) == 2


def test_a_renewal_that_fails_frees_the_others(
    tokens: DestinationTokens, billing: Destination, endpoint: Endpoint
) -> None:
    """They do not wait for five seconds."""
    alice = verified("alice-1")
    rejected = tokens.obtain(alice, billing).token
    endpoint.respond = lambda form: (400, {"error": "invalid_grant"})
    with pytest.raises(ExchangeFailed):
        tokens.renew(alice, billing, rejected, REJECTED)

    started = time.monotonic()
    assert tokens.renew(alice, billing, rejected, REJECTED) is None
    assert time.monotonic() - started < 4


def test_an_event_loop_renews_a_token_and_a_canceled_task_frees_the_others(
    tokens: DestinationTokens, billing: Destination, numbered: Endpoint
) -> None:
    """The trial of a canceled task has no result of its own."""
    release, issue = threading.Event(), numbered.respond
    alice, bob = verified("alice-1"), verified("bob-1")

    async def scenario() -> None:
        rejected = (await tokens.obtain_async(alice, billing)).token
        assert renewed_value(await tokens.renew_async(alice, billing, rejected, REJECTED)) == "issued-2"

        rejected = (await tokens.obtain_async(bob, billing)).token
        numbered.respond = lambda form: (release.wait(20), issue(form))[1]
        task = asyncio.create_task(tokens.renew_async(bob, billing, rejected, REJECTED))
        while len(numbered.forms) < 4 and not task.done():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        started = time.monotonic()
        assert await tokens.renew_async(bob, billing, rejected, REJECTED) is None
        assert time.monotonic() - started < 4
        release.set()

    asyncio.run(scenario())


@pytest.mark.parametrize(("grant", "is_renewed"), [("token-exchange", False), ("on-behalf-of", True)])
def test_only_entra_is_sent_the_claims_of_a_challenge(
    endpoint: Endpoint, clock: ShiftedClock, grant: str, is_renewed: bool
) -> None:
    """The new token is then used for later requests as well."""
    count = itertools.count(1)

    def respond(form: dict[str, str]) -> Response:
        return 200, endpoint.issue(form)[1] | {"access_token": f"issued-{next(count)}"}

    endpoint.respond = respond
    tokens, (billing,) = build(endpoint.url, clock, "https://billing.example;audience=billing", exchange_grant=grant)
    alice = verified("alice-1")
    rejected = tokens.obtain(alice, billing).token

    assert renewed_value(tokens.renew(alice, billing, rejected, CLAIMS)) == ("issued-2" if is_renewed else None)
    assert [form.get("claims") for form in endpoint.forms] == [None, CLAIMS.claims][: 1 + is_renewed]
    found = tokens.cached(verified("alice-1"), billing)
    assert found is not None
    assert found.token.reveal() == ("issued-2" if is_renewed else "issued-1")
