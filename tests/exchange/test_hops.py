"""Each hooked client sends a destination either its own token or no token, but never the caller's token."""

from __future__ import annotations

import asyncio
import base64
import contextvars
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import aiohttp
import httpx
import pytest
import requests
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_token_relay import Settings, as_service, carry, context, install, to_destination, use_token
from otel_token_relay.boundary import Boundary
from otel_token_relay.configured_exchange import build_token_source
from otel_token_relay.errors import TokenUnavailable
from otel_token_relay.exchange.engine import ExchangeEngine
from otel_token_relay.propagator import TokenRelayPropagator
from otel_token_relay.reasons import Reason
from otel_token_relay.token import BearerToken, Lease
from tests.support.clients import Client, every_async_client, every_client, every_following_client
from tests.support.loopback import Party, Status, party
from tests.support.token_endpoint import ACCESS_TOKEN, SECRET, Endpoint, Verified, serving, verified

ALICE = "alice-has-this-token-0123456789"
BOB = "bob-has-that-token-9876543210"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start with an empty cache in a process that has served requests, and allow exchanges more time."""
    build_token_source.cache_clear()
    monkeypatch.setitem(ExchangeEngine.__init__.__kwdefaults__, "timeout", 60.0)
    monkeypatch.setattr(context, "has_served", True)
    yield
    build_token_source.cache_clear()


def settings_for(endpoint: Endpoint, *destinations: str, **others: Any) -> Settings:
    return Settings(
        destinations=destinations,
        token_endpoint=endpoint.url,
        client_id="user-service",
        client_secret=SECRET,
        **others,
    )


@contextmanager
def user(value: str) -> Iterator[BearerToken]:
    """Bind a token that is marked as verified."""
    with use_token(verified(value)) as token:
        assert token is not None
        yield token


def sent(to: Party) -> list[list[str]]:
    """Return the Authorization lines of each request that the server has received."""
    return to.lines()


@every_client
def test_each_client_sends_the_exchanged_token(client: Client, endpoint: Endpoint) -> None:
    """Each client sends the exchanged token, and later hops of the same user reuse it."""
    with client.party() as billing, client.party() as profile:
        install(settings_for(endpoint, f"{billing.url};audience=billing", profile.url))
        for value in (ALICE, ALICE, BOB):
            with user(value):
                client.call(billing.url)
                client.call(billing.url)
                client.call(profile.url)

        alice, bob = [f"Bearer {ALICE}.for.billing"], [f"Bearer {BOB}.for.billing"]
        assert sent(billing) == [alice] * 4 + [bob] * 2
        assert sent(profile) == [[f"Bearer {ALICE}"]] * 2 + [[f"Bearer {BOB}"]]
    assert Counter(form["subject_token"] for form in endpoint.forms) == {ALICE: 1, BOB: 1}
    assert {form["audience"] for form in endpoint.forms} == {"billing"}


@every_client
@pytest.mark.parametrize("is_required", [False, True], ids=["optional", "required"])
def test_without_an_exchanged_token_nothing_is_sent_instead(
    client: Client, endpoint: Endpoint, is_required: bool
) -> None:
    """If the exchange fails, the request is sent without a token or, if a token is required, not sent."""
    challenge = '{"access_token":{"acrs":{"essential":true}}}'
    endpoint.respond = lambda form: (400, {"error": "interaction_required", "claims": challenge})
    with client.party() as billing:
        install(settings_for(endpoint, f"{billing.url};audience=billing{';required' * is_required}"))
        with user(ALICE):
            if is_required:
                with pytest.raises(TokenUnavailable) as caught:
                    client.call(billing.url)
                assert caught.value.reason is Reason.EXCHANGE_FAILED
                assert caught.value.claims_challenge == challenge
                assert "acrs" not in f"{caught.value}{caught.value!r}"
                assert sent(billing) == []
            else:
                client.call(billing.url)
                assert sent(billing) == [[]]


def bearer(**members: Any) -> dict[str, Any]:
    return {"issued_token_type": ACCESS_TOKEN, "token_type": "Bearer", "access_token": "other-token"} | members


def jwt(**claims: Any) -> str:
    parts = (json.dumps(part).encode() for part in ({"alg": "none"}, claims))
    return ".".join([*(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts), "c2ln"])


OUTAGES: dict[str, Callable[[dict[str, str]], tuple[int, Any]]] = {
    "500": lambda form: (500, {"error": "server_error"}),
    "400": lambda form: (400, {"error": "invalid_target"}),
    "401": lambda form: (401, {"error": "invalid_client"}),
    "garbage": lambda form: (200, b"<html>"),
    "empty": lambda form: (200, b""),
    "a list": lambda form: (200, []),
    "another audience": lambda form: (200, bearer(access_token=jwt(aud="orders"))),
    "no audience": lambda form: (200, bearer(access_token=jwt(sub="alice"))),
    "not a bearer token": lambda form: (200, bearer(token_type="N_A")),
    "DPoP": lambda form: (200, bearer(token_type="DPoP")),
    "bound to a key": lambda form: (200, bearer(access_token=jwt(aud="billing", cnf={"jkt": "x"}))),
    "an ID token": lambda form: (200, bearer(issued_token_type="urn:ietf:params:oauth:token-type:id_token")),
    "the caller's token": lambda form: (200, bearer(access_token=form["subject_token"])),
    "white space": lambda form: (200, bearer(access_token=f"{form['subject_token']} x")),
    "too long": lambda form: (200, bearer(access_token="x" * 20_000)),
}


@pytest.mark.parametrize("outage", OUTAGES, ids=str)
@pytest.mark.parametrize("call", [requests.get, lambda url: asyncio.run(_get(url))], ids=["requests", "httpx-async"])
def test_in_no_outage_the_callers_token_is_on_a_wire(endpoint: Endpoint, outage: str, call: Any) -> None:
    """No outage causes the caller's token to be sent, and the next attempt after the outage succeeds."""
    works = endpoint.respond
    with party() as billing:
        install(settings_for(endpoint, f"{billing.url};audience=billing"))
        endpoint.respond = OUTAGES[outage]
        with user(ALICE):
            call(billing.url)
            call(billing.url)
        assert sent(billing) == [[], []]
        assert len(endpoint.forms) == 1
        billing.assert_saw_no(ALICE)

        endpoint.respond = works
        engine = build_token_source(settings_for(endpoint, f"{billing.url};audience=billing"))._lone  # type: ignore[union-attr]
        engine._cache._failures._entries.clear()
        with user(ALICE):
            call(billing.url)
        assert sent(billing)[-1] == [f"Bearer {ALICE}.for.billing"]


