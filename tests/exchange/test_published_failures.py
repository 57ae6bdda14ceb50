"""Published failures of other projects' token exchanges do not occur in this package.

Each test contains the project's name and the number of the issue, pull request, or advisory. Callers send real tokens
to an application that verifies them. The token endpoint and the destinations are servers on loopback.
"""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient
from urllib3.util import Retry

from otel_token_relay import Settings, as_service, carry, context, current_token, install
from otel_token_relay.configured_exchange import build_token_source
from otel_token_relay.verification import TokenVerifier
from otel_token_relay.verification.asgi import BearerAuthMiddleware
from tests.support.clients import Client, every_client
from tests.support.issuers import Issuer
from tests.support.loopback import Party, Status, party
from tests.support.token_endpoint import ACCESS_TOKEN, SECRET, Endpoint
from tests.support.tokens import AUDIENCE, claims, make_token, unsigned


@pytest.fixture
def billing() -> Iterator[Party]:
    with party() as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start with an empty cache in a process that has served requests."""
    build_token_source.cache_clear()
    monkeypatch.setattr(context, "has_served", True)
    yield
    build_token_source.cache_clear()


def exchanging(endpoint: Endpoint, *destinations: str, **others: Any) -> None:
    """Install a relay that exchanges tokens at the endpoint."""
    install(
        Settings(
            destinations=destinations,
            token_endpoint=endpoint.url,
            client_id="user-service",
            client_secret=SECRET,
            **others,
        )
    )


class Service:
    """An application that verifies its callers' tokens.

    Args:
        issuer: The issuer of the tokens.
        call: The function that the application calls for each request.
    """

    def __init__(self, issuer: Issuer, call: Callable[[Request], object]) -> None:
        def handle(request: Request) -> Response:  # runs in a worker thread
            call(request)
            return Response()

        app = Starlette(routes=[Route("/", handle)])
        app.add_middleware(BearerAuthMiddleware, verifier=TokenVerifier([issuer.url], AUDIENCE))
        self._client = TestClient(app)

    def serve(self, token: str | None, **headers: str) -> int:
        """Serve a request and return its status."""
        own = {} if token is None else {"Authorization": f"Bearer {token}"}
        return self._client.get("/", headers=own | headers).status_code


def token_of(issuer: Issuer, user: str, **changes: Any) -> str:
    return make_token(claims(issuer.url, sub=user, **changes))


def for_billing(*tokens: str) -> list[list[str]]:
    """Return the Authorization lines that billing must receive, one request for each token."""
    return [[f"Bearer {token}.for.billing"] for token in tokens]


def response(**members: Any) -> tuple[int, dict[str, Any]]:
    return 200, {"issued_token_type": ACCESS_TOKEN, "token_type": "Bearer", "expires_in": 300} | members


def subjects(endpoint: Endpoint) -> list[str]:
    return [form["subject_token"] for form in endpoint.forms]


# Another user's token


def test_kagent_2181_two_users_in_one_session(issuer: Issuer, endpoint: Endpoint, billing: Party) -> None:
    """kagent #2181, #2317, #2459, #2460: the cache key was the session, which several users can share."""
    exchanging(endpoint, f"{billing.url};audience=billing")
    sessions = {"shared": requests.Session()}
    service = Service(issuer, lambda request: sessions[request.headers["x-session-id"]].get(billing.url))
    alice, bob = token_of(issuer, "alice"), token_of(issuer, "bob")

    for token in (alice, bob, alice, bob):
        service.serve(token, **{"x-session-id": "shared", "x-user-id": "alice"})

    assert billing.lines() == for_billing(alice, bob, alice, bob)
    assert subjects(endpoint) == [alice, bob]


@pytest.mark.parametrize("email", [..., "", "team@example.com"], ids=["none", "empty", "the same"])
def test_context_forge_5224_users_whose_email_is_unknown(
    issuer: Issuer, endpoint: Endpoint, billing: Party, email: Any
) -> None:
    """mcp-context-forge #5224: the cache key was the email address, which could be empty, instead of the token."""
    exchanging(endpoint, f"{billing.url};audience=billing")
    seen: list[object] = []

    def call(request: Request) -> None:
        requests.get(billing.url)
        seen.append(current_token())

    service = Service(issuer, call)
    alice, bob = token_of(issuer, "alice", email=email), token_of(issuer, "bob", email=email)

    assert [service.serve(token) for token in (alice, bob, None)] == [200, 200, 401]
    requests.get(billing.url)  # the caller has no token
    assert billing.lines() == [*for_billing(alice, bob), []]
    assert len(seen) == 2


