"""The relay decides each hop by its rules, for requests that have only a target and headers."""

import asyncio
import base64
import copy
import itertools
import json
import logging
import pickle
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context

from otel_token_relay import BearerToken, Settings, as_service, use_token
from otel_token_relay import context as context_module
from otel_token_relay.context import with_token
from otel_token_relay.errors import TokenUnavailable
from otel_token_relay.exchange.tokens import DestinationTokens
from otel_token_relay.reasons import Reason
from otel_token_relay.relay import Exchange, Hop, Relay
from otel_token_relay.testing import assert_never_leaked
from otel_token_relay.token import Lease
from tests.support.token_endpoint import SECRET, Endpoint, verified

NOW = 1_000_000.0
OPAQUE = "opaque-token-0001"
LISTED = ("https", "a", None)


def jwt(**claims):
    """Build an unsigned JWT."""
    return f"e30.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.s"


class Request:
    """A request without a client."""

    def __init__(self, target=LISTED, *headers):
        self.target = target
        self.headers = headers


def decide(token, request=None, context=None, **settings):
    """Return the header value that one hop writes, and the reason."""
    settings = {"destinations": ("https://a",)} | settings
    relay = Relay(Settings(**settings), now=lambda: NOW, monotonic=lambda: 1000.0)
    reasons = []
    relay._record = lambda reason, *_, **__: reasons.append(reason)
    relay._is_watched = lambda _: True
    if isinstance(token, str):
        token = BearerToken(token, lease=Lease())
    value = relay.decide(
        request or Request(),
        lambda r: r.target,
        lambda r, name: name in r.headers,
        with_token(token, context or Context()),
    )
    return value, *reasons


def test_a_listed_destination_gets_the_token():
    """A listed destination gets the token in a header value that contains the scheme."""
    assert decide(OPAQUE) == (f"Bearer {OPAQUE}", Reason.RELAYED)


def test_a_custom_header_contains_only_the_token():
    """A custom header, such as the header for a transaction token, contains only the token."""
    assert decide(OPAQUE, header="Txn-Token") == (OPAQUE, Reason.RELAYED)


@pytest.mark.parametrize(
    "target", [("http", "a", None), ("https", "b", None), ("https", "a", 444), ("https", "a\\@b", None), ("", "", 0)]
)
def test_another_origin_gets_no_token(target):
    """An origin with a different scheme, host, or port gets no token."""
    assert decide(OPAQUE, Request(target)) == (None, Reason.DESTINATION_NOT_LISTED)


def test_without_a_token_nothing_is_relayed():
    """Without a token, nothing is relayed to any destination."""
    assert decide(None) == (None, Reason.NO_TOKEN)


def test_an_empty_list_relays_nothing():
    """An empty list, which is the default, relays nothing."""
    assert decide(OPAQUE, destinations=()) == (None, Reason.DESTINATION_NOT_LISTED)


def test_an_explicit_credential_wins():
    """An explicit credential of any kind takes precedence."""
    assert decide(OPAQUE, Request(LISTED, "authorization")) == (None, Reason.EXPLICIT_CREDENTIAL)


def test_an_explicit_credential_can_be_replaced():
    """With `on_conflict="replace"`, the token replaces an explicit credential."""
    assert decide(OPAQUE, Request(LISTED, "authorization"), on_conflict="replace")[1] is Reason.RELAYED


def test_only_the_header_that_is_written_is_a_conflict():
    """Only an existing header with the configured name is a conflict, so a transaction token can be sent with other
    credentials.
    """
    assert decide(OPAQUE, Request(LISTED, "authorization"), header="Txn-Token")[1] is Reason.RELAYED
    assert decide(OPAQUE, Request(LISTED, "txn-token"), header="Txn-Token")[1] is Reason.EXPLICIT_CREDENTIAL


def test_a_token_whose_lease_has_ended_is_not_relayed():
    """A token whose lease has ended is not relayed."""
    lease = Lease()
    lease.end()

    assert decide(BearerToken(OPAQUE, lease=lease)) == (None, Reason.LEASE_ENDED)


@pytest.mark.parametrize(("age", "reason"), [(299.9, Reason.RELAYED), (300.0, Reason.TOO_OLD), (300.1, Reason.TOO_OLD)])
def test_a_token_without_a_lease_becomes_too_old(age, reason):
    """A token without a lease is too old as soon as it reaches the maximum age."""
    assert decide(BearerToken(OPAQUE, received_at=1000.0 - age))[1] is reason


