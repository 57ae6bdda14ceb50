"""`extract` binds a token, and `inject` writes it only for a listed destination."""

import logging

import pytest
from opentelemetry import context as otel_context
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_token_relay import Settings, TokenRelayPropagator, context, current_token, to_destination, use_token
from otel_token_relay.context import NOT_FOUND_KEY, TOKEN_KEY, bound_token
from otel_token_relay.testing import assert_never_leaked

TOKEN = "alice-token-0001"
AUTHORIZATION = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def propagator():
    """A propagator that can relay to https://a."""
    return TokenRelayPropagator(Settings(destinations=("https://a",)))


@pytest.mark.parametrize("key", ["authorization", "Authorization", "AUTHORIZATION"])
def test_extract_takes_the_token_in_any_spelling(propagator, key):
    """`extract` finds the token in any spelling of the header, even in a case-sensitive dictionary."""
    context = propagator.extract({key: f"Bearer {TOKEN}"})

    assert current_token(context).reveal() == TOKEN
    assert current_token() is None


@pytest.mark.parametrize(
    "carrier",
    [
        {},
        {"authorization": "Basic dTpw"},
        {"authorization": ["Bearer a1", "Bearer a2"]},
        {"authorization": "Bearer a1,Bearer a2"},
        {"authorization": "Bearer a1", "Authorization": "Bearer a2"},
        {"authorization": "Bearer " + "a" * 20000},
        {"authorization": None},
        {"authorization": 5},
        {5: "x"},
    ],
)
def test_extract_always_writes_its_key(propagator, carrier):
    """`extract` always sets its key, so no stale token remains."""
    with use_token(TOKEN):
        context = propagator.extract(carrier, otel_context.get_current())

    assert bound_token(context) is None


def test_extract_starts_from_the_root_context(propagator, monkeypatch):
    """`extract` starts from the root context as other propagators do, so their order does not matter."""
    monkeypatch.setattr(context, "has_served", False)
    with use_token(TOKEN):
        found = propagator.extract({})
    assert found == {TOKEN_KEY: None, NOT_FOUND_KEY: True}


def test_extract_does_not_raise(propagator, caplog):
    """`extract` does not raise an error for any carrier."""
    with caplog.at_level(logging.DEBUG):
        context = propagator.extract(object())

    assert bound_token(context) is None


def test_extract_within_a_lease_returns_the_leased_token(propagator):
    """Instrumentation extracts again inside the boundary and gets the leased token, so a request has one token and one
    lease.
    """
    with use_token(TOKEN) as bound:
        assert bound_token(propagator.extract(AUTHORIZATION)) is bound
        assert bound_token(propagator.extract({"authorization": "Bearer other"})).lease is None


def test_extract_does_not_join_a_lease_that_has_ended(propagator):
    """`extract` does not join a lease that has ended, because the same user's next request is a new request."""
    with use_token(TOKEN):
        stale = otel_context.get_current()

    attached = otel_context.attach(stale)
    try:
        assert current_token(propagator.extract(AUTHORIZATION)).reveal() == TOKEN
    finally:
        otel_context.detach(attached)


def test_inject_without_a_destination_writes_nothing(propagator):
    """`inject` writes nothing into the plain dictionary of a message broker, which has no destination."""
    with use_token(TOKEN):
        for context in (None, otel_context.get_current()):
            carrier = {}
            propagator.inject(carrier, context)
            assert carrier == {}


def test_a_destination_in_the_current_context_is_ignored(propagator):
    """`inject` ignores a destination in the current context, so no message broker becomes a destination."""
    with use_token(TOKEN):
        attached = otel_context.attach(to_destination("https://a"))
        try:
            carrier = {}
            propagator.inject(carrier)
        finally:
            otel_context.detach(attached)

    assert carrier == {}


@pytest.mark.parametrize(
    ("url", "written"),
    [("https://a/x", {"Authorization": f"Bearer {TOKEN}"}), ("https://b/x", {}), ("https://a\\@b/", {}), ("", {})],
)
def test_inject_writes_for_a_listed_destination(propagator, url, written):
    """`inject` writes the token if the application explicitly specifies a listed destination."""
    with use_token(TOKEN):
        carrier = {}
        propagator.inject(carrier, to_destination(url))

    assert carrier == written