def test_resource_linker_42_every_user_after_the_first(issuer: Issuer, endpoint: Endpoint, billing: Party) -> None:
    """Fancy.ResourceLinker #42: all users got the first user's token until the process restarted."""
    exchanging(endpoint, f"{billing.url};audience=billing")
    service = Service(issuer, lambda request: requests.get(billing.url))
    tokens = [token_of(issuer, f"user-{number}") for number in range(10)]

    for token in tokens * 2:
        service.serve(token)

    assert billing.lines() == for_billing(*tokens * 2)
    assert subjects(endpoint) == tokens


def test_hermes_agent_3117_tokens_that_begin_alike(issuer: Issuer, endpoint: Endpoint, billing: Party) -> None:
    """hermes-agent #3117: the cache key was the first 8 characters, which are identical in all of an issuer's JWTs."""
    exchanging(endpoint, f"{billing.url};audience=billing")
    service = Service(issuer, lambda request: requests.get(billing.url))
    alice, bob = token_of(issuer, "alice-0"), token_of(issuer, "alice-1")
    assert alice[:8] == bob[:8] == "eyJhbGci"
    assert alice[: alice.index(".")] == bob[: bob.index(".")]

    for token in (alice, bob, alice):
        service.serve(token)

    assert billing.lines() == for_billing(alice, bob, alice)


def test_adal_249_two_users_on_behalf_of_one_client(issuer: Issuer, endpoint: Endpoint, billing: Party) -> None:
    """ADAL #249: the key of the on-behalf-of cache contained only the client and the resource, not the user."""
    endpoint.respond = lambda form: response(access_token=f"{form['assertion']}.for.billing", issued_token_type=None)
    exchanging(endpoint, f"{billing.url};audience=billing", exchange_grant="on-behalf-of")
    service = Service(issuer, lambda request: requests.get(billing.url))
    alice, bob = token_of(issuer, "alice"), token_of(issuer, "bob")

    for token in (alice, bob, alice, bob):
        service.serve(token)

    assert billing.lines() == for_billing(alice, bob, alice, bob)
    assert [form["assertion"] for form in endpoint.forms] == [alice, bob]
    assert {form["scope"] for form in endpoint.forms} == {"billing/.default"}


def test_azure_samples_98_a_token_from_before_the_second_factor(
    issuer: Issuer, endpoint: Endpoint, billing: Party
) -> None:
    """Azure-Samples #98: a result from before the second factor was still used after the second factor."""
    exchanging(endpoint, f"{billing.url};audience=billing")
    service = Service(issuer, lambda request: requests.get(billing.url))
    user = {"tid": "tenant-1", "oid": "alice-1"}
    before, after = token_of(issuer, "alice", **user), token_of(issuer, "alice", amr=["mfa"], **user)

    for token in (before, after, after):
        service.serve(token)

    assert billing.lines() == for_billing(before, after, after)
    assert subjects(endpoint) == [before, after]


# Wrong scopes


def test_agents_for_js_824_two_scopes_of_one_audience(issuer: Issuer, endpoint: Endpoint) -> None:
    """Agents-for-js #824, Agents-for-net #620: the key did not contain the scope, so two scopes shared a token."""
    endpoint.respond = lambda form: response(access_token=f"for.{form['scope'].replace(':', '.')}")
    with party() as reads, party() as writes:
        exchanging(
            endpoint,
            f"{reads.url};audience=billing;scope=invoices:read",
            f"{writes.url};audience=billing;scope=invoices:write",
        )

        def call(request: Request) -> None:
            for to in (reads, writes, reads, writes):
                requests.get(to.url)

        Service(issuer, call).serve(token_of(issuer, "alice"))
        assert reads.lines() == [["Bearer for.invoices.read"]] * 2
        assert writes.lines() == [["Bearer for.invoices.write"]] * 2
    assert [form["scope"] for form in endpoint.forms] == ["invoices:read", "invoices:write"]