def test_a_leased_token_does_not_become_too_old():
    """A token with an open lease does not expire because of its age while its request streams."""
    assert decide(BearerToken(OPAQUE, lease=Lease(), received_at=0.0))[1] is Reason.RELAYED


@pytest.mark.parametrize(
    ("ttl", "min_ttl", "reason"),
    [
        (0.5, 0, Reason.RELAYED),
        (0, 0, Reason.EXPIRED),
        (-1, 0, Reason.EXPIRED),
        (30.5, 30, Reason.RELAYED),
        (30, 30, Reason.EXPIRED),
    ],
)
def test_a_jwt_must_have_its_minimum_time_to_live(ttl, min_ttl, reason):
    """A JWT is relayed only if it is valid for longer than the minimum time to live."""
    assert decide(jwt(exp=NOW + ttl), min_ttl=min_ttl)[1] is reason


def test_a_sender_constrained_token_is_not_relayed():
    """A sender-constrained token is not relayed, because it would be downgraded to a plain bearer token."""
    assert decide(jwt(cnf={"jkt": "x"})) == (None, Reason.SENDER_CONSTRAINED)


def test_an_unverified_token_is_withheld_if_verification_is_required():
    """An unverified token is withheld if verification is required."""
    assert decide(OPAQUE, require_verified=True) == (None, Reason.NOT_VERIFIED)


@pytest.mark.parametrize("parameter", ["audience", "scope", "resource"])
def test_a_destination_with_an_exchange_never_gets_the_callers_token(parameter):
    """A destination with an exchange gets no token if no token endpoint is configured."""
    assert decide(OPAQUE, destinations=(f"https://a;{parameter}=x",)) == (None, Reason.EXCHANGE_FAILED)


@pytest.mark.parametrize(
    "key", [otel_context._SUPPRESS_INSTRUMENTATION_KEY, "suppress_instrumentation"], ids=["new", "old"]
)
def test_hops_of_exporters_get_no_token_and_are_not_recorded(key):
    """An exporter's hops get no token and are not recorded, because they do not belong to the caller's request."""
    assert decide(OPAQUE, context=Context({key: True})) == (None,)


def test_suppressed_http_instrumentation_does_not_affect_the_relay():
    """The relay ignores the suppression of HTTP instrumentation, which instrumentation sets during the application's
    own call.
    """
    context = Context({otel_context._SUPPRESS_HTTP_INSTRUMENTATION_KEY: True})

    assert decide(OPAQUE, context=context)[1] is Reason.RELAYED


def test_a_forked_child_relays_nothing(monkeypatch):
    """A forked child relays nothing, because a token is usable only in the process that received it."""
    token = BearerToken(OPAQUE, lease=Lease())
    monkeypatch.setattr("os.getpid", lambda: token.pid + 1)

    assert decide(token) == (None, Reason.OTHER_PROCESS)


def test_a_closed_relay_relays_nothing():
    """A closed relay relays nothing, so wrappers that cannot be removed have no effect."""
    relay = Relay(Settings(destinations=("https://a;required",)))
    relay.close()

    assert relay.decide(None, lambda r: LISTED, lambda r, n: False, with_token(BearerToken(OPAQUE))) is None


class TestRequired:
    """A destination that must not be called without a token."""

    REQUIRED = ("https://a;required",)

    @pytest.mark.parametrize("token", [None, BearerToken(OPAQUE, received_at=-1e9), jwt(exp=1), jwt(cnf={})])
    def test_the_call_fails(self, token):
        """The error contains the reason but not the token."""
        with pytest.raises(TokenUnavailable) as failure:
            decide(token, destinations=self.REQUIRED)

        assert failure.value.destination == "https://a;required"
        assert failure.value.reason.value in str(failure.value)
        assert_never_leaked(OPAQUE, str(failure.value), repr(failure.value))

    def test_a_valid_token_is_relayed(self):
        """A valid token is relayed with `required` as it is without it."""
        assert decide(OPAQUE, destinations=self.REQUIRED)[1] is Reason.RELAYED

    def test_a_request_with_its_own_credential_is_sent(self):
        """A request that has its own credential is sent to a required destination."""
        for token in (None, OPAQUE):
            outcome = decide(token, Request(LISTED, "authorization"), destinations=self.REQUIRED)
            assert outcome == (None, Reason.EXPLICIT_CREDENTIAL)

    def test_telemetry_is_sent(self):
        """An exporter can send its spans to a required destination."""
        context = Context({"suppress_instrumentation": True})

        assert decide(None, context=context, destinations=self.REQUIRED) == (None,)

    def test_other_destinations_are_not_affected(self):
        """Requests to other destinations are sent without a token."""
        assert decide(None, Request(("https", "b", None)), destinations=self.REQUIRED) == (None, Reason.NO_TOKEN)