async def _get(url: str) -> None:
    async with httpx.AsyncClient() as client:
        await client.get(url)


def test_a_server_that_refuses_connections_recovers_within_two_seconds() -> None:
    """An exchange succeeds within two seconds after a server starts to accept connections again."""
    with serving() as gone:
        pass
    with party() as billing:
        settings = settings_for(gone, f"{billing.url};audience=billing")
        install(settings)
        with user(ALICE):
            requests.get(billing.url)
            assert sent(billing) == [[]]
        with serving() as endpoint:
            build_token_source(settings)._lone.endpoint._url = endpoint.url  # type: ignore[union-attr]
            deadline = time.monotonic() + 30
            while sent(billing)[-1] == [] and time.monotonic() < deadline:
                with user(ALICE):
                    requests.get(billing.url)
                time.sleep(0.1)
            assert sent(billing)[-1] == [f"Bearer {ALICE}.for.billing"]
            assert len(endpoint.forms) <= 2  # the probe and the exchange


@every_async_client
def test_a_slow_server_delays_only_those_who_need_it(client: Client, endpoint: Endpoint) -> None:
    """A hop that waits for an exchange does not block other tasks on the event loop."""
    ready = threading.Event()
    issue = endpoint.issue

    def slowly(form: dict[str, str]) -> Any:
        ready.wait(20)
        return issue(form)

    endpoint.respond = slowly
    with client.party() as billing, client.party() as profile:
        install(settings_for(endpoint, f"{billing.url};audience=billing", profile.url))
        assert client.opening is not None

        async def run() -> None:
            async with client.opening(billing.url) as to_billing, client.opening(profile.url) as to_profile:  # type: ignore[misc]
                with user(ALICE):
                    waiting = asyncio.create_task(_await(to_billing))
                    await asyncio.sleep(0.05)
                    assert await to_profile() == f"Bearer {ALICE}".encode()
                    assert not waiting.done()
                    ready.set()
                    assert await waiting == f"Bearer {ALICE}.for.billing".encode()

        asyncio.run(run())