def test_duende_cve_2025_26620_different_parameters_at_the_same_time(issuer: Issuer, endpoint: Endpoint) -> None:
    """CVE-2025-26620 in Duende.AccessTokenManagement: concurrent requests with different parameters shared a token."""
    both_have_arrived = threading.Barrier(2)

    def respond(form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        both_have_arrived.wait(20)
        return response(access_token=f"for.{form['scope']}")

    endpoint.respond = respond
    with party() as reads, party() as writes, ThreadPoolExecutor(2) as pool:
        exchanging(endpoint, f"{reads.url};audience=billing;scope=read", f"{writes.url};audience=billing;scope=write")

        def call(request: Request) -> None:
            hops = [pool.submit(carry(requests.get), to.url) for to in (reads, writes)]
            assert [hop.result(30).status_code for hop in hops] == [200, 200]

        Service(issuer, call).serve(token_of(issuer, "alice"))
        assert reads.lines() == [["Bearer for.read"]]
        assert writes.lines() == [["Bearer for.write"]]


# Tokens that are sent without an exchange


@pytest.mark.parametrize("on_conflict", ["replace", "keep"])
def test_litellm_31526_an_application_that_forwards_its_callers_headers(
    issuer: Issuer, endpoint: Endpoint, billing: Party, on_conflict: Any
) -> None:
    """litellm #31526: a forwarded Authorization header bypassed the exchange, which ``replace`` prevents.

    By default, a header that the application itself has set is kept (promise P4).
    """
    exchanging(endpoint, f"{billing.url};audience=billing", on_conflict=on_conflict)
    alice = token_of(issuer, "alice")

    def call(request: Request) -> None:
        requests.get(billing.url, headers={"authorization": request.headers["authorization"]})

    Service(issuer, call).serve(alice)

    assert billing.lines() == (for_billing(alice) if on_conflict == "replace" else [[f"Bearer {alice}"]])
    assert len(endpoint.forms) == (1 if on_conflict == "replace" else 0)


def test_quarkus_38431_an_id_token_in_place_of_an_access_token(
    issuer: Issuer, endpoint: Endpoint, billing: Party
) -> None:
    """Quarkus #38431: an ID token was relayed, but this package neither accepts nor exchanges ID tokens."""
    exchanging(endpoint, f"{billing.url};audience=billing")
    service = Service(issuer, lambda request: requests.get(billing.url))
    id_token = make_token(claims(issuer.url, nonce="n-1", at_hash="h-1"), typ="JWT")

    assert service.serve(id_token) == 401
    assert billing.lines() == []
    assert endpoint.forms == []

    issued = "urn:ietf:params:oauth:token-type:id_token"
    endpoint.respond = lambda form: response(access_token="id-token-of-alice", issued_token_type=issued)
    assert service.serve(token_of(issuer, "alice")) == 200
    assert billing.lines() == [[]]


def test_casdoor_5875_the_audience_is_ignored_with_status_200(
    issuer: Issuer, endpoint: Endpoint, billing: Party, caplog: pytest.LogCaptureFixture
) -> None:
    """casdoor #5875: the scope was reduced, but the issued token's audience was the requesting client."""
    exchanging(endpoint, f"{billing.url};audience=billing;scope=openid")
    ignoring = unsigned(
        {"alg": "RS256", "typ": "JWT"}, {"aud": ["user-service"], "azp": "user-service", "scope": "openid"}, "c2ln"
    )
    endpoint.respond = lambda form: response(access_token=ignoring)

    Service(issuer, lambda request: requests.get(billing.url)).serve(token_of(issuer, "alice"))

    assert billing.lines() == [[]]
    assert "wrong_audience" in caplog.text
    assert ignoring not in caplog.text


# Missing caches


@pytest.mark.parametrize("grant", ["token-exchange", "on-behalf-of"])
def test_fastmcp_3212_every_tool_call_was_a_round_trip(
    issuer: Issuer, endpoint: Endpoint, billing: Party, grant: Any
) -> None:
    """FastMCP #3212, MSAL Python's ``acquire_token_on_behalf_of``: every call made a round trip."""
    endpoint.respond = lambda form: response(access_token="issued.for.billing")
    exchanging(endpoint, f"{billing.url};audience=billing", exchange_grant=grant)
    service = Service(issuer, lambda request: requests.get(billing.url))  # each tool call is one request
    alice = token_of(issuer, "alice")

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: service.serve(alice), range(10))) == [200] * 10

    assert billing.lines() == [["Bearer issued.for.billing"]] * 10
    assert len(endpoint.forms) == 1