@pytest.mark.parametrize("unreadable", ["target", "headers"])
def test_an_unreadable_request_is_sent_without_the_token(unreadable, caplog):
    """An error in the package's code does not stop the application's request, which is sent without the token."""
    relay = Relay(Settings(destinations=("https://a",)))

    def target_of(request):
        if unreadable == "target":
            raise RuntimeError("no target")
        return LISTED

    def has_header(request, name):
        raise RuntimeError("no headers")

    with caplog.at_level(logging.DEBUG):
        assert relay.decide(None, target_of, has_header, with_token(BearerToken(OPAQUE))) is None
    assert_never_leaked(OPAQUE, caplog.text)


def test_a_span_or_meter_that_raises_does_not_change_the_decision():
    """A span or a meter that raises an error does not change the decision."""

    class Broken(trace.NonRecordingSpan):
        def is_recording(self):
            raise RuntimeError

    context = trace.set_span_in_context(Broken(trace.INVALID_SPAN_CONTEXT), Context())
    relay = Relay(Settings(destinations=("https://a",)))

    value = relay.decide(None, lambda r: LISTED, lambda r, n: False, with_token(BearerToken(OPAQUE), context))

    assert value == f"Bearer {OPAQUE}"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://a/x", Reason.RELAYED),
        ("https://b/x", Reason.DESTINATION_NOT_LISTED),
        ("https://u@a/x", Reason.EXPLICIT_CREDENTIAL),
        ("https://u@a@b/x", Reason.DESTINATION_UNKNOWN),
        ("https://c/x", Reason.EXCHANGE_FAILED),
        ("https://d/x", Reason.DESTINATION_NOT_LISTED),
    ],
)
def test_a_url_is_explained(url, reason):
    """The explanation of a URL assumes a valid token."""
    relay = Relay(Settings(destinations=("https://a", "https://c;audience=c", "https://d;never")))

    assert relay.explain(url).decision.reason is reason


ENTRIES = ("https://a", "https://*;required", "https://b;audience=b", "https://b:1;never")


@pytest.mark.parametrize("credential", ["", "me:pw@"])
@pytest.mark.parametrize("host", ["a", "b", "c"])
@pytest.mark.parametrize("port", [None, 1])
@pytest.mark.parametrize("settings", [{}, {"on_conflict": "replace"}, {"require_verified": True}], ids=str)
@pytest.mark.parametrize("without_user", [False, True])
def test_the_explanation_is_the_decision(credential, host, port, settings, without_user):
    """A hop with the same target and headers has the explained reason, and fails if the explanation
    says that it fails.
    """
    settings = Settings(destinations=ENTRIES, **settings)
    explanation = Relay(settings).explain(
        f"https://{credential}{host}{'' if port is None else f':{port}'}/x", without_user=without_user
    )
    relay = Relay(settings)
    reasons = []
    relay._record = lambda reason, *_, **__: reasons.append(reason)
    relay._is_watched = lambda _: True
    request = Request(("https", host, port), *(["authorization"] if credential else []))
    context = Context() if without_user else with_token(BearerToken(OPAQUE, lease=Lease()), Context())
    try:
        relay.decide(request, lambda r: r.target, lambda r, name: name in r.headers, context)
        failed = False
    except TokenUnavailable:
        failed = True

    assert (explanation.decision.reason, explanation.fails) == (*reasons, failed)


def test_an_excluded_destination_gets_no_token():
    """An excluded destination gets no token, even if a wider entry matches."""
    excluded = {"destinations": ("https://*;required", "https://a;never")}

    assert decide(OPAQUE, **excluded) == (None, Reason.DESTINATION_NOT_LISTED)
    assert decide(None, **excluded) == (None, Reason.NO_TOKEN)


def unbound(relay, target=LISTED):
    """Decide one hop in a context that no boundary or `use_token` has changed."""
    reasons = []
    relay._record = lambda reason, *_, **__: reasons.append(reason)
    relay._is_watched = lambda _: True
    relay.decide(Request(target), lambda r: r.target, lambda r, name: False, Context())
    return reasons