@pytest.mark.parametrize("library", ["aiohttp", "httpx"])
def test_a_hop_that_waits_holds_no_connection(library: str, endpoint: Endpoint) -> None:
    """While a hop waits for an exchange, another request can use the pool's only connection."""
    ready = threading.Event()
    issue = endpoint.issue

    def slowly(form: dict[str, str]) -> Any:
        ready.wait(20)
        return issue(form)

    endpoint.respond = slowly
    with party() as one:
        billing, profile = one.url, one.url.replace("127.0.0.1", "localhost")
        install(settings_for(endpoint, f"{billing};audience=billing", profile))

        async def check(get: Callable[[str], Any]) -> None:
            with user(ALICE):
                waiting = asyncio.create_task(get(billing))
                await asyncio.sleep(0.05)
                assert await get(profile) == f"Bearer {ALICE}"
                assert not waiting.done()
                ready.set()
                assert await waiting == f"Bearer {ALICE}.for.billing"

        async def run() -> None:
            if library == "httpx":
                async with httpx.AsyncClient(limits=httpx.Limits(max_connections=1)) as client:

                    async def get_by_httpx(url: str) -> str:
                        return (await client.get(url)).text

                    await check(get_by_httpx)
            else:
                async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:

                    async def get_by_aiohttp(url: str) -> str:
                        async with session.get(url) as response:
                            return await response.text()

                    await check(get_by_aiohttp)

        asyncio.run(run())


async def _await(send: Any) -> bytes:
    result: bytes = await send()
    return result


def end(token: BearerToken) -> None:
    assert token.lease is not None
    token.lease.end()


def withdraw(token: BearerToken) -> None:
    assert isinstance(token.verification, Verified)
    token.verification.is_valid = False


def expire(token: BearerToken) -> None:
    assert isinstance(token.verification, Verified)
    token.verification.expires_at = time.time() - 1


@pytest.mark.parametrize("spoil", [end, withdraw, expire])
@pytest.mark.parametrize("is_cached", [True, False], ids=["cached", "in flight"])
def test_a_token_is_used_only_while_the_caller_may(endpoint: Endpoint, spoil: Any, is_cached: bool) -> None:
    """An exchanged token is used only while the caller's token is usable, which is checked at every hop."""
    with party() as billing:
        install(settings_for(endpoint, f"{billing.url};audience=billing"))
        with user(ALICE) as token:
            if is_cached:
                requests.get(billing.url)
                spoil(token)
                requests.get(billing.url)
                assert sent(billing) == [[f"Bearer {ALICE}.for.billing"], []]
            else:
                issue = endpoint.issue

                def late(form: dict[str, str]) -> Any:
                    spoil(token)
                    return issue(form)

                endpoint.respond = late
                requests.get(billing.url)
                assert sent(billing) == [[]]


@pytest.mark.parametrize("allows", [False, True], ids=["default", "unverified"])
def test_only_verified_tokens_are_exchanged(endpoint: Endpoint, allows: bool) -> None:
    """Only verified tokens are exchanged by default, so a caller cannot make the service use its credential."""
    with party() as billing:
        install(settings_for(endpoint, f"{billing.url};audience=billing", exchange_unverified=allows))
        for number in range(100):
            with use_token(f"made-up-token-{number}"):
                requests.get(billing.url)
        assert len(endpoint.forms) == (100 if allows else 0)
        assert sum(line != [] for line in sent(billing)) == (100 if allows else 0)


