"""An endpoint is asked once: its response is examined, a failure is named, and clocks are compared."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.testing import third_party
from otel_token_relay.verification.endpoints import (
    Endpoint,
    Finding,
    ask,
    describe_clock,
    problem_with_status,
    read_clock_difference,
)
from otel_token_relay.verification.http_client import Response
from tests.support.issuers import Issuer, issuing
from tests.support.tokens import public_jwk

NOW = 1_795_761_796.0  # 2026-11-27T06:43:16Z
ALGORITHMS = ("RS256", "ES256")


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing(public_jwk("RS256", "k1")) as running:
        yield running


def key_set_of(issuer: Issuer) -> Endpoint:
    """Return the issuer's key set, whose response is found to be usable."""
    return Endpoint("key set", f"{issuer.url}/jwks", lambda response: Finding("ok", "usable", response.body))


def test_another_kind_of_endpoint_can_be_asked() -> None:
    """Other kinds of endpoints can be checked with their own form, credential, and function that
    examines the response.
    """
    with third_party() as server:
        endpoint = Endpoint(
            "introspection",
            f"{server.url}/introspect",
            lambda response: Finding("ok", f"status {response.status}", response.status),
            form=b"token=abc",
            authorization="Basic YTpi",
        )
        report = ask(endpoint, timeout=5.0)

    (request,) = server.requests
    assert (request.method, request.body, request.header_lines("Authorization")) == (
        "POST",
        b"token=abc",
        ["Basic YTpi"],
    )
    assert (report.kind, report.state, report.result, report.found) == ("introspection", "ok", "status 200", 200)
    assert str(report).startswith(f"introspection {server.url}/introspect: status 200 (0.")


def test_a_report_is_also_data(issuer: Issuer) -> None:
    """What was found in a response is not part of it."""
    report = ask(key_set_of(issuer), timeout=5.0)

    assert report.found is not None
    document = json.loads(json.dumps(report.as_dict()))
    assert {name: document[name] for name in ("kind", "url", "state", "result")} == {
        "kind": "key set",
        "url": f"{issuer.url}/jwks",
        "state": "ok",
        "result": "usable",
    }
    assert set(document) == {"kind", "url", "state", "result", "seconds", "clock_difference"}


def test_a_failure_is_a_report(issuer: Issuer) -> None:
    """A server that does not respond differs from one whose response cannot be read."""
    issuer.behave = lambda handler, path: True
    silent = ask(key_set_of(issuer), timeout=5.0)
    issuer.behave = lambda handler, path: bool(handler.wfile.write(b"not HTTP\r\n"))
    broken = ask(key_set_of(issuer), timeout=5.0)

    assert (silent.state, silent.result) == ("no_response", "connection closed without a response")
    assert (broken.state, broken.result) == ("problem", "the response is not valid HTTP")
    assert silent.clock_difference is broken.clock_difference is None


@pytest.mark.parametrize(("status", "problem"), [(200, None), (404, "status 404"), (204, "status 204")])
def test_only_the_status_200_is_expected(status: int, problem: str | None) -> None:
    """Only status 200 is expected, because the endpoints return documents."""
    assert problem_with_status(Response(status, {}, b"")) == problem


# Clocks


@pytest.mark.parametrize("offset", [-312, 0, 45])
def test_the_clock_difference_is_measured(issuer: Issuer, offset: int) -> None:
    """The issuer's `Date` is compared with the middle of the exchange."""
    report = ask(key_set_of(issuer), timeout=5.0, now=lambda: time.time() - offset)

    assert report.clock_difference == pytest.approx(offset, abs=2)


@pytest.mark.parametrize(
    ("headers", "difference"),
    [
        pytest.param({"date": "Fri, 27 Nov 2026 06:43:16 GMT"}, 0.5, id="the same second"),
        pytest.param({"date": "Fri, 27 Nov 2026 06:44:16 GMT"}, 60.5, id="ahead"),
        pytest.param({"date": "Fri, 27 Nov 2026 06:42:16 GMT"}, -59.5, id="behind"),
        pytest.param({"date": "Fri, 27 Nov 2026 06:42:16 GMT", "age": "60"}, 0.5, id="from a cache"),
        pytest.param({"date": "Fri, 27 Nov 2026 06:43:16 GMT", "age": "x"}, None, id="age not a number"),
        pytest.param({"date": "Fri, 27 Nov 2026 06:43:16 -0000"}, 0.5, id="no time zone"),
        pytest.param({"date": "soon"}, None, id="not a date"),
        pytest.param({"date": ""}, None, id="empty"),
        pytest.param({}, None, id="no date"),
    ],
)
def test_the_date_is_read(headers: dict[str, str], difference: float | None) -> None:
    """A date is truncated to whole seconds, and a cached response's age is added."""
    assert read_clock_difference(Response(200, headers, b""), NOW) == difference


@given(st.dictionaries(st.sampled_from(["date", "age"]), st.text() | st.floats(0, 2**33).map(email.utils.formatdate)))
def test_any_header_can_be_read(headers: dict[str, str]) -> None:
    """Any `Date` header that a server sends can be read without an error."""
    found = read_clock_difference(Response(200, headers, b""), NOW)

    assert found is None or isinstance(found, float)


@pytest.mark.parametrize(
    ("difference", "text"),
    [
        (None, None),
        (0.0, "The issuer's clock and this machine's clock agree."),
        (1.9, "The issuer's clock and this machine's clock agree."),
        (-1.9, "The issuer's clock and this machine's clock agree."),
        (2.0, "The issuer's clock is 2 s ahead of this machine's clock."),
        (-312.4, "The issuer's clock is 312 s behind this machine's clock."),
    ],
)
def test_the_clock_difference_is_a_sentence(difference: float | None, text: str | None) -> None:
    """The clock difference is described in a sentence, unless it is below the measurement's resolution."""
    assert describe_clock(difference) == text