def test_a_call_outside_any_request_has_a_reason_of_its_own():
    """A call outside any request has its own reason, which differs from that of a request without a token."""
    relay = Relay(Settings(destinations=("https://a",)))
    assert unbound(relay) == unbound(relay, ("https", "b", None)) == [Reason.NO_BOUNDARY]
    assert unbound(Relay(Settings())) == [Reason.NO_BOUNDARY]


@pytest.mark.parametrize(
    ("target", "bound_before", "warnings"),
    [(LISTED, False, 1), (LISTED, True, 0), (("https", "b", None), False, 0)],
    ids=["listed", "something was bound", "not listed"],
)
def test_a_process_that_never_bound_anything_warns_once(monkeypatch, caplog, target, bound_before, warnings):
    """A process with destinations that never bound a token warns once, because its server is probably not hooked."""
    monkeypatch.setattr("otel_token_relay.context.has_bound", bound_before)
    relay = Relay(Settings(destinations=("https://a",)))
    for _ in range(3):
        unbound(relay, target)

    messages = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(messages) == warnings
    assert all("https://a" in message and "not hooked" in message for message in messages)


def test_a_bound_token_or_its_absence_is_remembered(monkeypatch):
    """Binding a token, or its absence, marks the process as one that serves requests."""
    monkeypatch.setattr("otel_token_relay.context.has_bound", False)
    with_token(None, Context())
    assert context_module.has_bound


def early(token=None, *, entry="https://a", now=lambda: NOW, **settings):
    """Decide one hop of a request that might wait. Return the relay, the hop, and the recorded reasons."""
    relay = Relay(Settings(destinations=(entry,), **settings), now=now)
    reasons = []
    relay._record = lambda reason, *_, **__: reasons.append(reason)
    relay._is_watched = lambda _: True
    token = BearerToken(OPAQUE, lease=Lease()) if token is None else token
    hop = relay.decide(
        Request(),
        lambda r: r.target,
        lambda r, name: name in r.headers,
        with_token(token, Context()),
        is_final=False,
    )
    return relay, hop, reasons


def test_a_hop_that_waits_is_recorded_when_it_is_confirmed():
    """A hop that waits is recorded when it is confirmed, with the header value that `decide` returns otherwise."""
    _, hop, reasons = early()
    assert (reasons, hop.is_recorded) == ([], False)

    assert hop.confirm()
    assert (reasons, hop.is_recorded) == ([Reason.RELAYED], True)
    assert (hop.header, hop.reveal()) == ("authorization", f"Bearer {OPAQUE}")


@pytest.mark.parametrize("entry", ["https://b", "https://a;audience=x"])
def test_a_hop_that_gets_no_token_is_recorded_at_once(entry):
    """A hop that gets no token is recorded immediately, because there is nothing to check again."""
    _, hop, reasons = early(entry=entry)

    assert hop is None
    assert len(reasons) == 1


@pytest.mark.parametrize("entry", ["https://a", "https://a;required"])
def test_a_lease_that_ends_before_the_hop_is_confirmed(entry):
    """If the lease ends before the hop is confirmed, the token is not sent, and a required token stops the request."""
    token = BearerToken(OPAQUE, lease=Lease())
    _, hop, reasons = early(token, entry=entry)
    token.lease.end()

    if entry.endswith("required"):
        with pytest.raises(TokenUnavailable) as caught:
            hop.confirm()
        assert caught.value.reason is Reason.LEASE_ENDED
    else:
        assert not hop.confirm()
    assert (reasons, hop.is_recorded) == ([Reason.LEASE_ENDED], True)


@pytest.mark.parametrize(("later", "reason"), [(9, Reason.RELAYED), (10, Reason.EXPIRED)])
def test_a_token_that_has_expired_by_the_time_the_hop_is_confirmed(later, reason):
    """The minimum time to live applies when the hop is confirmed, so a token that has expired by then is not sent."""
    times = [NOW]
    _, hop, reasons = early(BearerToken(jwt(exp=NOW + 60)), now=lambda: times[-1], min_ttl=50)
    times.append(NOW + later)

    assert hop.confirm() is (reason is Reason.RELAYED)
    assert reasons == [reason]


def test_a_closed_relay_confirms_nothing():
    """A closed relay does not confirm or record a hop."""
    relay, hop, reasons = early()
    relay.close()

    assert not hop.confirm()
    assert (reasons, hop.is_recorded) == ([], True)