@every_client
def test_an_explicit_credential_wins(client: Client, endpoint: Endpoint) -> None:
    """A call with its own credential does not cause an exchange."""
    with client.party() as billing:
        install(settings_for(endpoint, f"{billing.url};audience=billing"))
        with user(ALICE):
            client.call(billing.url, headers={"authorization": "Bearer mine"})
        assert sent(billing) == [["Bearer mine"]]
    assert endpoint.forms == []


@every_following_client
def test_a_redirect_is_decided_by_the_entry_of_its_own_origin(client: Client, endpoint: Endpoint) -> None:
    """After a redirect, the destination gets its own token, and an unlisted origin gets none."""
    with client.party() as billing, client.party() as orders, client.party() as other:
        install(settings_for(endpoint, f"{billing.url};audience=billing", f"{orders.url};audience=orders"))
        with user(ALICE):
            client.call(billing.redirecting_to(orders.url))
            client.call(billing.redirecting_to(other.url))
        assert sent(orders) == [[f"Bearer {ALICE}.for.orders"]]
        assert sent(other) == [[]]


def test_many_users_never_get_another_users_token(endpoint: Endpoint) -> None:
    """Threads and tasks of many users share sessions, and each user's token is exchanged once for each destination."""
    users = [f"user-{number:04}-token-{random.getrandbits(64):016x}" for number in range(40)]
    audiences = ("a", "b", "c", "d")
    with party() as one, party() as two, party() as three, party() as four:
        parties = dict(zip(audiences, (one, two, three, four), strict=True))
        install(settings_for(endpoint, *(f"{to.url};audience={name}" for name, to in parties.items())))
        session = requests.Session()

        def in_thread(value: str) -> None:
            with user(value):
                for name in random.sample(audiences, 4):
                    assert session.get(parties[name].url).text == f"Bearer {value}.for.{name}"

        async def in_tasks() -> None:
            async with httpx.AsyncClient() as client:

                async def serve(value: str) -> None:
                    with user(value):
                        for name in random.sample(audiences, 4):
                            assert (await client.get(parties[name].url)).text == f"Bearer {value}.for.{name}"

                await asyncio.gather(*(serve(value) for value in users))

        with ThreadPoolExecutor(8) as pool:
            running = [contextvars.Context().run(pool.submit, in_thread, value) for value in users]
            asyncio.run(in_tasks())
            for future in running:
                future.result()
    asked = Counter((form["subject_token"], form["audience"]) for form in endpoint.forms)
    assert set(asked.values()) == {1}
    assert len(asked) == len(users) * len(audiences)


def own(endpoint: Endpoint, url: str, **others: Any) -> Settings:
    return settings_for(endpoint, f"{url};audience=billing;without-user=client", **others)


def extracted(carrier: dict[str, str]) -> Any:
    return TokenRelayPropagator(Settings()).extract(carrier)


def in_context(bound: Any, call: Callable[[], object]) -> None:
    attached = otel_context.attach(bound)
    try:
        call()
    finally:
        otel_context.detach(attached)


OWN = ["Bearer service.for.billing"]


@every_client
def test_the_service_uses_its_own_token_on_its_own_behalf(client: Client, endpoint: Endpoint) -> None:
    """Once the process has served requests, it uses its own token only in ``as_service``."""
    with client.party() as billing:
        install(own(endpoint, billing.url))
        with as_service():
            client.call(billing.url)
            client.call(billing.url)
        client.call(billing.url)
        assert sent(billing) == [OWN, OWN, []]
    assert [form["grant_type"] for form in endpoint.forms] == ["client_credentials"]
    assert "subject_token" not in endpoint.forms[0]