# Work after the end of the request


def test_fastmcp_4747_a_token_in_a_message_queue(issuer: Issuer, endpoint: Endpoint) -> None:
    """FastMCP #4747: the token was written to Redis in plain text, but this package's tokens cannot be serialized."""
    install(Settings())
    exchanger = endpoint.exchanger()
    checked: list[str] = []

    def call(request: Request) -> None:
        caller = current_token()
        assert caller is not None
        for token in (caller, exchanger.exchange(caller, audience="billing")):
            for write in (pickle.dumps, json.dumps):
                with pytest.raises(TypeError) as refused:
                    write({"task": "report", "token": token})
                assert token.reveal() not in f"{refused.value}{token}{token!r}"
            checked.append(token.reveal())

    alice = token_of(issuer, "alice")
    assert Service(issuer, call).serve(alice) == 200
    assert checked == [alice, f"{alice}.for.billing"]


def test_spring_cloud_security_125_a_background_task_with_an_expired_token(
    issuer: Issuer, endpoint: Endpoint, billing: Party
) -> None:
    """spring-cloud-security #125: a task relayed the user's expired token instead of the service's own token."""
    exchanging(endpoint, f"{billing.url};audience=billing;without-user=client")
    tasks: list[Callable[[], object]] = []
    service = Service(issuer, lambda request: tasks.append(carry(lambda: requests.get(billing.url), seconds=600)))
    service.serve(token_of(issuer, "alice", exp=int(time.time()) + 1))
    time.sleep(1.1)

    tasks[0]()  # the task still acts on behalf of the user
    with as_service():
        requests.get(billing.url)

    assert billing.lines() == [[], ["Bearer service.for.billing"]]
    assert [form["grant_type"] for form in endpoint.forms] == ["client_credentials"]


# Retries after status 401


@every_client
def test_google_cloud_python_18238_a_body_is_not_lost(client: Client, endpoint: Endpoint) -> None:
    """google-cloud-python #18238: a request that waited for its token was sent with an empty body."""
    with client.party() as billing:
        exchanging(endpoint, f"{billing.url};audience=billing", exchange_unverified=True)
        with context.use_token("alice-has-this-token"):
            client.call(billing.url, method="POST", body=[b"one,", b"two"])
        assert billing.lines() == for_billing("alice-has-this-token")
        assert billing.requests[0].body == b"one,two"


def test_abs_cli_89_a_retry_after_401_has_the_body_and_the_token(
    issuer: Issuer, endpoint: Endpoint, billing: Party
) -> None:
    """abs-cli #89: the second attempt had no body, and the caller got the first response."""
    exchanging(endpoint, f"{billing.url};audience=billing")
    billing.answers.append(Status(401))
    statuses: list[int] = []

    def call(request: Request) -> None:
        with requests.Session() as session:
            session.mount("http://", HTTPAdapter(max_retries=Retry(1, status_forcelist=[401], allowed_methods=None)))
            statuses.append(session.post(billing.url, data=b"an invoice").status_code)

    alice = token_of(issuer, "alice")
    Service(issuer, call).serve(alice)

    assert statuses == [200]
    assert billing.lines() == for_billing(alice, alice)
    assert [request.body for request in billing.requests] == [b"an invoice"] * 2
    assert subjects(endpoint) == [alice]


@every_client
def test_bifrost_17_a_request_object_of_another_user(client: Client, endpoint: Endpoint) -> None:
    """bifrost #17: a retry reused the first attempt's header, but in this package each send gets its own token."""
    with client.party() as billing:
        exchanging(endpoint, f"{billing.url};audience=billing", exchange_unverified=True)
        with client.reusing(billing.url) as send:
            for token in ("alice-token-1", "bob-token-1", "alice-token-2"):
                with context.use_token(token):
                    send()
            send()
        assert billing.lines() == [*for_billing("alice-token-1", "bob-token-1", "alice-token-2"), []]