def test_a_check_that_raises_withholds_the_token():
    """A check that raises an error withholds the token, and the application's request continues."""

    class Broken:
        claims, expires_at = {}, None

        def is_still_valid(self):
            if states:
                raise RuntimeError
            return True

    states = []
    token = BearerToken(OPAQUE, lease=Lease())
    token.mark_verified(Broken())
    _, hop, reasons = early(token)
    states.append("broken")

    assert not hop.confirm()
    assert reasons == [Reason.NOT_VERIFIED]


def test_a_hop_does_not_show_its_token():
    """The `repr` of a hop, which a client library keeps with the request, does not contain the token."""
    _, hop, _ = early()

    assert OPAQUE not in repr(hop)
    assert copy.deepcopy({"hop": hop})["hop"] is hop
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(hop)


def may_send(token, url="https://a/me", *headers, relay=None, context=None, **settings):
    """Return whether `Relay.may_send` allows a token for the request, in a context with *token*."""
    relay = relay or Relay(Settings(**({"destinations": ("https://a",)} | settings)), now=lambda: NOW)
    relay._record = lambda *_, **__: pytest.fail("a cache makes no decision")
    bound = Context(context or {}) if token == "unbound" else with_token(token, Context(context or {}))
    attached = otel_context.attach(bound)
    try:
        return relay.may_send(url, headers.__contains__)
    finally:
        otel_context.detach(attached)


OWN = {"destinations": ("https://a;audience=b;without-user=client",)}


class TestMaySend:
    """Caches must not respond to requests that can get a token."""

    @pytest.mark.parametrize("url", ["https://a", "https://A:443/x?y=1", "HTTPS://a./", "https://u:p@a/"])
    def test_a_token_and_a_listed_destination(self, url):
        """A request to a listed destination can get the token, regardless of the URL's spelling."""
        assert may_send(BearerToken(OPAQUE, lease=Lease()), url)

    @pytest.mark.parametrize("url", ["https://b/", "http://a/", "https://a:444/", "https://b/?to=https://a/"])
    def test_another_origin(self, url):
        """A request to an unlisted origin gets no token, so its responses are the same for all callers."""
        assert not may_send(BearerToken(OPAQUE), url)

    @pytest.mark.parametrize("url", ["/me", "", "https://", "https://a\\@b/", "https://a:x/", "\ud800", "https://[/"])
    def test_a_url_that_cannot_be_read(self, url):
        """A request whose URL cannot be read fails closed, because its destination is known only below the cache."""
        assert may_send(BearerToken(OPAQUE), url)

    def test_headers_that_cannot_be_read(self):
        """A request whose headers cannot be read fails closed."""

        class Unreadable(tuple):
            def __contains__(self, name):
                raise RuntimeError

        relay = Relay(Settings(destinations=("https://a",)))
        with_a_token = otel_context.attach(with_token(BearerToken(OPAQUE), Context()))
        try:
            assert relay.may_send("https://a/", Unreadable().__contains__)
        finally:
            otel_context.detach(with_a_token)

    def test_a_token_that_may_no_longer_be_sent(self):
        """A cached response can be personal even if the token can no longer be sent."""
        lease = Lease()
        lease.end()

        assert may_send(BearerToken(OPAQUE, lease=lease))

    @pytest.mark.parametrize("token", [None, "unbound"])
    def test_no_token(self, token):
        """Without a token, the cache works as without the relay."""
        assert not may_send(token)

    def test_an_explicit_credential(self):
        """A request with an explicit credential is sent unchanged, unless the credential is replaced."""
        token = BearerToken(OPAQUE)

        assert not may_send(token, "https://a/", "authorization")
        assert may_send(token, "https://a/", "authorization", on_conflict="replace")
        assert may_send(token, "https://a/", "authorization", header="Txn-Token")
        assert not may_send(token, "https://a/", "txn-token", header="Txn-Token")

    @pytest.mark.parametrize("key", ["suppress_instrumentation", "suppress_http_instrumentation"])
    def test_suppression(self, key):
        """An exporter's requests get no token, as for `decide`."""
        key = otel_context._SUPPRESS_INSTRUMENTATION_KEY if key == "suppress_instrumentation" else key

        assert may_send(BearerToken(OPAQUE), context={key: True}) is (key == "suppress_http_instrumentation")

    def test_a_closed_relay_and_an_empty_list(self):
        """A closed relay and an empty list send no token."""
        relay = Relay(Settings(destinations=("https://a",)))
        relay.close()

        assert not may_send(BearerToken(OPAQUE), relay=relay)
        assert not may_send(BearerToken(OPAQUE), destinations=())

    def test_a_token_of_the_services_own(self, monkeypatch):
        """A token of the service itself is sent outside any request, if the destination permits it."""
        monkeypatch.setattr(context_module, "has_served", False)
        assert may_send("unbound", **OWN)
        assert not may_send("unbound", "https://b/", **OWN)
        assert not may_send("unbound", "https://c/", destinations=("https://c;audience=d", *OWN["destinations"]))

        monkeypatch.setattr(context_module, "has_served", True)
        assert not may_send("unbound", **OWN)
        assert not may_send(None, **OWN)