def test_a_process_that_serves_nobody_uses_its_own_token(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has not served requests uses its own token unless ``use_token(None)`` is active."""
    monkeypatch.setattr(context, "has_served", False)
    with party() as billing:
        install(own(endpoint, billing.url))

        def call() -> None:
            requests.get(billing.url)

        call()
        in_context(extracted({}), call)
        assert sent(billing) == [OWN, OWN]
        billing.requests.clear()

        with use_token(None):
            call()
        in_context(extracted({}), lambda: carry(call)())
        in_context(extracted({"authorization": "Bearer a b"}), call)
        with as_service(), use_token(None):
            call()
        assert sent(billing) == [[], [], [], []]
        billing.requests.clear()

        Boundary(None, lambda name: [], Settings())  # the process starts to serve requests
        call()
        in_context(extracted({}), call)
        assert sent(billing) == [[], []]


def test_the_service_never_acts_for_a_caller_whose_context_is_lost(endpoint: Endpoint) -> None:
    """Work that has lost its request's context never gets the service's own token."""
    with party() as billing:
        install(own(endpoint, billing.url))

        def call() -> None:
            requests.get(billing.url)

        async def main() -> None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, contextvars.Context().run, call)
            await asyncio.create_task(_call_async(billing.url), context=contextvars.Context())

        class Lost(threading.Thread):
            def run(self) -> None:
                contextvars.Context().run(call)

        with user(ALICE):
            contextvars.Context().run(call)
            thread = Lost()
            thread.start()
            thread.join()
            in_context(otel_context.Context(), call)
            in_context(trace.set_span_in_context(trace.INVALID_SPAN, otel_context.Context()), call)
            in_context(extracted({}), call)
            asyncio.run(main())
            with as_service():
                kept = contextvars.copy_context()
            kept.run(call)  # work that continues after the block
        ended = BearerToken(BOB, lease=Lease(seconds=0))
        ended.mark_verified(Verified())
        in_context(context.with_token(ended), call)
        with use_token(None):
            call()
        assert sent(billing) == [[]] * 10
    assert endpoint.forms == []


async def _call_async(url: str) -> None:
    async with httpx.AsyncClient() as client:
        await client.get(url)


def test_as_service_hides_the_callers_token(endpoint: Endpoint) -> None:
    """In ``as_service``, a destination that does not permit the service's own token gets no token."""
    with party() as billing, party() as profile, party() as orders:
        install(
            settings_for(
                endpoint,
                f"{billing.url};audience=billing;without-user=client",
                profile.url,
                f"{orders.url};audience=orders",
            )
        )
        with user(ALICE):
            with as_service():
                for to in (billing, profile, orders):
                    requests.get(to.url)
            requests.get(billing.url)
        assert sent(billing) == [OWN, [f"Bearer {ALICE}.for.billing"]]
        assert sent(profile) == [[]]
        assert sent(orders) == [[]]


def test_an_own_token_is_renewed_ahead_of_time(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service's own token is renewed in the background, while hops use the previous token."""
    with party() as billing:
        settings = own(endpoint, billing.url)
        install(settings)
        with as_service():
            requests.get(billing.url)
            tokens: Any = build_token_source(settings)
            now = time.monotonic()
            tokens._monotonic = lambda: now + 250  # 270 s is the lifetime of 300 s minus the margin
            for _ in range(3):
                requests.get(billing.url)
        deadline = time.monotonic() + 20
        while len(endpoint.forms) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert 2 <= len(endpoint.forms) <= 4
        assert sent(billing) == [OWN] * 4


def test_the_service_is_named_as_the_actor(endpoint: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    """The service's own token is sent as the actor, and a server that ignores the actor is reported."""
    issued = {"alice": jwt(aud="billing", sub="alice"), "bob": jwt(aud="billing", sub="bob", act={"sub": "me"})}

    def issue(form: dict[str, str]) -> tuple[int, Any]:
        if form["grant_type"] == "client_credentials":
            return 200, bearer(access_token="token-of-the-service", expires_in=300)
        return 200, bearer(access_token=issued["alice" if form["subject_token"] == ALICE else "bob"])

    endpoint.respond = issue
    with party() as billing:
        install(settings_for(endpoint, f"{billing.url};audience=billing", exchange_actor="client"))
        with user(BOB):
            requests.get(billing.url)
        assert caplog.text == ""
        with user(ALICE):
            requests.get(billing.url)
            requests.get(billing.url)
        assert sent(billing) == [[f"Bearer {issued[name]}"] for name in ("bob", "alice", "alice")]
    assert "the issued token does not identify an actor (act)" in caplog.text
    assert [form.get("actor_token") for form in endpoint.forms] == [
        None,
        "token-of-the-service",
        "token-of-the-service",
    ]


def test_work_that_is_carried_gets_a_fresh_token(endpoint: Endpoint) -> None:
    """In carried work, an expired result is replaced while the caller's token is valid."""
    endpoint.respond = lambda form: (200, bearer(access_token=f"n{len(endpoint.forms)}", expires_in=1))
    with party() as billing:
        install(settings_for(endpoint, f"{billing.url};audience=billing"))

        def work() -> None:
            requests.get(billing.url)
            time.sleep(1.1)
            requests.get(billing.url)

        with user(ALICE):
            carried = carry(work, seconds=60)
        carried()
        assert sent(billing) == [["Bearer n1"], ["Bearer n2"]]


def test_inject_waits_in_threads_and_never_on_an_event_loop(endpoint: Endpoint) -> None:
    """On an event loop, `inject` uses only a token that was exchanged earlier, and does not wait."""
    install(settings_for(endpoint, "https://billing;audience=billing"))

    def inject() -> dict[str, str]:
        headers: dict[str, str] = {}
        propagate.inject(headers, context=to_destination("https://billing/x"))
        return headers

    async def on_a_loop() -> dict[str, str]:
        return inject()

    with user(ALICE):
        assert "Authorization" not in asyncio.run(on_a_loop())
        assert endpoint.forms == []
        assert inject()["Authorization"] == f"Bearer {ALICE}.for.billing"
        assert asyncio.run(on_a_loop())["Authorization"] == f"Bearer {ALICE}.for.billing"
    with as_service():
        assert "Authorization" not in inject()


def test_the_span_says_where_the_token_came_from(endpoint: Endpoint) -> None:
    """The span describes the source of the token but contains no token."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("tests")
    with party() as billing:
        install(settings_for(endpoint, f"{billing.url};audience=billing"))

        def call() -> dict[str, Any]:
            with tracer.start_as_current_span("call", kind=trace.SpanKind.CLIENT) as span:
                requests.get(billing.url)
                span.set_attribute("seen", str(sent(billing)[-1:]))
            return dict(exporter.get_finished_spans()[-1].attributes or {})

        with user(ALICE):
            first, second = call(), call()
        endpoint.respond = lambda form: (400, {"error": "invalid_grant"})
        with user(BOB):
            third = call()
    assert [found["token_relay.exchange.result"] for found in (first, second, third)] == ["miss", "hit", "failed"]
    assert [found["token_relay.decision"] for found in (first, second, third)] == ["exchanged", "exchanged", "withheld"]
    assert [found["token_relay.reason"] for found in (first, second, third)] == [
        "exchanged",
        "exchanged",
        "exchange_failed",
    ]
    assert ".for.billing" not in f"{first}{second}{third}"


def test_no_exception_or_frame_contains_a_token(endpoint: Endpoint) -> None:
    """No exception, and no local variable in its frames, contains a token."""
    endpoint.respond = lambda form: (400, {"error": "invalid_grant"})
    with party() as billing:
        install(settings_for(endpoint, f"{billing.url};audience=billing;required"))
        with user(ALICE), pytest.raises(TokenUnavailable) as caught:
            requests.get(billing.url)
    shown = []
    error: BaseException | None = caught.value
    while error is not None:
        trace_back = error.__traceback__
        while trace_back is not None:
            if "otel_token_relay" in trace_back.tb_frame.f_code.co_filename:
                shown.append(repr(trace_back.tb_frame.f_locals))
            trace_back = trace_back.tb_next
        error = error.__cause__ or error.__context__
    assert shown
    assert not any(ALICE in text or SECRET in text for text in shown)


def test_a_retry_after_a_status_uses_the_same_token(endpoint: Endpoint) -> None:
    """A retry after a 503 response sends the same token."""
    with party() as billing:
        billing.answers.append(Status(503))
        install(settings_for(endpoint, f"{billing.url};audience=billing"))
        with user(ALICE):
            requests.get(billing.url)
            requests.get(billing.url)
        assert sent(billing) == [[f"Bearer {ALICE}.for.billing"]] * 2
    assert len(endpoint.forms) == 1