@every_client
def test_gascity_5520_a_post_is_not_repeated(client: Client, endpoint: Endpoint) -> None:
    """gascity #5520: unsafe methods were repeated after status 401, but this package never repeats them by itself."""
    with client.party() as billing:
        billing.answers.append(Status(401))
        exchanging(endpoint, f"{billing.url};audience=billing", exchange_unverified=True)
        with context.use_token("alice-has-this-token"):
            client.call(billing.url, method="POST", body=[b"an invoice"])
        assert len(billing.requests) == 1
    assert len(endpoint.forms) == 1


@pytest.mark.parametrize("destination", ["accepts", "refuses"])
def test_spring_security_oauth_491_tokens_that_are_never_valid(
    issuer: Issuer, endpoint: Endpoint, billing: Party, destination: str
) -> None:
    """spring-security-oauth #491: tokens were refreshed endlessly, but this package makes a single exchange."""
    if destination == "accepts":  # every issued token has already expired
        endpoint.respond = lambda form: response(access_token="short-lived", expires_in=0)
    else:
        billing.answers.extend([Status(401)] * 5)
    exchanging(endpoint, f"{billing.url};audience=billing")

    def call(request: Request) -> None:
        for _ in range(5):
            requests.get(billing.url)

    Service(issuer, call).serve(token_of(issuer, "alice"))

    assert len(billing.requests) == 5
    assert len(endpoint.forms) == 1


# The service's own token


def test_cortex_174_a_users_call_does_not_become_the_services_own(
    issuer: Issuer, endpoint: Endpoint, billing: Party
) -> None:
    """cortex #174: if a user's token could not be exchanged, the call silently used the service's own token."""

    def respond(form: dict[str, str]) -> tuple[int, Any]:
        return endpoint.issue(form) if form["grant_type"] == "client_credentials" else (400, {"error": "invalid_grant"})

    endpoint.respond = respond
    exchanging(endpoint, f"{billing.url};audience=billing;without-user=client")
    with as_service():
        requests.get(billing.url)  # cache the service's own token

    async def tool() -> None:
        await asyncio.to_thread(requests.get, billing.url)

    def call(request: Request) -> None:
        requests.get(billing.url)
        asyncio.run(tool())

    Service(issuer, call).serve(token_of(issuer, "alice"))
    requests.get(billing.url)  # the request's context is lost

    assert billing.lines() == [["Bearer service.for.billing"], [], [], []]


def test_litellm_27306_the_services_own_token_is_cached(endpoint: Endpoint, billing: Party) -> None:
    """litellm #27306: calls without a user bypassed the cache and the lock, so each call made a round trip."""
    exchanging(endpoint, f"{billing.url};audience=billing;without-user=client")

    def job(_: int) -> None:
        with as_service():
            requests.get(billing.url)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(job, range(10)))

    assert billing.lines() == [["Bearer service.for.billing"]] * 10
    assert len(endpoint.forms) == 1


# Missing actors


@pytest.mark.parametrize("chain", [{}, {"act": {"sub": "gateway"}}], ids=["meho-1051", "keycloak-52691"])
def test_meho_1051_the_actor_is_ignored(
    issuer: Issuer, endpoint: Endpoint, billing: Party, caplog: pytest.LogCaptureFixture, chain: dict[str, Any]
) -> None:
    """meho #1051, Keycloak #52691: the server ignored ``actor_token`` or lost an earlier chain of actors."""
    issued = unsigned({"alg": "RS256"}, {"aud": "billing", "azp": "user-service", "sub": "alice"}, "c2ln")

    def respond(form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        is_own = form["grant_type"] == "client_credentials"
        return response(access_token="token-of-the-service" if is_own else issued)

    endpoint.respond = respond
    exchanging(endpoint, f"{billing.url};audience=billing", exchange_actor="client")
    service = Service(issuer, lambda request: requests.get(billing.url))

    for number in range(3):
        service.serve(token_of(issuer, f"user-{number}", **chain))

    assert billing.lines() == [[f"Bearer {issued}"]] * 3
    assert [form.get("actor_token") for form in endpoint.forms] == [None] + ["token-of-the-service"] * 3
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "does not identify an actor (act)" in warnings[0]
    assert not any(token in warnings[0] for token in (*subjects_and_actors(endpoint), issued))


def subjects_and_actors(endpoint: Endpoint) -> list[str]:
    return [form[name] for form in endpoint.forms for name in ("subject_token", "actor_token") if name in form]