BILLING = ("https", "billing", None)
BILLING_ENTRY = "https://billing;audience=billing"
ALICE, BOB = "alice-has-this-token-0001", "bob-has-that-token-0002"
INVALID = ('Bearer realm="billing", error="invalid_token"',)


class Exchanging:
    """A relay that obtains tokens from a token endpoint.

    Attributes:
        relay: The relay.
        recorded: The reason for each decision, and how the token was obtained.
    """

    def __init__(self, endpoint: Endpoint, *entries: str, **settings: Any) -> None:
        made = Settings(
            destinations=entries or (BILLING_ENTRY,),
            token_endpoint=endpoint.url,
            client_id="user-service",
            client_secret=SECRET,
            **settings,
        )
        self.relay = Relay(made, DestinationTokens(made))
        self.recorded: list[tuple[Reason, str | None]] = []
        self.relay._record = self._record  # type: ignore[method-assign]

    def _record(self, reason: Reason, context: Any, entry: Any = None, target: Any = None, how: Any = None) -> None:
        self.recorded.append((reason, how))

    def decide(self, token: BearerToken | None, *headers: str, target: Any = BILLING, **options: Any) -> Any:
        """Decide one hop to the billing service."""
        return self.relay.decide(
            Request(target, *headers),
            lambda request: request.target,
            lambda request, name: name in request.headers,
            with_token(token, Context()),
            **options,
        )


@pytest.fixture
def numbered(endpoint: Endpoint) -> Endpoint:
    """A token endpoint that issues a different token for each request."""
    count = itertools.count(1)
    endpoint.respond = lambda form: (200, endpoint.issue(form)[1] | {"access_token": f"issued-{next(count)}"})
    return endpoint


def test_a_destination_gets_a_token_that_is_obtained_in_exchange(endpoint: Endpoint) -> None:
    """The first hop exchanges the caller's token, later hops of the same caller use the cached token, and each caller
    has a different one.
    """
    billing = Exchanging(endpoint)
    alice, bob = verified(ALICE), verified(BOB)

    assert [billing.decide(token) for token in (alice, alice, bob)] == [
        f"Bearer {ALICE}.for.billing",
        f"Bearer {ALICE}.for.billing",
        f"Bearer {BOB}.for.billing",
    ]
    assert billing.recorded == [(Reason.EXCHANGED, "miss"), (Reason.EXCHANGED, "hit"), (Reason.EXCHANGED, "miss")]
    assert [form["subject_token"] for form in endpoint.forms] == [ALICE, BOB]


def test_a_hop_that_waits_is_checked_again_with_its_exchanged_token(endpoint: Endpoint) -> None:
    """A hop that waits has the exchanged token for its own origin, and is recorded when it is confirmed."""
    billing = Exchanging(endpoint)
    hop = billing.decide(verified(ALICE), is_final=False)

    assert isinstance(hop, Hop)
    assert hop.reveal() == f"Bearer {ALICE}.for.billing"
    assert hop.is_for(("https", "Billing", 443))
    assert not hop.is_for(("http", "billing", 443))
    assert not hop.is_for(("https", "orders", None))
    assert billing.recorded == []
    assert hop.confirm()
    assert billing.recorded == [(Reason.EXCHANGED, "miss")]


def test_on_an_event_loop_the_token_is_awaited(endpoint: Endpoint) -> None:
    """On an event loop, `decide` returns an exchange to await, and returns the header value if the token is cached."""
    billing = Exchanging(endpoint)
    alice = verified(ALICE)
    exchange = billing.decide(alice, may_block=False)

    assert isinstance(exchange, Exchange)
    assert endpoint.forms == []
    assert asyncio.run(exchange.run_async()) == f"Bearer {ALICE}.for.billing"
    assert billing.decide(alice, may_block=False) == f"Bearer {ALICE}.for.billing"
    assert billing.recorded == [(Reason.EXCHANGED, "miss"), (Reason.EXCHANGED, "hit")]