@pytest.mark.parametrize("key", ["authorization", "AUTHORIZATION"])
def test_inject_keeps_an_explicit_credential(propagator, key):
    """`inject` keeps an explicit credential in any spelling, so there are never two credentials."""
    with use_token(TOKEN):
        carrier = {key: "Basic dTpw"}
        propagator.inject(carrier, to_destination("https://a"))

    assert carrier == {key: "Basic dTpw"}


def test_inject_replaces_every_spelling_if_configured():
    """If configured, `inject` replaces every spelling of the header with one line."""
    propagator = TokenRelayPropagator(Settings(destinations=("https://a",), on_conflict="replace"))

    with use_token(TOKEN):
        carrier = {"AUTHORIZATION": "Basic dTpw", "x": "y"}
        propagator.inject(carrier, to_destination("https://a"))

    assert carrier == {"Authorization": f"Bearer {TOKEN}", "x": "y"}


def test_inject_reads_the_names_of_pairs(propagator):
    """`inject` reads the names in pairs of text or bytes, as in gRPC metadata and ASGI headers."""

    class Appends:
        def set(self, carrier, key, value):
            carrier.append((key, value))

    with use_token(TOKEN):
        empty, full = [("x", "y")], [(b"authorization", b"Basic dTpw")]
        propagator.inject(empty, to_destination("https://a"), Appends())
        propagator.inject(full, to_destination("https://a"), Appends())

    assert ("Authorization", f"Bearer {TOKEN}") in empty
    assert len(full) == 1


@pytest.mark.parametrize("on_conflict", ["keep", "replace"])
def test_inject_writes_nothing_into_an_unreadable_carrier(on_conflict):
    """`inject` writes nothing into an unreadable carrier, which might already contain a credential."""
    propagator = TokenRelayPropagator(Settings(destinations=("https://a",), on_conflict=on_conflict))
    written = []

    class Writes:
        def set(self, carrier, key, value):
            written.append(key)

    with use_token(TOKEN):
        propagator.inject(object(), to_destination("https://a"), Writes())

    assert written == []


def test_a_composite_propagator_extracts_all_three():
    """A composite propagator extracts all three parts in any order."""
    parts = [TraceContextTextMapPropagator(), W3CBaggagePropagator(), TokenRelayPropagator(Settings())]
    carrier = {
        **AUTHORIZATION,
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "baggage": "k=v",
    }

    for order in (parts, parts[::-1]):
        context = CompositePropagator(order).extract(carrier)
        assert current_token(context).reveal() == TOKEN
        assert len(context) == 3


def test_the_field_is_the_name_of_the_written_header():
    """The propagator's only field is the name of the header that it writes, because SNS counts fields against its
    limit.
    """
    assert TokenRelayPropagator(Settings()).fields == {"Authorization"}
    assert TokenRelayPropagator(Settings(header="Txn-Token")).fields == {"Txn-Token"}


def test_a_propagator_without_hooks_warns_once(propagator, caplog):
    """A propagator without hooks warns once, when it has a token and is called without a destination."""
    propagator.inject({})
    assert caplog.records == []

    with use_token(TOKEN):
        propagator.inject({})
        propagator.inject({}, Context())
        propagator.inject({})

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "install()" in caplog.text
    assert_never_leaked(TOKEN, caplog.text, caplog.records)


def test_a_destination_derived_from_the_current_context_is_ignored():
    """Only a destination that is newly set applies, because Kafka's instrumentation passes the current context with its
    span.
    """
    propagator = TokenRelayPropagator(Settings(destinations=("https://a",)))
    derived, again = {}, {}
    with use_token("alice-token-0001"):
        attached = otel_context.attach(to_destination("https://a"))
        try:
            propagator.inject(derived, context=otel_context.set_value("span", 1))
            propagator.inject(again, context=to_destination("https://a"))
        finally:
            otel_context.detach(attached)

    assert derived == {}
    assert again == {"Authorization": "Bearer alice-token-0001"}
