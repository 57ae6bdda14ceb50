"""Decisions are recorded without tokens, and an assertion that fails lists them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from otel_token_relay import operator_log, use_token
from otel_token_relay.testkit.callers import Caller, CallerRefused
from otel_token_relay.testkit.decision_records import (
    RecordedDecision,
    RecordedDecisions,
    RecordedVerification,
    recording,
)
from otel_token_relay.testkit.installations import InstalledRelay, installed_relay
from otel_token_relay.token import BearerToken
from tests.support.issuers import Issuer
from tests.support.loopback import Party, party
from tests.support.tokens import AUDIENCE, claims, make_token

TOKEN = "alice-has-this-token"


@pytest.fixture
def outsider() -> Iterator[Party]:
    with party() as one:
        yield one


@pytest.fixture
def listed() -> Iterator[Party]:
    with party() as one:
        yield one


@pytest.fixture
def relay(listed: Party) -> Iterator[InstalledRelay]:
    with installed_relay(destinations=[listed.url]) as relay:
        yield relay


@pytest.fixture
def records(relay: InstalledRelay) -> Iterator[RecordedDecisions]:
    with recording() as records:
        yield records


def call(*urls: str) -> None:
    with use_token(TOKEN):
        for url in urls:
            requests.get(url, timeout=20)


def test_each_hop_is_recorded_in_order(records: RecordedDecisions, listed: Party, outsider: Party) -> None:
    """The records are a sequence, until they are cleared."""
    call(listed.url, f"{outsider.url}/path", listed.url)
    relayed = RecordedDecision("relayed", "relayed", listed.url, listed.url)

    assert len(records) == 3
    assert (records[0], records[-1], records[::2]) == (relayed, relayed, [relayed, relayed])
    assert [one.outcome for one in records] == ["relayed", "withheld", "relayed"]
    assert (records[1].origin, records[1].reason) == (outsider.url, "destination_not_listed")
    assert records.reasons(f"{listed.url}/any?path") == ["relayed", "relayed"]
    assert TOKEN not in repr(records)
    records.clear()
    assert [*records] == records.verifications == records.reasons(listed.url) == []


def test_an_assertion_passes_or_lists_the_decisions(records: RecordedDecisions, listed: Party, outsider: Party) -> None:
    """Every request to the origin counts, and there must be one."""
    call(listed.url, outsider.url)
    records.assert_sent(listed.url)
    records.assert_withheld(outsider.url)
    records.assert_withheld(outsider.url, "destination_not_listed")

    with pytest.raises(AssertionError) as failed:
        records.assert_sent(outsider.url)
    assert str(failed.value) == "\n".join(
        [
            f"expected each request to {outsider.url} to carry a token. Recorded decisions:",
            *(f"  {decision}" for decision in records),
        ]
    )
    with pytest.raises(
        AssertionError, match=rf"^expected the token to be withheld from each request to {listed.url}\."
    ):
        records.assert_withheld(listed.url)
    with pytest.raises(AssertionError, match=rf"{outsider.url} \(no_token\)\. Recorded"):
        records.assert_withheld(outsider.url, "no_token")
    requests.get(listed.url, timeout=20)
    for check in (records.assert_sent, records.assert_withheld):
        with pytest.raises(AssertionError):
            check(listed.url)


def test_without_a_decision_every_assertion_fails() -> None:
    """A mock may have replaced the code that adds the header."""
    records = RecordedDecisions()
    for check in (records.assert_sent, records.assert_withheld):
        with pytest.raises(AssertionError, match=r"none\. Either no request was sent, or a mock"):
            check("https://billing.example")
    assert records.reasons("https://billing.example") == []
    assert repr(records) == "<RecordedDecisions: none>"


@pytest.mark.parametrize("url", ["billing.example", "https://user@billing.example", "", "https://billing.example\\@x"])
def test_a_url_without_an_origin_is_an_error(url: str) -> None:
    """A typing error would otherwise make an assertion about nothing."""
    records = RecordedDecisions()
    for check in (records.reasons, records.assert_sent, records.assert_withheld):
        with pytest.raises(ValueError, match="expected a URL with a scheme and a host, without user info"):
            check(url)


@pytest.mark.parametrize(
    ("decision", "text"),
    [
        (RecordedDecision("relayed", "relayed", "https://a", "https://a"), "https://a: relayed"),
        (RecordedDecision("withheld", "no_token", "https://a"), "https://a: withheld (no_token)"),
        (
            RecordedDecision("withheld", "destination_not_listed", "https://a", closest_entry="https://b"),
            "https://a: withheld (destination_not_listed); closest entry: https://b",
        ),
    ],
)
def test_the_text_of_a_decision_is_short(decision: RecordedDecision, text: str) -> None:
    """The reason is left out if it repeats the outcome."""
    assert str(decision) == text


def test_verifications_are_recorded(relay: InstalledRelay, records: RecordedDecisions, issuer: Issuer) -> None:
    """Also after other settings have been installed."""
    relay(destinations=["https://a"], verify="enforce", issuers=[issuer.url], audience=[AUDIENCE])
    with Caller("alice", BearerToken(make_token(claims(issuer.url)))):
        pass
    with pytest.raises(CallerRefused):
        Caller("bob", BearerToken(make_token(claims(issuer.url, aud="other")))).__enter__()

    assert records.verifications == [
        RecordedVerification("accepted"),
        RecordedVerification("refused", "wrong_audience", "aud"),
    ]


def test_the_operators_log_is_still_written(
    relay: InstalledRelay, listed: Party, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is the one of the settings that are installed, and it is restored."""
    before, follow = operator_log.decisions, operator_log.follow
    with recording() as outer, recording() as inner:
        call(listed.url)
        assert "decision=" not in capsys.readouterr().err
        relay(destinations=[listed.url], log="decisions")
        call(listed.url)
        assert capsys.readouterr().err.count(f"origin={listed.url}") == 1
        relay(destinations=[listed.url])
        call(listed.url)
        assert "decision=" not in capsys.readouterr().err
    call(listed.url)

    assert len(outer) == len(inner) == 3
    assert operator_log.decisions is before is None
    assert operator_log.follow is follow