@pytest.mark.parametrize("way", ["run", "run_async"])
def test_a_failed_exchange_sends_no_token(endpoint: Endpoint, way: str) -> None:
    """If the exchange fails, no token is sent, and a required token stops the request with the claims challenge."""
    challenge = '{"access_token":{"acrs":{"essential":true}}}'
    endpoint.respond = lambda form: (400, {"error": "interaction_required", "claims": challenge})

    def decide(billing: Exchanging) -> object:
        exchange = billing.decide(verified(ALICE), may_block=False)
        return exchange.run() if way == "run" else asyncio.run(exchange.run_async())

    optional, required = Exchanging(endpoint), Exchanging(endpoint, f"{BILLING_ENTRY};required")
    assert decide(optional) is None
    with pytest.raises(TokenUnavailable) as caught:
        decide(required)
    assert (caught.value.reason, caught.value.claims_challenge) == (Reason.EXCHANGE_FAILED, challenge)
    assert optional.recorded == required.recorded == [(Reason.EXCHANGE_FAILED, "failed")]
    assert_never_leaked(ALICE, str(caught.value), repr(caught.value))


@pytest.mark.parametrize("end", ["lease", "relay"])
def test_a_token_that_arrives_after_the_request_has_ended_is_not_sent(endpoint: Endpoint, end: str) -> None:
    """A token that arrives after the caller's request has ended, or after the relay is closed, is not sent."""
    billing, lease = Exchanging(endpoint), Lease()

    def respond(form: dict[str, str]) -> Any:
        lease.end() if end == "lease" else billing.relay.close()
        return endpoint.issue(form)

    endpoint.respond = respond

    assert billing.decide(verified(ALICE, lease)) is None
    assert len(endpoint.forms) == 1
    assert billing.recorded == ([(Reason.LEASE_ENDED, "failed")] if end == "lease" else [])


def test_a_client_that_cannot_wait_sends_no_token(endpoint: Endpoint) -> None:
    """A client that cannot wait for an exchange sends no token, and a required token stops the request with the error
    of the last attempt.
    """
    optional, required = Exchanging(endpoint), Exchanging(endpoint, f"{BILLING_ENTRY};required")
    assert optional.decide(verified(ALICE), may_block=False).give_up() is None
    assert endpoint.forms == []

    endpoint.respond = lambda form: (400, {"error": "interaction_required", "claims": "{}"})
    with pytest.raises(TokenUnavailable):
        required.decide(verified(ALICE))
    with pytest.raises(TokenUnavailable) as caught:
        required.decide(verified(ALICE), may_block=False).give_up()

    assert caught.value.claims_challenge == "{}"
    assert optional.recorded + required.recorded == [(Reason.EXCHANGE_FAILED, "failed")] * 3
    assert len(endpoint.forms) == 1


def test_a_hop_can_be_prepared_before_the_client_decides_it(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prepared hop has its token when a client that cannot wait decides it, and preparing it records nothing."""
    monkeypatch.setattr(context_module, "has_served", True)
    billing = Exchanging(endpoint, f"{BILLING_ENTRY};without-user=client", "https://a")

    async def decide_prepared() -> Any:
        await billing.relay.prepare_hop(BILLING, has_header=False)
        return billing.relay.decide(None, lambda request: BILLING, lambda request, name: False, may_block=False)

    with use_token(verified(ALICE)):
        assert asyncio.run(decide_prepared()) == f"Bearer {ALICE}.for.billing"
    with as_service():
        assert asyncio.run(decide_prepared()) == "Bearer service.for.billing"
    assert billing.recorded == [(Reason.EXCHANGED, "hit"), (Reason.OWN, "hit")]
    assert len(endpoint.forms) == 2


def test_a_hop_that_will_get_no_exchanged_token_is_not_prepared(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is exchanged in advance for a request that would not get an exchanged token, and a failure in advance
    does not affect the client.
    """
    monkeypatch.setattr(context_module, "has_served", True)
    billing = Exchanging(endpoint, BILLING_ENTRY, "https://a")

    async def prepare(target: Any = BILLING, *, has_header: bool = False) -> None:
        await billing.relay.prepare_hop(target, has_header=has_header)

    asyncio.run(prepare())
    with use_token(ALICE):  # this token is not verified
        asyncio.run(prepare())
    with use_token(verified(ALICE)):
        asyncio.run(prepare(has_header=True))
        asyncio.run(prepare(LISTED))
        asyncio.run(prepare(("https", "unlisted", None)))
        assert endpoint.forms == []
        endpoint.respond = lambda form: (500, {"error": "server_error"})
        asyncio.run(prepare())
    assert len(endpoint.forms) == 1
    assert billing.recorded == []


RETRYING = f"{BILLING_ENTRY};retry=idempotent"


def test_only_an_idempotent_request_with_an_exchanged_token_may_be_repeated(endpoint: Endpoint) -> None:
    """A request may be repeated if its method is idempotent, its token was exchanged, and its entry permits it."""
    retrying = Exchanging(endpoint, RETRYING, "https://a")
    hop = retrying.decide(verified(ALICE), is_final=False)

    assert [method for method in ("GET", "PUT", "POST", "PATCH", "TRACE") if hop.may_repeat(method)] == ["GET", "PUT"]
    assert not retrying.decide(verified(ALICE), target=LISTED, is_final=False).may_repeat("GET")
    assert not Exchanging(endpoint).decide(verified(ALICE), is_final=False).may_repeat("GET")


@pytest.mark.parametrize("way", ["again", "again_async"])
def test_a_rejected_token_is_renewed_once(numbered: Endpoint, way: str) -> None:
    """A rejected token is renewed once, and another request with the rejected token uses the new token after the
    destination has accepted it.
    """
    billing = Exchanging(numbered, RETRYING)
    first, concurrent = (billing.decide(verified(ALICE), is_final=False) for _ in range(2))
    assert first.reveal() == concurrent.reveal() == "Bearer issued-1"

    def renew(hop: Hop, challenges: tuple[str, ...] = INVALID) -> Hop | None:
        return hop.again(challenges) if way == "again" else asyncio.run(hop.again_async(challenges))

    assert renew(first, ('Bearer error="insufficient_scope"', 'Basic realm="billing"')) is None
    second = renew(first)
    assert second is not None
    assert second.reveal() == "Bearer issued-2"
    assert not second.may_repeat("GET")
    second.settle(is_accepted=True)

    joined = renew(concurrent)
    assert joined is not None
    assert joined.reveal() == "Bearer issued-2"
    assert len(numbered.forms) == 2


@pytest.mark.parametrize("way", ["again", "again_async"])
def test_no_request_is_repeated_with_a_token_that_cannot_help(numbered: Endpoint, way: str) -> None:
    """A request is not repeated if the destination has rejected the new token, if the exchange fails, if the caller's
    request has ended, or if the relay is closed.
    """

    def renew(hop: Hop) -> Hop | None:
        return hop.again(INVALID) if way == "again" else asyncio.run(hop.again_async(INVALID))

    billing, lease = Exchanging(numbered, RETRYING), Lease()
    first, concurrent = (billing.decide(verified(ALICE), is_final=False) for _ in range(2))
    second = renew(first)
    assert second is not None
    second.settle(is_accepted=False)
    assert renew(concurrent) is None

    bob, carol, dan = (
        billing.decide(verified(f"{name}-token-0003", lease), is_final=False) for name in ("bob", "carol", "dan")
    )
    erin = billing.decide(verified("erin-token-0003"), is_final=False)
    issue = numbered.respond
    numbered.respond = lambda form: (400, {"error": "invalid_grant"})
    assert renew(bob) is None

    def end_and_issue(form: dict[str, str]) -> Any:
        lease.end()
        return issue(form)

    numbered.respond = end_and_issue
    assert renew(carol) is None
    count = len(numbered.forms)
    assert renew(dan) is None
    billing.relay.close()
    assert renew(erin) is None
    assert len(numbered.forms) == count


def test_the_explanation_assumes_that_the_token_is_verified_if_the_service_verifies_tokens() -> None:
    """A service that verifies tokens relays them with `require_verified`, and other services do not."""
    verifying = {"verify": "enforce", "issuers": ("https://idp.example",), "audience": ("user-service",)}
    for settings, reason in (({}, Reason.NOT_VERIFIED), (verifying, Reason.RELAYED)):
        relay = Relay(Settings(destinations=("https://a",), require_verified=True, **settings))
        assert relay.explain("https://a/me").decision.reason is reason


def test_a_prepared_relay_has_its_counter_before_the_first_hop() -> None:
    """A prepared relay has created its counter, so the first hop does not create it while a lock may be held."""
    relay = Relay(Settings(destinations=("https://a",)))
    assert relay._recorder._counter.created is None

    relay.prepare()

    assert relay._recorder._counter.created is not None
